"""MLX layers that keep their weights entropy-coded."""

from ..mlx_lm_files import import_mlx_lm

# Before any module that does it in its own way.
import_mlx_lm()

from .coded import EntropyCoded  # noqa: E402
from .embedding import EntropyCodedEmbedding  # noqa: E402
from .fusing import fuse, unfuse  # noqa: E402
from .linear import EntropyCodedLinear  # noqa: E402
from .swap import EntropyReport, entropy_quantize  # noqa: E402
from .switch import EntropyCodedSwitchLinear  # noqa: E402

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
