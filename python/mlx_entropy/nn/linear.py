"""A linear layer that multiplies straight from the coded weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .coded import (
    AffineMatrix,
    EntropyCoded,
    check_kind,
    decode_into,
    encode_weight,
    one_source,
)
from .lora import lora_around


class EntropyCodedLinear(EntropyCoded):
    """``x @ W.T + bias`` with W entropy-coded, in the place of `nn.Linear`.

    The constructor makes a placeholder for `load_weights`; coded layers come
    from `from_quantized` and `from_linear`. Parameters are frozen.

    Args:
        input_dims (int): Columns of W.
        output_dims (int): Rows of W.
        coded_bytes (int): Size of the parameter ``coded`` (uint8, 1-D).
        bias (bool): Whether there is a ``bias`` of shape ``[output_dims]``.
        dtype (Dtype): Type of ``weight``: float32, float16 or bfloat16. The
            type of the scales in the quantized stock layer.
    """

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        coded_bytes: int,
        bias: bool = False,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        super().__init__(output_dims, input_dims, coded_bytes, dtype)
        self.input_dims = input_dims
        self.output_dims = output_dims
        if bias:
            self.bias = mx.zeros((output_dims,))
        self.freeze()

    @classmethod
    def from_quantized(
        cls,
        layer: nn.QuantizedLinear | None = None,
        *,
        weight: mx.array | None = None,
        scales: mx.array | None = None,
        biases: mx.array | None = None,
        group_size: int = 64,
        bits: int = 4,
        bias: mx.array | None = None,
    ) -> EntropyCodedLinear:
        """Code MLX's affine-quantized weights without loss.

        Args:
            layer (nn.QuantizedLinear): The layer, or None with the arrays:
            weight (array): Packed uint32 ``[output_dims, input_dims * bits /
                32]``, as from `mx.quantize`.
            scales (array): ``[output_dims, input_dims / group_size]``,
                float32, float16 or bfloat16.
            biases (array): Like ``scales``.
            group_size (int): Weights that share a scale: 32, 64 or 128.
            bits (int): Bits of a code: 2, 3, 4, 5, 6 or 8.
            bias (array): Bias of the layer, ``[output_dims]``.

        Raises:
            ValueError: Another mode than affine, unsupported ``bits`` or
                ``group_size``, arrays that do not fit together, or both a
                layer and arrays.
        """
        arrays = (weight, scales, biases, bias)
        matrix = AffineMatrix.given(
            layer, nn.QuantizedLinear, arrays, group_size, bits
        )
        if layer is not None:
            bias = layer.get("bias")
        dtype = matrix.scales.dtype
        return cls._of(matrix.encode(), matrix.shape, dtype, bias)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear | None = None,
        *,
        weight: mx.array | None = None,
        bias: mx.array | None = None,
        bits: int | None = None,
        group_size: int = 64,
    ) -> EntropyCodedLinear:
        """Code float weights: without loss, or after quantization.

        Args:
            layer (nn.Linear): The layer, or None with the arrays:
            weight (array): float32, float16 or bfloat16
                ``[output_dims, input_dims]``.
            bias (array): Bias of the layer, ``[output_dims]``.
            bits (int): None codes the floats without loss; 2, 3, 4, 5, 6 or 8
                quantizes them with `mx.quantize` first.
            group_size (int): For `mx.quantize`: 32, 64 or 128.

        Raises:
            ValueError: A weight that is not a float matrix, ``input_dims``
                that is no multiple of ``group_size`` (with ``bits``),
                unsupported ``bits``, or both a layer and arrays.
        """
        one_source("from_linear", layer, weight, bias)
        if layer is not None:
            check_kind("from_linear", layer, nn.Linear)
            weight, bias = layer.weight, layer.get("bias")
        elif weight is None:
            raise ValueError("[from_linear] weight is needed")
        coded = encode_weight(weight, group_size, bits)
        return cls._of(coded, weight.shape, weight.dtype, bias)

    @classmethod
    def placeholder(
        cls, stock: nn.Module, coded_bytes: int, dtype: mx.Dtype
    ) -> EntropyCodedLinear:
        """For coded bytes to be loaded, in the place of `stock`."""
        output_dims, input_dims = stock.weight.shape
        return cls(input_dims, output_dims, coded_bytes, "bias" in stock, dtype)

    @classmethod
    def _of(
        cls,
        coded: mx.array,
        shape: tuple[int, ...],
        dtype: mx.Dtype,
        bias: mx.array | None,
    ) -> EntropyCodedLinear:
        output_dims, input_dims = shape
        if bias is not None and bias.shape != (output_dims,):
            raise ValueError(
                f"[EntropyCodedLinear] expected a bias of shape "
                f"{(output_dims,)}, got {bias.shape}"
            )
        biased = bias is not None
        layer = cls(input_dims, output_dims, coded.size, biased, dtype)
        layer.coded = coded
        if bias is not None:
            layer.bias = bias
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` ``[..., input_dims]`` -> ``[..., output_dims]``, dtype of x.

        ValueError when x is not float32, float16 or bfloat16 of that shape.
        """
        y = self._product(x)
        return y + self["bias"] if "bias" in self else y

    @classmethod
    def of_stock(cls, layer: Any) -> EntropyCodedLinear:
        """`from_quantized` or `from_linear`, whichever fits."""
        quantized = "scales" in layer
        return (cls.from_quantized if quantized else cls.from_linear)(layer)

    def decode(self) -> nn.QuantizedLinear | nn.Linear:
        """The stock layer with bit-identical weights.

        Affine weights come back as `nn.QuantizedLinear`, floats as `nn.Linear`.
        """
        info = self.info
        bias = "bias" in self
        layer: nn.QuantizedLinear | nn.Linear
        if info.scheme == "affine":
            layer = nn.QuantizedLinear(
                self.input_dims,
                self.output_dims,
                bias,
                info.group_size,
                info.bits,
            )
        else:
            layer = nn.Linear(self.input_dims, self.output_dims, bias)
        decode_into(layer, self["coded"], info)
        if bias:
            layer.bias = self["bias"]
        return layer

    def to_lora(
        self, r: int = 8, dropout: float = 0.0, scale: float = 20.0
    ) -> nn.Module:
        """mlx-lm's `LoRALinear` around this layer, which stays as it is.

        mlx-lm calls it. Its ``fuse`` gives a coded layer, of the same bits
        and group size if this one is quantized. DoRA is not supported.
        """
        from mlx_lm.tuner.lora import LoRALinear

        return lora_around(LoRALinear, self, r, dropout, scale)

    def _extra_repr(self) -> str:
        return (
            f"input_dims={self.input_dims}, output_dims={self.output_dims}, "
            f"bias={'bias' in self}, "
            f"bits_per_weight={self.bits_per_weight:.3f}"
        )
