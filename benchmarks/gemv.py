"""One product with a quantized matrix: coded, stock MLX, and dense numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import mlx.core as mx
import numpy as np

from mlx_entropy import _ext
from mlx_entropy.bench.report import CODED, STOCK, Report, Result, make_report
from mlx_entropy.bench.timing import interleave, settings
from mlx_entropy.tensors import bits_per_weight

DTYPES = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
}

DENSE = "numpy float32"

SWEEP_BITS = (2, 3, 4)
SWEEP_DTYPES = ("float32", "bfloat16")
SWEEP_BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class GemvCase:
    """``[batch, cols] @ [rows, cols].T`` with affine-quantized weights."""

    rows: int = 4096
    cols: int = 4096
    bits: int = 4
    group_size: int = 64
    dtype: str = "float32"
    batch: int = 1

    @property
    def weights(self) -> int:
        return self.rows * self.cols


class Matrix:
    """Gaussian float16 weights, quantized by MLX, and the same ones coded."""

    def __init__(self, case: GemvCase) -> None:
        shape = (case.rows, case.cols)
        dense = mx.random.normal(shape, mx.float16, key=mx.random.key(0))
        group_size, bits = case.group_size, case.bits
        self.parts = mx.quantize(dense, group_size, bits)
        weight, scales, biases = self.parts
        self.coded = _ext.encode_affine(
            weight, scales, biases, group_size, bits
        )
        # In float32: in float16, scale * code + bias would be rounded.
        self.floats = np.array(
            mx.dequantize(
                weight,
                scales.astype(mx.float32),
                biases.astype(mx.float32),
                group_size,
                bits,
            )
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of MLX's own form, scales and biases included."""
        return sum(part.nbytes for part in self.parts)


def bench_gemv(
    case: GemvCase,
    *,
    threads: int | None = None,
    target: str | None = None,
    repeat: int = 20,
    budget: float = 5.0,
) -> Report:
    """Measure one product. ValueError for a case that MLX cannot quantize."""
    with settings(threads, target):
        return _measure(case, Matrix(case), repeat, budget)


def bench_gemv_sweep(
    case: GemvCase,
    *,
    threads: int | None = None,
    target: str | None = None,
    repeat: int = 20,
    budget: float = 5.0,
    notify: Callable[[str], None] | None = None,
) -> Report:
    """Reports over bits, types and batches; the rest is as in `case`."""
    reports = []
    with settings(threads, target):
        for bits in SWEEP_BITS:
            matrix = Matrix(replace(case, bits=bits))
            for dtype, batch in product(SWEEP_DTYPES, SWEEP_BATCHES):
                if notify is not None:
                    notify(f"measuring {bits} bits, {dtype}, batch {batch}")
                each = replace(case, bits=bits, dtype=dtype, batch=batch)
                reports.append(_measure(each, matrix, repeat, budget))
        return make_report("gemv sweep", {"cases": reports}, [])


class _Product:
    """One case's contenders; each keeps its last output by its name."""

    def __init__(self, case: GemvCase, matrix: Matrix) -> None:
        dtype = DTYPES[case.dtype]
        shape = (case.batch, case.cols)
        self.case = case
        self.matrix = matrix
        self.x = mx.random.normal(shape, dtype, key=mx.random.key(1))
        self.dense_x = np.array(self.x.astype(mx.float32))
        # Stock MLX would convert scales of another type on each call.
        self.weight = matrix.parts[0]
        self.scales, self.biases = (
            part.astype(dtype) for part in matrix.parts[1:]
        )
        mx.eval(self.x, self.scales, self.biases)
        self.outputs: dict[str, mx.array | np.ndarray] = {}
        self.runs = {CODED: self._coded, STOCK: self._stock}
        self.nbytes = {
            CODED: matrix.coded.nbytes,
            STOCK: sum(
                part.nbytes for part in (self.weight, self.scales, self.biases)
            ),
            DENSE: matrix.floats.nbytes,
        }

    def _coded(self) -> None:
        y = _ext.entropy_coded_matmul(self.x, self.matrix.coded, self.case.rows)
        mx.eval(y)
        self.outputs[CODED] = y

    def _stock(self) -> None:
        y = mx.quantized_matmul(
            self.x,
            self.weight,
            self.scales,
            self.biases,
            True,
            self.case.group_size,
            self.case.bits,
        )
        mx.eval(y)
        self.outputs[STOCK] = y

    def dense(self) -> None:
        self.outputs[DENSE] = self.dense_x @ self.matrix.floats.T

    def relative_error(self, name: str) -> float:
        """``|y - exact| / |exact|`` over some rows: enough to judge by."""
        y = self.outputs[name]
        if isinstance(y, mx.array):
            y = np.array(y.astype(mx.float32))
        rows = self.matrix.floats[:512].astype(np.float64)
        exact = self.dense_x.astype(np.float64) @ rows.T
        difference = y[:, : len(rows)] - exact
        return float(np.linalg.norm(difference) / np.linalg.norm(exact))


def _measure(
    case: GemvCase, matrix: Matrix, repeat: int, budget: float
) -> Report:
    peers = _Product(case, matrix)
    timings = interleave(peers.runs, repeat, budget)
    # Apart, since its threads spin for a while after each call.
    timings |= interleave({DENSE: peers.dense}, repeat, budget)
    results = []
    for name, timing in timings.items():
        threads = _ext.num_threads() if name == CODED else 0
        work = case.weights * case.batch
        result = Result(name, timing, work, peers.nbytes[name], threads)
        error = peers.relative_error(name)
        results.append({**result.to_dict(), "relative_error": error})
    about = {
        **vars(case),
        "weights": case.weights,
        "coded_bits_per_weight": bits_per_weight(
            matrix.coded.nbytes, case.weights
        ),
        "stored_bits_per_weight": bits_per_weight(
            matrix.stored_bytes, case.weights
        ),
    }
    ratio = timings[STOCK].seconds / timings[CODED].seconds
    return make_report("gemv", about, results, ratio=ratio)
