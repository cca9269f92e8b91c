"""What the coded layers share: one coded matrix, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import _ext
from ..tensors import FLOATS, dtype_name

GROUP_SIZES = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)

# What only MLX's own quantized layers have.
_PACKED_ONLY = frozenset({"bits", "group_size", "mode", "scales", "biases"})


class EntropyCoded(nn.Module):
    """Base of the coded layers: a matrix ``[rows, cols]`` in ``coded``.

    ``coded`` (uint8, 1-D) is an ordinary parameter, so saving, loading and
    evaluating work as for any layer. There is no ``bits`` attribute: mlx-lm
    takes its presence for its own packed layout.

    Tensor parallelism (mlx-lm's ``model.shard``) is not supported, since a
    coded matrix cannot be cut: shard the stock layers that ``decode`` returns.
    """

    def __init__(
        self, rows: int, cols: int, coded_bytes: int, dtype: mx.Dtype
    ) -> None:
        super().__init__()
        self.coded = mx.zeros((coded_bytes,), mx.uint8)
        self._rows = rows
        self._cols = cols
        self._dtype = dtype_name(dtype)  # A Dtype cannot be copied.

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the coded matrix."""
        return self._rows, self._cols

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the weights: that of the scales, or of the floats."""
        dtype: mx.Dtype = getattr(mx, self._dtype)
        return dtype

    @property
    def weight(self) -> mx.array:
        """The matrix as floats ``[rows, cols]``, for models that read it.

        Not a parameter and not kept: it is decoded, and an affine one
        dequantized, whenever the returned array is evaluated. Shape and type
        cost nothing.
        """
        return _ext.entropy_dequantize(
            self["coded"], self._rows, self._cols, self.dtype
        )

    def __getattr__(self, key: str) -> Any:
        if key in _PACKED_ONLY:
            raise AttributeError(
                f"{type(self).__name__} has no {key!r}: its weights are "
                "entropy-coded, which mlx-lm can neither shard nor quantize "
                "again; decode() returns the stock layer"
            )
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "weight":
            raise AttributeError(
                f"the weight of {type(self).__name__} is coded and cannot be "
                "set; replace the layer"
            )
        super().__setattr__(key, value)

    @classmethod
    def of_stock(cls, layer: Any) -> EntropyCoded:
        """Code the stock layer that `decode` gives, quantized or not."""
        raise NotImplementedError

    def decode(self) -> nn.Module:
        """The stock layer with bit-identical weights."""
        raise NotImplementedError

    @property
    def info(self) -> _ext.CodedInfo:
        """Header of the coded matrix; ValueError when it holds none."""
        return _ext.describe(self["coded"])

    @property
    def coded_bytes(self) -> int:
        """Bytes of the coded matrix, side information included."""
        return self["coded"].size

    @property
    def source_bytes(self) -> int:
        """Bytes of the same matrix in the stock layer."""
        info = self.info
        weights = info.rows * info.cols
        if info.scheme != "affine":
            return weights * info.dtype.size
        pairs = weights // info.group_size
        return weights * info.bits // 8 + 2 * pairs * info.dtype.size

    def _check_input(self, x: mx.array) -> None:
        # The op compares with the header, which it may not read before the
        # evaluation: too late to see whose x it was.
        if x.ndim and x.shape[-1] != self._cols:
            raise ValueError(
                f"[{type(self).__name__}] expected x of shape "
                f"[..., {self._cols}], got {x.shape}"
            )

    def _product(self, x: mx.array) -> mx.array:
        self._check_input(x)
        return _ext.entropy_coded_matmul(x, self["coded"], self._rows)

    @property
    def bits_per_weight(self) -> float:
        """Coded bits over weights; a bias vector is not counted."""
        return 8 * self.coded_bytes / (self._rows * self._cols)


@dataclass(frozen=True)
class AffineMatrix:
    """A matrix in MLX's affine quantization, as `mx.quantize` returns it."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    @classmethod
    def given(
        cls,
        layer: nn.Module | None,
        kind: type[nn.Module],
        arrays: Sequence[mx.array | None],
        group_size: int,
        bits: int,
    ) -> AffineMatrix:
        """From the arguments of a `from_quantized`; ValueError unless they fit.

        `arrays` are weight, scales and biases, and others that only go with
        those and not with a layer.
        """
        one_source("from_quantized", layer, *arrays)
        if layer is not None:
            return cls.of(layer, kind)
        weight, scales, biases, *_ = arrays
        if weight is None or scales is None or biases is None:
            raise ValueError(
                "[from_quantized] weight, scales and biases are needed"
            )
        return cls(weight, scales, biases, group_size, bits)

    @classmethod
    def of(cls, layer: nn.Module, kind: type[nn.Module]) -> AffineMatrix:
        """Arrays of a stock layer; ValueError unless affine and a `kind`."""
        check_kind("from_quantized", layer, kind)
        if layer.mode != "affine":
            raise ValueError(
                "[from_quantized] only affine quantization can be coded, "
                f"got mode {layer.mode!r}"
            )
        return cls(
            layer.weight,
            layer.scales,
            layer.biases,
            layer.group_size,
            layer.bits,
        )

    @classmethod
    def quantize(
        cls, weight: mx.array, group_size: int, bits: int
    ) -> AffineMatrix:
        check_quantization(group_size, bits)
        if weight.shape[-1] % group_size:
            raise ValueError(
                "[quantize] the last dimension must be a multiple of the group "
                f"size {group_size}, got a weight of shape {weight.shape}"
            )
        return cls(*mx.quantize(weight, group_size, bits), group_size, bits)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix, not of its packed words."""
        rows, words = self.weight.shape
        return rows, words * 32 // self.bits

    def encode(self, axes: int = 2) -> mx.array:
        """The coded bytes; with 3 `axes` of one matrix for each expert."""
        check_quantization(self.group_size, self.bits)
        check_matrix(self.weight, (mx.uint32,), axes)
        return _ext.encode_affine(
            self.weight,
            self.scales,
            self.biases,
            self.group_size,
            self.bits,
            block_rows=_block_rows(self.weight),
        )


def encode_weight(
    weight: mx.array,
    group_size: int = 64,
    bits: int | None = None,
    axes: int = 2,
) -> mx.array:
    """Code floats without loss, or quantized first when `bits` is given."""
    check_matrix(weight, FLOATS, axes)
    if bits is None:
        return _ext.encode_float(weight, block_rows=_block_rows(weight))
    return AffineMatrix.quantize(weight, group_size, bits).encode(axes)


def decode_into(
    layer: nn.Module, coded: mx.array, info: _ext.CodedInfo
) -> None:
    """Give a stock layer the weights that `coded` holds."""
    if info.scheme == "affine":
        layer.weight, layer.scales, layer.biases = _ext.decode_affine(coded)
    elif info.scheme == "float":
        layer.weight = _ext.decode_float(coded)
    else:
        raise ValueError(
            f"[decode] {info.scheme} are not the weights of a layer"
        )


def check_kind(function: str, layer: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind):
        raise ValueError(
            f"[{function}] expected nn.{kind.__name__}, "
            f"got {type(layer).__name__}"
        )


def check_quantization(group_size: int, bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"[quantize] bits must be one of {BITS}, got {bits}")
    if group_size not in GROUP_SIZES:
        raise ValueError(
            f"[quantize] group_size must be one of {GROUP_SIZES}, "
            f"got {group_size}"
        )


def _block_rows(weight: mx.array) -> int:
    """Rows that start a tile: experts are decoded one by one."""
    return weight.shape[1] if weight.ndim == 3 else 0


def check_matrix(
    weight: mx.array, dtypes: tuple[mx.Dtype, ...], axes: int
) -> None:
    """ValueError unless a matrix of these types, or one for each expert."""
    if weight.ndim != axes or weight.size == 0:
        wanted = "matrix" if axes == 2 else "matrix for each expert"
        raise ValueError(
            f"[encode] expected a non-empty {wanted}, "
            f"got a weight of shape {weight.shape}"
        )
    if weight.dtype not in dtypes:
        names = " or ".join(dtype_name(dtype) for dtype in dtypes)
        raise ValueError(
            f"[encode] expected a weight of type {names}, "
            f"got {dtype_name(weight.dtype)}"
        )


def one_source(function: str, layer: object, *arrays: object) -> None:
    """ValueError unless either `layer` or its arrays were given."""
    given = any(array is not None for array in arrays)
    if (layer is not None) == given:
        raise ValueError(f"[{function}] give either a layer or its arrays")
