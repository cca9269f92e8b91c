"""Speed of coding and decoding, beside zlib's fastest level."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_entropy import _ext
from mlx_entropy.bench.report import CODED, Report, Result, make_report
from mlx_entropy.bench.timing import interleave, settings
from mlx_entropy.tensors import as_bytes, bits_per_weight, dtype_name

# The strongest general-purpose coder that every Python has, at its fastest.
_ZLIB_LEVEL = 1
_ZLIB = f"zlib -{_ZLIB_LEVEL}"


def bench_encode(
    rows: int = 4096,
    cols: int = 4096,
    bits: int = 4,
    group_size: int = 64,
    *,
    threads: int | None = None,
    target: str | None = None,
    repeat: int = 10,
    budget: float = 5.0,
) -> Report:
    """Code and decode Gaussian weights: quantized, bfloat16 and float16.

    Each with one thread and with `threads` (all cores if None).
    """
    dense = mx.random.normal((rows, cols), key=mx.random.key(0))
    sources = [_quantized(dense.astype(mx.float16), group_size, bits)]
    for dtype in (mx.bfloat16, mx.float16):
        sources.append(_floats(dense.astype(dtype)))
    del dense
    with settings(threads, target):
        results: list[Report] = []
        while sources:  # Dropping each, to bound the memory.
            results += _measure(sources.pop(0), rows * cols, repeat, budget)
        about = {
            "rows": rows,
            "cols": cols,
            "weights": rows * cols,
            "bits": bits,
            "group_size": group_size,
        }
        return make_report("encode", about, results)


class _Weights:
    """Weights and the operations on them."""

    def __init__(
        self,
        name: str,
        arrays: tuple[mx.array, ...],
        encode: Callable[[], mx.array],
        decode: Callable[[mx.array], Any],
    ) -> None:
        self.name = name
        self.plain = b"".join(as_bytes(array) for array in arrays)
        self.packed = zlib.compress(self.plain, _ZLIB_LEVEL)
        self.coded = encode()
        self._encode = encode
        self._decode = decode

    def encode(self) -> None:
        mx.eval(self._encode())

    def decode(self) -> None:
        mx.eval(self._decode(self.coded))

    def deflate(self) -> None:
        zlib.compress(self.plain, _ZLIB_LEVEL)

    def inflate(self) -> None:
        zlib.decompress(self.packed)

    def entropy_bits(self, weights: int) -> float:
        """Bits a weight that an ideal coder of the same planes would need."""
        entropies = _ext.plane_entropies(self.coded)
        planes = _ext.describe(self.coded).planes
        bits = sum(entropies.get(p.name, 0.0) * p.count for p in planes)
        return bits / weights


def _quantized(dense: mx.array, group_size: int, bits: int) -> _Weights:
    weight, scales, biases = mx.quantize(dense, group_size, bits)
    mx.eval(weight, scales, biases)
    return _Weights(
        f"affine {bits} bits",
        (weight, scales, biases),
        lambda: _ext.encode_affine(weight, scales, biases, group_size, bits),
        _ext.decode_affine,
    )


def _floats(dense: mx.array) -> _Weights:
    mx.eval(dense)
    return _Weights(
        dtype_name(dense.dtype),
        (dense,),
        lambda: _ext.encode_float(dense),
        _ext.decode_float,
    )


def _measure(
    source: _Weights, weights: int, repeat: int, budget: float
) -> list[Report]:
    about = {
        "weights_of": source.name,
        "source_bits_per_weight": bits_per_weight(len(source.plain), weights),
        "zlib_bits_per_weight": bits_per_weight(len(source.packed), weights),
        "bits_per_weight": bits_per_weight(source.coded.nbytes, weights),
        "entropy_bits": source.entropy_bits(weights),
    }
    operations = {
        "encode": (source.encode, source.deflate),
        "decode": (source.decode, source.inflate),
    }
    rows = []
    for operation, runs in operations.items():
        for result, ratio in _compare(source, runs, weights, repeat, budget):
            found = {**result.to_dict(), "ratio": ratio}
            rows.append({"operation": operation, **about, **found})
    return rows


def _compare(
    source: _Weights,
    operations: tuple[Callable[[], object], Callable[[], object]],
    weights: int,
    repeat: int,
    budget: float,
) -> list[tuple[Result, float]]:
    """Ours with one thread and with all, then zlib; and how much faster."""
    ours, peer = operations

    def threaded(count: int) -> Callable[[], None]:
        def run() -> None:
            _ext.set_num_threads(count)
            ours()

        return run

    threads = _ext.num_threads()
    runs = {str(count): threaded(count) for count in sorted({1, threads})}
    with settings():
        timings = interleave({**runs, _ZLIB: peer}, repeat, budget)
    slowest = timings[_ZLIB].seconds
    results = []
    for key, timing in timings.items():
        if key == _ZLIB:
            result = Result(_ZLIB, timing, weights, len(source.packed), 1)
        else:
            nbytes = source.coded.nbytes
            result = Result(CODED, timing, weights, nbytes, int(key))
        results.append((result, slowest / timing.seconds))
    return results
