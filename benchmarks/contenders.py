"""Who multiplies: ours, stock MLX, llama.cpp, and numpy with dense weights.

Each holds as many copies of one matrix as it takes to exceed the last cache
by far, and goes through them in turn, so that weights come from memory as
they do in a model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_entropy import _ext
from mlx_entropy.bench.report import CODED, STOCK

from .llama_cpp import GgmlProduct, LlamaCpp
from .weights import Parts, WeightKind

NUMPY = "numpy float32"

# Our codecs: a name, and what turns a quantized matrix into its coded bytes.
# Each is a contender of its own.
Encoder = Callable[[Parts, int, int], mx.array]


def _encoder(codec: str) -> Encoder:
    def encode(parts: Parts, group_size: int, bits: int) -> mx.array:
        coded = _ext.encode_affine(*parts, group_size, bits)
        return _ext.transcode(coded, codec)

    return encode


CODECS: dict[str, Encoder] = {
    CODED: _encoder("rans"),
    f"{CODED} tree": _encoder("tree"),
    f"{CODED} flat": _encoder("flat"),
}

_PAUSE_SECONDS = 0.01

# What products of one sample may write together.
_OUTPUT_BYTES = 64 << 20


class Contender(Protocol):
    name: str
    nbytes: int  # Of one matrix.
    bits_per_weight: float

    def sample(self, batch: int, threads: int, products: int) -> float:
        """Seconds of one product, over `products` of them."""

    def close(self) -> None: ...


class _InProcess:
    """Cycles through copies; a subclass makes one product."""

    def __init__(
        self, name: str, nbytes: int, rows: int, cols: int, copies: int
    ) -> None:
        self.name = name
        self.nbytes = nbytes
        self.bits_per_weight = 8 * nbytes / (rows * cols)
        self.cols = cols
        self._rows = rows
        self._copies = copies
        self._next = 0

    def sample(self, batch: int, threads: int, products: int) -> float:
        del threads  # The caller has set ours; the others do as they please.
        most = max(1, _OUTPUT_BYTES // (4 * self._rows * batch))
        left = products
        started = time.perf_counter()
        while left > 0:
            count = min(left, most)
            self._run(batch, [self._turn() for _ in range(count)])
            left -= count
        return (time.perf_counter() - started) / products

    def _turn(self) -> int:
        self._next = (self._next + 1) % self._copies
        return self._next

    def _run(self, batch: int, copies: list[int]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing runs besides this process."""


class _Mlx(_InProcess):
    """Products that MLX evaluates, some at a time as a model's graph has."""

    _x: mx.array | None = None

    def x(self, batch: int) -> mx.array:
        if self._x is None or self._x.shape[0] != batch:
            key = mx.random.key(1)
            self._x = mx.random.normal((batch, self.cols), key=key)
            mx.eval(self._x)
        return self._x

    def product(self, x: mx.array, copy: int) -> mx.array:
        raise NotImplementedError

    def _run(self, batch: int, copies: list[int]) -> None:
        x = self.x(batch)
        mx.eval([self.product(x, copy) for copy in copies])


class Coded(_Mlx):
    """Our product, from entropy-coded weights."""

    def __init__(
        self, name: str, coded: mx.array, rows: int, cols: int, far: int
    ) -> None:
        count = copies_beyond(coded.nbytes, far)
        super().__init__(name, coded.nbytes, rows, cols, count)
        self._coded = [coded, *(_copy(coded) for _ in range(count - 1))]
        mx.eval(self._coded)
        # The first product with an array validates it.
        self._run(1, list(range(count)))

    def product(self, x: mx.array, copy: int) -> mx.array:
        return _ext.entropy_coded_matmul(x, self._coded[copy], self._rows)


class Stock(_Mlx):
    """`mx.quantized_matmul`, with scales in the type of the activations:
    it would convert them on each call."""

    def __init__(
        self,
        parts: Parts,
        group_size: int,
        bits: int,
        shape: tuple[int, int],
        far: int,
    ) -> None:
        weight, *affine = parts
        scales, biases = (part.astype(mx.float32) for part in affine)
        nbytes = sum(part.nbytes for part in (weight, scales, biases))
        count = copies_beyond(nbytes, far)
        super().__init__(STOCK, nbytes, *shape, count)
        self._group_size, self._bits = group_size, bits
        self._parts = [
            tuple(_copy(part) for part in (weight, scales, biases))
            for _ in range(count)
        ]
        mx.eval(self._parts)

    def product(self, x: mx.array, copy: int) -> mx.array:
        weight, scales, biases = self._parts[copy]
        return mx.quantized_matmul(
            x, weight, scales, biases, True, self._group_size, self._bits
        )


class Dense(_InProcess):
    """numpy's product with the same weights as float32."""

    def __init__(
        self, parts: Parts, group_size: int, bits: int, far: int
    ) -> None:
        weight, *affine = parts
        scales, biases = (part.astype(mx.float32) for part in affine)
        floats = np.array(
            mx.dequantize(weight, scales, biases, group_size, bits)
        )
        rows, cols = floats.shape
        count = copies_beyond(floats.nbytes, far)
        super().__init__(NUMPY, floats.nbytes, rows, cols, count)
        self._floats = [floats, *(floats.copy() for _ in range(count - 1))]
        self._x = np.empty((0, cols), np.float32)

    def _run(self, batch: int, copies: list[int]) -> None:
        if len(self._x) != batch:
            shape = (batch, self.cols)
            random = np.random.default_rng(1)
            self._x = random.standard_normal(shape, np.float32)
        for copy in copies:
            self._x @ self._floats[copy].T


class Ggml:
    """llama.cpp's product, in a process of its own."""

    def __init__(
        self, llama: LlamaCpp, kind: str, rows: int, cols: int, far: int
    ) -> None:
        # Enough for the smallest blocks, of about 2 bits a weight.
        about = rows * cols * 2 // 8
        self._process = GgmlProduct(
            llama, kind, rows, cols, copies_beyond(about, far)
        )
        self.name = f"llama.cpp {kind}"
        self.nbytes = self._process.nbytes
        self.bits_per_weight = 8 * self.nbytes / (rows * cols)
        self.about = self._process.about

    def sample(self, batch: int, threads: int, products: int) -> float:
        seconds = self._process.seconds(batch, threads, products)
        # Its threads spin for a while after a product, and would take time
        # from whoever is next.
        time.sleep(_PAUSE_SECONDS)
        return seconds

    def close(self) -> None:
        self._process.close()


def _copy(array: mx.array) -> mx.array:
    """The same values in other memory: `mx.array` alone would share it."""
    return mx.array(np.array(array))


def copies_beyond(nbytes: int, far: int) -> int:
    """Copies of `nbytes` that together have `far` bytes, one at least."""
    return max(1, math.ceil(far / nbytes))


def our_contenders(
    parts: Parts, kind: WeightKind, rows: int, cols: int, far: int
) -> list[Coded]:
    """One for each of `CODECS`."""
    group_size = kind.group_size_for(cols)
    return [
        Coded(name, encode(parts, group_size, kind.bits), rows, cols, far)
        for name, encode in CODECS.items()
    ]
