"""The experts of a mixture: a coded matrix for each, decoded when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from .. import _ext
from .coded import (
    AffineMatrix,
    EntropyCoded,
    decode_into,
    encode_weight,
)
from .lora import lora_around

if TYPE_CHECKING:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear


class EntropyCodedSwitchLinear(EntropyCoded):
    """Linear layers of many experts, in the place of mlx-lm's `SwitchLinear`.

    The experts' matrices are one coded matrix, ``[num_experts * output_dims,
    input_dims]``, in which every expert starts a tile: a call decodes the
    experts that its indices name, each of them once, and no others.

    The constructor makes a placeholder for `load_weights`; coded layers come
    from `from_quantized` and `from_switch`. Parameters are frozen.

    Args:
        input_dims (int): Columns of each expert's matrix.
        output_dims (int): Rows of each expert's matrix.
        num_experts (int): Number of experts.
        coded_bytes (int): Size of the parameter ``coded`` (uint8, 1-D).
        bias (bool): Whether there is a ``bias`` of shape
            ``[num_experts, output_dims]``.
        dtype (Dtype): Type of ``weight``: float32, float16 or bfloat16.
    """

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        num_experts: int,
        coded_bytes: int,
        bias: bool = False,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        rows = num_experts * output_dims
        super().__init__(rows, input_dims, coded_bytes, dtype)
        self.input_dims = input_dims
        self.output_dims = output_dims
        self.num_experts = num_experts
        if bias:
            self.bias = mx.zeros((num_experts, output_dims))
        self.freeze()

    @classmethod
    def from_quantized(
        cls, layer: QuantizedSwitchLinear
    ) -> EntropyCodedSwitchLinear:
        """Code affine-quantized experts without loss.

        Raises:
            ValueError: Another mode than affine, unsupported ``bits`` or
                ``group_size``, or rows that no tile can end with (see
                `from_switch`).
        """
        matrix = AffineMatrix.of(layer, type(layer))
        return cls._of(layer, matrix.encode(axes=3), layer.scales.dtype)

    @classmethod
    def from_switch(
        cls,
        layer: SwitchLinear,
        *,
        bits: int | None = None,
        group_size: int = 64,
    ) -> EntropyCodedSwitchLinear:
        """Code float experts: without loss, or after quantization.

        Args:
            layer (SwitchLinear): Its weight is float32, float16 or bfloat16
                ``[num_experts, output_dims, input_dims]``.
            bits (int): None codes the floats without loss; 2, 3, 4, 5, 6 or 8
                quantizes them with `mx.quantize` first.
            group_size (int): For `mx.quantize`: 32, 64 or 128.

        Raises:
            ValueError: A weight of another type, unsupported ``bits``,
                ``input_dims`` that is no multiple of ``group_size`` (with
                ``bits``), or an expert whose ``output_dims * input_dims`` is
                no multiple of 64, so that the next could not start a tile.
        """
        weight = layer.weight
        coded = encode_weight(weight, group_size, bits, axes=3)
        return cls._of(layer, coded, weight.dtype)

    @classmethod
    def placeholder(
        cls, stock: nn.Module, coded_bytes: int, dtype: mx.Dtype
    ) -> EntropyCodedSwitchLinear:
        """For coded bytes to be loaded, in the place of `stock`."""
        return cls(
            stock.input_dims,
            stock.output_dims,
            stock.num_experts,
            coded_bytes,
            "bias" in stock,
            dtype,
        )

    @classmethod
    def _of(
        cls, stock: nn.Module, coded: mx.array, dtype: mx.Dtype
    ) -> EntropyCodedSwitchLinear:
        layer = cls.placeholder(stock, coded.size, dtype)
        layer.coded = coded
        if "bias" in stock:
            layer.bias = stock["bias"]
        return layer

    @property
    def weight(self) -> mx.array:
        """The matrices as floats ``[num_experts, output_dims, input_dims]``.

        Decoded whenever the returned array is evaluated; see `EntropyCoded`.
        """
        return super().weight.reshape(
            self.num_experts, self.output_dims, self.input_dims
        )

    def __call__(
        self, x: mx.array, indices: mx.array, sorted_indices: bool = False
    ) -> mx.array:
        """``x`` ``[..., m, input_dims]`` -> ``[..., m, output_dims]``.

        ``indices`` ``[...]`` names the expert of each leading position;
        leading axes are broadcast against each other. Sorted or not makes no
        difference: rows of x are grouped by expert either way. Indices
        count modulo the experts, as in `mx.gather_mm`.
        """
        self._check_input(x)
        y = _ext.entropy_coded_gather_matmul(
            x, self["coded"], indices, self.output_dims
        )
        if "bias" in self:
            # Reading another index would read memory that is not the bias.
            experts = indices % self.num_experts
            y = y + mx.expand_dims(self["bias"][experts], -2)
        return y

    @classmethod
    def of_stock(cls, layer: Any) -> EntropyCodedSwitchLinear:
        """`from_quantized` or `from_switch`, whichever fits."""
        quantized = "scales" in layer
        return (cls.from_quantized if quantized else cls.from_switch)(layer)

    def decode(self) -> QuantizedSwitchLinear | SwitchLinear:
        """mlx-lm's layer with bit-identical weights."""
        from mlx_lm.models.switch_layers import (
            QuantizedSwitchLinear,
            SwitchLinear,
        )

        info = self.info
        # One expert of one row is quick to initialize; `decode_into` and the
        # reshaping below replace it.
        layer: Any
        if info.scheme == "affine":
            layer = QuantizedSwitchLinear(
                self.input_dims, 1, 1, False, info.group_size, info.bits
            )
        else:
            layer = SwitchLinear(self.input_dims, 1, 1, False)
        decode_into(layer, self["coded"], info)
        for name in ("weight", "scales", "biases"):
            if name in layer:
                layer[name] = layer[name].reshape(
                    self.num_experts, self.output_dims, -1
                )
        if "bias" in self:
            layer.bias = self["bias"]
            layer.freeze(keys=["bias"])
        return layer

    def to_lora(
        self, r: int = 8, dropout: float = 0.0, scale: float = 20.0
    ) -> nn.Module:
        """mlx-lm's `LoRASwitchLinear` around this; see `EntropyCodedLinear`."""
        from mlx_lm.tuner.lora import LoRASwitchLinear

        return lora_around(LoRASwitchLinear, self, r, dropout, scale)

    def _extra_repr(self) -> str:
        return (
            f"input_dims={self.input_dims}, output_dims={self.output_dims}, "
            f"num_experts={self.num_experts}, bias={'bias' in self}, "
            f"bits_per_weight={self.bits_per_weight:.3f}"
        )
