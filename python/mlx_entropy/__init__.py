"""Entropy-coded weights for MLX: lossless, and multiplied as they are."""

# mlx.core registers the array type that the native module exchanges, so it
# has to be imported first.
import mlx.core as mx

_MLX = "0.32.4"
_found = mx.__version__  # type: ignore[attr-defined]
if _found != _MLX:
    raise ImportError(
        f"this mlx-entropy is built for mlx {_MLX}, found {_found}: "
        f'pip install "mlx[cpu]=={_MLX}"'
    )

# Some functions are named like their module (`load`, `convert`, `verify`,
# `inspect`). Python binds a submodule to its package when it is first
# imported; importing all of them here lets the functions keep the names.
from ._ext import (  # noqa: E402
    RANSTable,
    entropy_coded_embedding,
    entropy_coded_matmul,
    entropy_decode,
    entropy_dequantize,
    entropy_encode,
    validate,
)
from ._version import version  # noqa: E402
from .convert import convert  # noqa: E402
from .inspect import inspect  # noqa: E402
from .load import load, register, unregister  # noqa: E402
from .nn import (  # noqa: E402
    EntropyCodedEmbedding,
    EntropyCodedLinear,
    entropy_quantize,
)
from .verify import verify  # noqa: E402

__version__ = version()

__all__ = [
    "EntropyCodedEmbedding",
    "EntropyCodedLinear",
    "RANSTable",
    "__version__",
    "convert",
    "entropy_coded_embedding",
    "entropy_coded_matmul",
    "entropy_decode",
    "entropy_dequantize",
    "entropy_encode",
    "entropy_quantize",
    "inspect",
    "load",
    "register",
    "unregister",
    "validate",
    "verify",
]
