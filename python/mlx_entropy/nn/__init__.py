"""MLX layers that keep their weights entropy-coded."""

from .coded import EntropyCoded
from .embedding import EntropyCodedEmbedding
from .fusing import fuse, unfuse
from .linear import EntropyCodedLinear
from .swap import EntropyReport, entropy_quantize
from .switch import EntropyCodedSwitchLinear

__all__ = [
    "EntropyCoded",
    "EntropyCodedEmbedding",
    "EntropyCodedLinear",
    "EntropyCodedSwitchLinear",
    "EntropyReport",
    "entropy_quantize",
    "fuse",
    "unfuse",
]
