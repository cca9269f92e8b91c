"""GGUF models of a real model's shape with random weights, for llama-bench.

The blocks are random bytes with fixed scales: valid, of a sane magnitude,
and made in a fraction of the time that quantizing real values takes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .shapes import ModelShape
from .synthetic import scratch_beside

_ALIGNMENT = 32
_CHUNK = 1 << 25  # Weights made at a time.
_U32, _F32, _STRING = 4, 6, 8


@dataclass(frozen=True)
class BlockType:
    """A ggml type; `parts` are a block's fields in their order in memory.

    A part is "d" (a float16 scale), "m" (a float16 minimum), a number of
    random bytes, or bytes that all blocks share. `deviation` is that of the
    weights and `minimum` the value of "m", both in scales.
    """

    number: int
    weights: int
    parts: tuple[str | int | bytes, ...]
    deviation: float
    minimum: float = 0.0
    file_type: int = 0

    def row_bytes(self, cols: int) -> int:
        return cols // self.weights * self.dtype().itemsize

    def dtype(self) -> np.dtype[Any]:
        sizes = [
            2 if part in ("d", "m") else _size(part) for part in self.parts
        ]
        return np.dtype([(f"f{i}", f"V{n}") for i, n in enumerate(sizes)])

    def rows(
        self, random: np.random.Generator, rows: int, cols: int
    ) -> np.ndarray:
        """Blocks whose weights have a deviation of ``1 / sqrt(cols)``."""
        count = rows * cols // self.weights
        scale = cols**-0.5 / self.deviation
        blocks = np.empty((count, self.dtype().itemsize), np.uint8)
        at = 0
        for part in self.parts:
            if part == "d":
                value = np.float16(scale).tobytes()
            elif part == "m":
                value = np.float16(scale * self.minimum).tobytes()
            elif isinstance(part, bytes):
                value = part
            else:
                size = _size(part)
                raw = np.frombuffer(random.bytes(count * size), np.uint8)
                blocks[:, at : at + size] = raw.reshape(count, size)
                at += size
                continue
            blocks[:, at : at + len(value)] = np.frombuffer(value, np.uint8)
            at += len(value)
        return blocks


def _size(part: str | int | bytes) -> int:
    return part if isinstance(part, int) else len(part)


# Scales of K-quants are set to half their range: 32 of 6 bits in Q4_K, packed
# as llama.cpp packs them, 8 of 4 bits in Q2_K.
_Q4_K_SCALES = b"\xa0" * 8 + b"\x00" * 4
BLOCK_TYPES = {
    "q4_0": BlockType(2, 32, ("d", 16), 4.61, file_type=2),
    "q4_1": BlockType(3, 32, ("d", "m", 16), 4.61, -7.5, 3),
    "q8_0": BlockType(8, 32, ("d", 32), 73.9, file_type=7),
    "q2_k": BlockType(
        10, 256, (b"\x88" * 16, 64, "d", "m"), 8 * 1.118, 1.5, 21
    ),
    "q3_k": BlockType(11, 256, (32, 64, 12, "d"), 42.0, file_type=11),
    "q4_k": BlockType(
        12, 256, ("d", "m", _Q4_K_SCALES, 128), 32 * 4.61, 7.5, 14
    ),
    "q6_k": BlockType(
        14, 256, (128, 64, b"\x10" * 16, "d"), 16 * 18.5, file_type=18
    ),
    "iq2_s": BlockType(22, 256, ("d", 64, 8, 8), 58.0, file_type=28),
}

GGUF_TYPES = tuple(BLOCK_TYPES)


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: BlockType | None  # None: float32 ones.
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        if self.kind is None:
            return 4 * self.cols
        return self.rows * self.kind.row_bytes(self.cols)


def write_gguf(
    shape: ModelShape,
    out: str | os.PathLike[str],
    *,
    kind: str | None = None,
    layers: int | None = None,
    seed: int = 0,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Write a model of one type, by default q4_k where its blocks fit.

    The output projection (or the table that is it) is Q6_K under a K or IQ
    type, as llama-quantize has it. There is no vocabulary: llama-bench needs
    none. FileExistsError if `out` is there; ValueError if the shape does not
    fit the type's blocks.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists")
    if kind is None:
        kind = "q4_0" if shape.hidden % 256 else "q4_k"
    count = shape.layers if layers is None else layers
    tensors = list(_tensors(shape, count, kind))
    random = np.random.default_rng(seed)
    with scratch_beside(out) as partial:
        with open(partial, "wb") as stream:
            stream.write(_header(_metadata(shape, count, kind), tensors))
            for number, tensor in enumerate(tensors, 1):
                _write_tensor(stream, tensor, random)
                if notify is not None and number % 20 == 0:
                    notify(f"{number} of {len(tensors)} tensors")
        partial.rename(out)
    return out


def _tensors(shape: ModelShape, layers: int, kind: str) -> Iterator[_Tensor]:
    block = BLOCK_TYPES[kind]
    head = BLOCK_TYPES["q6_k"] if block.weights == 256 else block
    hidden = shape.hidden
    if any(cols % block.weights for _, cols in shape.layer().values()):
        raise ValueError(
            f"{kind} has blocks of {block.weights} weights, which the rows of "
            f"a {shape.name} model are no multiple of"
        )
    table = head if shape.tied else block
    yield _Tensor("token_embd.weight", table, shape.vocabulary, hidden)
    names = (
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate", "ffn_up", "ffn_down"),
    )
    for layer in range(layers):
        prefix = f"blk.{layer}"
        yield _Tensor(f"{prefix}.attn_norm.weight", None, 1, hidden)
        matrices = zip(names, shape.layer().values(), strict=True)
        for name, (rows, cols) in matrices:
            yield _Tensor(f"{prefix}.{name}.weight", block, rows, cols)
        yield _Tensor(f"{prefix}.ffn_norm.weight", None, 1, hidden)
    yield _Tensor("output_norm.weight", None, 1, hidden)
    if not shape.tied:
        yield _Tensor("output.weight", head, shape.vocabulary, hidden)


def _metadata(shape: ModelShape, layers: int, kind: str) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": 8192,
        "embedding_length": shape.hidden,
        "block_count": layers,
        "feed_forward_length": shape.intermediate,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": 500000.0,
        "vocab_size": shape.vocabulary,
    }
    return {
        "general.architecture": "llama",
        "general.name": f"synthetic {shape.name}",
        "general.file_type": BLOCK_TYPES[kind].file_type,
        "tokenizer.ggml.model": "none",
        **{f"llama.{key}": value for key, value in keys.items()},
    }


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<II", _U32, value)


def _header(metadata: dict[str, Any], tensors: list[_Tensor]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    offset = 0
    for tensor in tensors:
        shape = [tensor.cols] if tensor.kind is None else []
        shape = shape or [tensor.cols, tensor.rows]
        number = 0 if tensor.kind is None else tensor.kind.number
        head += _string(tensor.name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", number, offset)
        offset += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
    return head + bytes(-len(head) % _ALIGNMENT)


def _write_tensor(
    stream: BinaryIO, tensor: _Tensor, random: np.random.Generator
) -> None:
    if tensor.kind is None:
        stream.write(np.ones(tensor.cols, np.float32).tobytes())
    else:
        step = max(1, _CHUNK // tensor.cols)
        for start in range(0, tensor.rows, step):
            rows = min(step, tensor.rows - start)
            stream.write(tensor.kind.rows(random, rows, tensor.cols).data)
    stream.write(bytes(-tensor.nbytes % _ALIGNMENT))
