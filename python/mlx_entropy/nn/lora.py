"""mlx-lm's LoRA layers around coded ones, and what they become when fused."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

if TYPE_CHECKING:
    from .coded import EntropyCoded


def lora_around(
    kind: type[nn.Module],
    layer: EntropyCoded,
    r: int,
    dropout: float,
    scale: float,
) -> nn.Module:
    """mlx-lm's LoRA layer `kind` around a coded layer, which stays as it is.

    It asks the layer for no more than its shape and a call.
    """
    from_base: Any = getattr(kind, "from_base")  # noqa: B009
    lora: nn.Module = from_base(layer, r, dropout, scale)
    lora.__class__ = _fusing_class(kind)
    return lora


@functools.cache
def _fusing_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_FusesCoded, kind), {})


class _FusesCoded:
    """`fuse` as mlx-lm does it around the stock layer of the same weights.

    mlx-lm quantizes a fused layer again if its base was quantized. Around a
    coded layer it sees no quantization and would leave floats.
    """

    def fuse(self, dequantize: bool = False) -> nn.Module:
        layer: Any = self
        name = "embedding" if "embedding" in layer else "linear"
        base: EntropyCoded = layer[name]
        layer[name] = base.decode()
        try:
            fused: nn.Module = super().fuse(dequantize)  # type: ignore[misc]
        finally:
            layer[name] = base
        return fused if dequantize else type(base).of_stock(fused)
