"""Quantized matrices to multiply with, and which llama.cpp types match them."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .synthetic import Gaussian

Parts = tuple[mx.array, mx.array, mx.array]

# Types of llama.cpp that store about as many bits a weight, by MLX's bits.
_PEERS_BY_BITS = {
    2: ("q2_K", "iq2_s"),
    3: ("q3_K", "iq3_s"),
    4: ("q4_K", "q4_0"),
    5: ("q5_K",),
    6: ("q6_K",),
    8: ("q8_0",),
}
# The same by what a row-scaled matrix takes.
_PEERS_BY_RATE = (
    (2.4, ("iq2_xs",)),
    (2.8, ("q2_K", "iq2_s")),
    (3.3, ("iq3_xxs", "q3_K")),
    (4.0, ("iq3_s", "q3_K")),
)
_SMALLEST_BLOCKS = "q4_0"  # 32 weights; what others cannot hold gets this.

# Bits of Gaussian weights whose grid has a step of one deviation.
_GAUSSIAN_BITS = 0.5 * float(np.log2(2 * np.pi * np.e))
# Scales of groups of 128, what the tiles' streams add, and what a grid this
# coarse needs beyond that formula.
_OVERHEAD_BITS = 0.15


@dataclass(frozen=True)
class WeightKind:
    """How a matrix of Gaussian weights is quantized.

    Without a `rate`: by `mx.quantize`, as MLX's checkpoints are. With one: a
    grid of one step for a whole row, chosen so that a weight takes about
    `rate` bits when it is entropy-coded; what a quantizer would write that
    counts on a coder behind it. MLX stores these in `bits` all the same.
    `group_size` is the largest to use; narrow rows may need a smaller one.
    """

    bits: int
    group_size: int
    rate: float | None = None

    @property
    def label(self) -> str:
        if self.rate is None:
            return f"{self.bits} bits, groups of {self.group_size}"
        return f"row-scaled, {self.rate:g} bits"

    def group_size_for(self, cols: int) -> int:
        """ValueError if MLX has no groups for rows of such a length."""
        for size in (128, 64, 32):
            if size <= self.group_size and cols % size == 0:
                if self.rate is None and size != self.group_size:
                    break
                return size
        raise ValueError(
            f"{cols} columns are no multiple of the group size "
            f"{self.group_size}"
        )

    def llama_types(self, cols: int) -> tuple[str, ...]:
        """llama.cpp's types of about the same size that such rows fit."""
        if cols % 256:
            return (_SMALLEST_BLOCKS,)
        if self.rate is None:
            return _PEERS_BY_BITS[self.bits]
        for limit, types in _PEERS_BY_RATE:
            if self.rate <= limit:
                return types
        return ("q4_K", "q4_0")

    def make(self, rows: int, cols: int, seed: int = 0) -> Parts:
        """Packed codes, scales and biases; ValueError if MLX has no such."""
        self.group_size_for(cols)
        random = Gaussian(seed, cols)
        step = max(1, (1 << 24) // cols)
        pieces = [
            self._quantize(random.rows(min(step, rows - start), cols, 1.0))
            for start in range(0, rows, step)
        ]
        weight, scales, biases = (
            mx.concatenate(list(column)) for column in zip(*pieces, strict=True)
        )
        mx.eval(weight, scales, biases)
        return weight, scales, biases

    def _quantize(self, dense: np.ndarray) -> Parts:
        if self.rate is None:
            weight, scales, biases = mx.quantize(
                mx.array(dense).astype(mx.float16), self.group_size, self.bits
            )
        else:
            weight, scales, biases = self._row_scaled(dense)
        mx.eval(weight, scales, biases)
        return weight, scales, biases

    def _row_scaled(self, dense: np.ndarray) -> Parts:
        assert self.rate is not None
        rows, cols = dense.shape
        half = 1 << (self.bits - 1)
        # A deviation, in steps.
        steps = 2.0 ** (self.rate - _OVERHEAD_BITS - _GAUSSIAN_BITS)
        codes = np.rint(dense * np.float32(steps)) + half
        codes = np.clip(codes, 0, 2 * half - 1).astype(np.uint8)
        # Real rows differ in magnitude; so do these.
        deviations = np.exp2(np.linspace(-1, 1, rows)) * cols**-0.5
        scales = (deviations / steps).astype(np.float16)[:, None]
        groups = np.repeat(scales, cols // self.group_size_for(cols), 1)
        biases = (groups.astype(np.float32) * -half).astype(np.float16)
        packed = _pack(codes, self.bits)
        return mx.array(packed), mx.array(groups), mx.array(biases)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """MLX's packing of codes whose bits divide 32: the first one lowest."""
    rows, cols = codes.shape
    each = 32 // bits
    lanes = codes.reshape(rows, cols // each, each).astype(np.uint32)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    packed: np.ndarray = np.bitwise_or.reduce(lanes << shifts, axis=2)
    return packed


def weight_kinds(
    bits: tuple[int, ...], group_size: int, rates: tuple[float, ...]
) -> list[WeightKind]:
    """ValueError for a rate that codes of 4 bits cannot have."""
    kinds = [WeightKind(each, group_size) for each in bits]
    for rate in rates:
        if not 1.0 <= rate <= 3.5:
            raise ValueError(f"a rate of {rate:g} bits is not within 1 to 3.5")
        kinds.append(WeightKind(4, 128, rate))
    return kinds
