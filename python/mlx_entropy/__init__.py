"""Entropy-coded weights for MLX: lossless, and multiplied as they are.

Names are imported when they are first used. The command thus runs, and can
say what is wrong, where the native module does not load.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

# Not typing's: its import takes longer than all else before `_entry`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._ext import (
        RANSTable,
        entropy_coded_embedding,
        entropy_coded_gather_matmul,
        entropy_coded_matmul,
        entropy_decode,
        entropy_dequantize,
        entropy_encode,
        transcode,
        validate,
    )
    from .checksums import seal
    from .conversion import convert
    from .inspection import inspect
    from .loading import (
        load,
        model_classes,
        model_classes_of,
        register,
        unregister,
    )
    from .nn import (
        EntropyCodedEmbedding,
        EntropyCodedLinear,
        EntropyCodedSwitchLinear,
        entropy_quantize,
        fuse,
        unfuse,
    )
    from .restoration import restore
    from .verification import verify

    __version__: str

__all__ = [
    "EntropyCodedEmbedding",
    "EntropyCodedLinear",
    "EntropyCodedSwitchLinear",
    "RANSTable",
    "__version__",
    "convert",
    "entropy_coded_embedding",
    "entropy_coded_gather_matmul",
    "entropy_coded_matmul",
    "entropy_decode",
    "entropy_dequantize",
    "entropy_encode",
    "entropy_quantize",
    "fuse",
    "inspect",
    "load",
    "model_classes",
    "model_classes_of",
    "register",
    "restore",
    "seal",
    "transcode",
    "unfuse",
    "unregister",
    "validate",
    "verify",
]

# No submodule may be named like an export: Python binds a submodule to its
# package when it is imported, over what is there.
_HOMES = {
    "EntropyCodedEmbedding": "nn",
    "EntropyCodedLinear": "nn",
    "EntropyCodedSwitchLinear": "nn",
    "convert": "conversion",
    "entropy_quantize": "nn",
    "fuse": "nn",
    "inspect": "inspection",
    "load": "loading",
    "model_classes": "loading",
    "model_classes_of": "loading",
    "register": "loading",
    "restore": "restoration",
    "seal": "checksums",
    "unfuse": "nn",
    "unregister": "loading",
    "verify": "verification",
}

_MLX = "0.32.4"


def __getattr__(name: str) -> Any:
    if name == "_ext":  # Also what `from . import _ext` comes to.
        return _native()
    if name == "__version__":
        from ._version import version

        value: Any = version()
    elif name in __all__:
        home = _HOMES.get(name)
        module = import_module(f".{home}", __name__) if home else _native()
        value = getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _native() -> ModuleType:
    """The native module; ImportError says what is wrong and what to do."""
    try:
        # It registers the array type that the native module exchanges.
        import mlx.core as mx
    except ImportError as error:
        raise ImportError(
            f'MLX does not load: {error}; pip install "mlx[cpu]=={_MLX}"'
        ) from error
    found = mx.__version__  # type: ignore[attr-defined]
    if found != _MLX:
        raise ImportError(
            f"this mlx-entropy is built for mlx {_MLX}, found {found}: "
            f'pip install "mlx[cpu]=={_MLX}"'
        )
    try:
        return import_module("._ext", __name__)
    except ImportError as error:
        raise ImportError(
            f"the native module of mlx-entropy does not load: {error}; "
            "pip install --force-reinstall mlx-entropy"
        ) from error
