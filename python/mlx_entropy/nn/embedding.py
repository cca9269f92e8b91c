"""An embedding whose table stays coded; a lookup decodes only its rows."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import _ext
from .coded import (
    AffineMatrix,
    EntropyCoded,
    check_kind,
    decode_into,
    encode_weight,
    one_source,
)
from .lora import lora_around


class EntropyCodedEmbedding(EntropyCoded):
    """A coded lookup table, in the place of `nn.Embedding`.

    The constructor makes a placeholder for `load_weights`; coded layers come
    from `from_quantized` and `from_embedding`. Parameters are frozen.

    Args:
        num_embeddings (int): Rows of the table.
        dims (int): Columns of the table.
        coded_bytes (int): Size of the parameter ``coded`` (uint8, 1-D).
        dtype (Dtype): Type of the vectors looked up: float32, float16 or
            bfloat16. The stock layers give that of the scales (quantized) or
            of the weight.
    """

    def __init__(
        self,
        num_embeddings: int,
        dims: int,
        coded_bytes: int,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        super().__init__(num_embeddings, dims, coded_bytes, dtype)
        self.num_embeddings = num_embeddings
        self.dims = dims
        self.freeze()

    @classmethod
    def from_quantized(
        cls,
        layer: nn.QuantizedEmbedding | None = None,
        *,
        weight: mx.array | None = None,
        scales: mx.array | None = None,
        biases: mx.array | None = None,
        group_size: int = 64,
        bits: int = 4,
    ) -> EntropyCodedEmbedding:
        """Code MLX's affine-quantized table without loss.

        Args:
            layer (nn.QuantizedEmbedding): The layer, or None with the arrays:
            weight (array): Packed uint32 ``[num_embeddings, dims * bits /
                32]``, as from `mx.quantize`.
            scales (array): ``[num_embeddings, dims / group_size]``, float32,
                float16 or bfloat16.
            biases (array): Like ``scales``.
            group_size (int): Weights that share a scale: 32, 64 or 128.
            bits (int): Bits of a code: 2, 3, 4, 5, 6 or 8.

        Raises:
            ValueError: Another mode than affine, unsupported ``bits`` or
                ``group_size``, arrays that do not fit together, or both a
                layer and arrays.
        """
        arrays = (weight, scales, biases)
        matrix = AffineMatrix.given(
            layer, nn.QuantizedEmbedding, arrays, group_size, bits
        )
        return cls._of(matrix.encode(), matrix.shape, matrix.scales.dtype)

    @classmethod
    def from_embedding(
        cls,
        layer: nn.Embedding | None = None,
        *,
        weight: mx.array | None = None,
        bits: int | None = None,
        group_size: int = 64,
    ) -> EntropyCodedEmbedding:
        """Code a float table: without loss, or after quantization.

        Args:
            layer (nn.Embedding): The layer, or None with the array:
            weight (array): float32, float16 or bfloat16
                ``[num_embeddings, dims]``.
            bits (int): None codes the floats without loss; 2, 3, 4, 5, 6 or 8
                quantizes them with `mx.quantize` first.
            group_size (int): For `mx.quantize`: 32, 64 or 128.

        Raises:
            ValueError: A weight that is not a float matrix, ``dims`` that is
                no multiple of ``group_size`` (with ``bits``), unsupported
                ``bits``, or both a layer and an array.
        """
        one_source("from_embedding", layer, weight)
        if layer is not None:
            check_kind("from_embedding", layer, nn.Embedding)
            weight = layer.weight
        assert weight is not None  # one_source saw to it
        coded = encode_weight(weight, group_size, bits)
        return cls._of(coded, weight.shape, weight.dtype)

    @classmethod
    def placeholder(
        cls, stock: nn.Module, coded_bytes: int, dtype: mx.Dtype
    ) -> EntropyCodedEmbedding:
        """For coded bytes to be loaded, in the place of `stock`."""
        num_embeddings, dims = stock.weight.shape
        return cls(num_embeddings, dims, coded_bytes, dtype)

    @classmethod
    def _of(
        cls, coded: mx.array, shape: tuple[int, ...], dtype: mx.Dtype
    ) -> EntropyCodedEmbedding:
        num_embeddings, dims = shape
        layer = cls(num_embeddings, dims, coded.size, dtype)
        layer.coded = coded
        return layer

    def __call__(self, indices: mx.array) -> mx.array:
        """``[*indices.shape, dims]`` in ``dtype``.

        Negative indices count from the end. One out of range gives zeros:
        the stock layers read what lies there in memory.
        """
        return _ext.entropy_coded_embedding(
            indices, self["coded"], self.dims, self.dtype
        )

    def as_linear(self, x: mx.array) -> mx.array:
        """``x`` ``[..., dims]`` -> ``[..., num_embeddings]``, dtype of x.

        The output projection of models that tie it to the embedding.
        """
        return self._product(x)

    @classmethod
    def of_stock(cls, layer: Any) -> EntropyCodedEmbedding:
        """`from_quantized` or `from_embedding`, whichever fits."""
        quantized = "scales" in layer
        return (cls.from_quantized if quantized else cls.from_embedding)(layer)

    def decode(self) -> nn.QuantizedEmbedding | nn.Embedding:
        """The stock layer with a bit-identical table.

        An affine table comes back as `nn.QuantizedEmbedding`, floats as
        `nn.Embedding`.
        """
        info = self.info
        layer: nn.QuantizedEmbedding | nn.Embedding
        if info.scheme == "affine":
            layer = nn.QuantizedEmbedding(
                self.num_embeddings, self.dims, info.group_size, info.bits
            )
        else:
            layer = nn.Embedding(self.num_embeddings, self.dims)
        decode_into(layer, self["coded"], info)
        return layer

    def to_lora(
        self, r: int = 8, dropout: float = 0.0, scale: float = 20.0
    ) -> nn.Module:
        """mlx-lm's `LoRAEmbedding` around this layer; see `EntropyCodedLinear`.

        Adapts the tied output projection as well.
        """
        from mlx_lm.tuner.lora import LoRAEmbedding

        return lora_around(LoRAEmbedding, self, r, dropout, scale)

    def _extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.dims}, dtype={self.dtype}, "
            f"bits_per_weight={self.bits_per_weight:.3f}"
        )
