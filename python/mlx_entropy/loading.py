"""Load converted models through mlx-lm, with or without its cooperation.

mlx-lm builds a model from a class and lets that class's ``sanitize`` edit the
checkpoint before strict loading. `model_classes` makes a subclass of the stock
class whose ``sanitize`` also swaps in a coded layer for every ``<path>.coded``
tensor. The subclass gets to mlx-lm in one of two ways: `register` wraps
``mlx_lm.utils.load_model``, or the model directory carries
`model_format.MODEL_FILE_SOURCE`, which mlx-lm runs when told to trust remote
code.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import _ext, mlx_lm_hooks
from .checksums import check, checks_on_loading
from .damage import explanation
from .mlx_lm_files import import_mlx_lm, readable
from .model_format import (
    CODECS,
    CODED,
    CONFIG_KEY,
    OWN_MODEL_FILE,
    Config,
    check_format,
    marked_config,
)
from .nn.fusing import fuse
from .nn.layers import kind_of, quantization_of
from .nn.swap import module_at, replace_module
from .remote_code import own_classes

Classes = tuple[type[nn.Module], type]

_SUFFIX = f".{CODED}"
_lock = threading.Lock()
_fused = ContextVar("fused", default=True)
_registered = False
_loading = 0
_wrapper: Callable[..., Any] | None = None
_stock: Any = None


_CODEC_VARIABLE = "MLX_ENTROPY_CODEC"
_codec: ContextVar[str | None] = ContextVar("codec", default=None)
_checksums = ContextVar("checksums", default=True)
_structure_only = ContextVar("structure_only", default=False)


def load(
    path: str | Path,
    *,
    codec: str | None = None,
    fused: bool = True,
    checksums: bool = True,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """`mlx_lm.load` that also understands converted models.

    LoRA adapters work as with other models, on linear layers, embeddings and
    experts. DoRA and tensor parallelism (`model.shard`) are refused.

    Args:
        path (str): Directory or Hugging Face repository, converted or stock.
        codec (str): What coded matrices become in memory, bit for bit the same
            weights: "rans" (as small as the files), "tree" or "flat" (faster to
            decode), or "auto", the fastest for each matrix on this machine.
            None: the environment variable MLX_ENTROPY_CODEC, else "auto".
        fused (bool): Whether a converted llama model runs its decoder layers
            as one operation where it can. Like ``MLX_ENTROPY_FUSED=0`` in the
            environment, False leaves every operation to mlx-lm.
        checksums (bool): Whether a converted model is refused when a byte of
            it is not as it was written. Like ``MLX_ENTROPY_CHECKSUMS=0`` in
            the environment, False only checks coded tensors.
        trust_remote_code (bool): Whether Python code that the model or its
            tokenizer comes with may run.
        kwargs: Those of `mlx_lm.load`.

    Returns:
        Model and tokenizer, and the config with ``return_config=True``.

    Raises:
        ValueError: A coded tensor is damaged or does not fit its layer (the
            message names it; no kernel has run), a file or another tensor is
            not as it was written, parameters are missing or unknown, or the
            format is newer than this package.
    """
    import_mlx_lm()
    import mlx_lm.utils

    if codec is not None:
        _check_codec(codec)
    # If it is not said, transformers asks on the terminal.
    kwargs["tokenizer_config"] = {
        "trust_remote_code": trust_remote_code,
        **(kwargs.get("tokenizer_config") or {}),
    }
    codec_token = _codec.set(codec)
    fused_token = _fused.set(fused)
    checksums_token = _checksums.set(checksums)
    plain = directory = Path(path)
    try:
        with _wrapped(), readable(directory) as plain:
            return mlx_lm.utils.load(
                str(path) if plain is directory else str(plain),
                trust_remote_code=trust_remote_code,
                **kwargs,
            )
    except Exception as error:
        reason = explanation(error, path, kwargs.get("adapter_path"))
        if plain is not directory:
            reason = (reason or str(error)).replace(str(plain), str(path))
        if reason is None:
            raise
        raise ValueError(reason) from error
    finally:
        _checksums.reset(checksums_token)
        _fused.reset(fused_token)
        _codec.reset(codec_token)


def memory_codec() -> str:
    """The codec that matrices loaded now get; ValueError if it is unknown."""
    codec = _codec.get() or os.environ.get(_CODEC_VARIABLE) or "auto"
    _check_codec(codec)
    return codec


def _check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(
            f"codec must be one of {', '.join(CODECS)}, got {codec!r}"
        )


def check_structure(directory: Path) -> None:
    """ValueError unless mlx-lm builds the model and every parameter fits.

    For a model that has just been written, so its bytes are not checked. No
    more than one coded matrix is in memory at a time.
    """
    import_mlx_lm()
    import mlx_lm.utils

    structure_token = _structure_only.set(True)
    try:
        with _wrapped(), readable(directory) as path:
            # What its source needed, its source was trusted with.
            mlx_lm.utils.load_model(path, lazy=True, trust_remote_code=True)
    finally:
        _structure_only.reset(structure_token)


def register() -> None:
    """Make every entry point of mlx-lm load converted models.

    `mlx_lm.load`, `mlx_lm.generate`, `mlx_lm.server` and the others then load
    them, also as draft models, without running code from the model directory
    and without a trust flag; other models load as before. Calling it again
    changes nothing. The Python file of a converted model calls it, when
    mlx-lm is told to trust that.
    """
    global _registered
    with _lock:
        _registered = True
        _install()


def unregister() -> None:
    """Undo `register`; changes nothing if it was not called."""
    global _registered
    with _lock:
        was_registered, _registered = _registered, False
        if was_registered and not _loading:
            _uninstall()


def model_classes_of(directory: str | Path) -> Classes:
    """`model_classes` of a converted directory, whose checksums are checked.

    Raises:
        ValueError: As `model_classes`; or a file is not as it was written,
            which the message names.
    """
    # Whoever builds the model sees to it that no parameter is missing.
    config = _checked_config(Path(directory), partial=True)
    if config is None:
        raise ValueError(f"{directory} is not entropy-coded")
    check_format(config)
    # Whoever runs the file that calls this has trusted the directory.
    base = own_classes(Path(directory), config, trusted=True)
    return model_classes(config, base)


def _checked_config(directory: Path, partial: bool) -> Config | None:
    """config.json of a converted model of which no byte has changed."""
    config = marked_config(directory)
    wanted = _checksums.get() and checks_on_loading()
    if config is not None and wanted and not _structure_only.get():
        check(directory, partial)
    return config


def model_classes(
    config: Config, base: Callable[..., Classes] | None = None
) -> Classes:
    """Model and ModelArgs of a converted model, for mlx-lm's `load_model`.

    The model class is the stock one, except that `sanitize` swaps in a coded
    layer for each ``<path>.coded`` tensor after validating it.

    Args:
        config (dict): The model's config.json.
        base (Callable): What gives the stock classes; None for mlx-lm's own.

    Raises:
        ValueError: Unknown format version or model type.
    """
    check_format(config)
    if base is None:
        if OWN_MODEL_FILE in config[CONFIG_KEY]:
            raise ValueError(
                "the model is built by Python code of its own, which lies in "
                "its directory: use model_classes_of(directory)"
            )
        from mlx_lm.utils import _get_classes

        base = _get_classes
    mlx_lm_hooks.install()
    model_class, args_class = base(config=config)
    return _coded_class(model_class), args_class


@functools.cache
def _coded_class(stock: type[nn.Module]) -> type[nn.Module]:
    if getattr(stock, "swaps_in_coded", False):
        return stock

    class Model(stock):  # type: ignore[misc, valid-type]
        swaps_in_coded = True

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            sanitize = getattr(super(), "sanitize", lambda weights: weights)
            weights = _swap_in_coded(self, sanitize, weights)
            if _fused.get() and not _structure_only.get():
                fuse(self)
            return weights

        def update(
            self, parameters: dict[str, Any], strict: bool = True
        ) -> nn.Module:
            mlx_lm_hooks.note_cast(self, parameters)
            return super().update(parameters, strict)

        if hasattr(stock, "shard"):

            def shard(self, group: mx.distributed.Group | None = None) -> None:
                raise ValueError(
                    "[shard] a model with entropy-coded layers cannot be split "
                    "by tensor parallelism; load the model it was made from"
                )

    # mlx-lm looks up a model's processor and tokenizer by its class's module.
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(Model, name, getattr(stock, name))
    return Model


def _swap_in_coded(
    model: nn.Module,
    sanitize: Callable[[dict[str, mx.array]], dict[str, mx.array]],
    weights: dict[str, mx.array],
) -> dict[str, mx.array]:
    """Sanitize the weights and give the model its coded layers.

    The stock `sanitize` must see a tensor ``<path>.weight`` for every coded
    one: some models tie their head when ``lm_head.weight`` is missing. It
    sees an array that is never evaluated, and that is recognized afterwards;
    should it ever leak into another weight, NaN is the value nobody misses.

    The caller's dict loses the coded tensors, or it would keep in memory what
    they are before they are transcoded.
    """
    stand_ins: dict[int, tuple[mx.array, str, _ext.CodedInfo]] = {}
    coded: dict[str, mx.array] = {}
    # One matrix at a time, so that no more than one has two forms in memory.
    codec = memory_codec()
    for name in [name for name in weights if name.endswith(_SUFFIX)]:
        coded[name] = weights.pop(name)
        info = _validated(name, coded[name])
        if _structure_only.get():
            # Never evaluated; what was read is let go.
            coded[name] = mx.zeros((info.nbytes,), mx.uint8)
        else:
            coded[name] = _ext.transcode(coded[name], codec)
        path = name.removesuffix(_SUFFIX)
        stand_in = mx.full(_weight_shape(model, path, info), mx.nan, info.dtype)
        stand_ins[id(stand_in)] = stand_in, name, info
        weight = f"{path}.weight"
        if weight in weights:
            raise ValueError(f"the model has both {weight} and {name}")
        weights[weight] = stand_in

    weights = sanitize(weights)
    lost = set(coded)
    for weight in [w for w, array in weights.items() if id(array) in stand_ins]:
        _, name, info = stand_ins[id(weights.pop(weight))]
        path = weight.removesuffix(".weight")
        _swap(model, path, name, coded[name], info)
        weights[path + _SUFFIX] = coded[name]
        lost.discard(name)
    if lost:
        raise ValueError(
            f"{type(model).__module__} drops or changes these weights when it "
            f"loads them, so they cannot be coded: {', '.join(sorted(lost))}"
        )
    return weights


def _weight_shape(
    model: nn.Module, path: str, info: _ext.CodedInfo
) -> tuple[int, ...]:
    """Shape of the stock weight: experts have an axis of their own."""
    try:
        stock = module_at(model, path)
    except LookupError:  # `sanitize` may rename it.
        return info.rows, info.cols
    if kind_of(stock) is None or stock.weight.size != info.rows * info.cols:
        return info.rows, info.cols
    shape: tuple[int, ...] = stock.weight.shape
    return shape


def _validated(name: str, array: mx.array) -> _ext.CodedInfo:
    """Header of a coded tensor of which every byte has been checked."""
    if array.dtype != mx.uint8 or array.ndim != 1:
        raise ValueError(
            f"{name}: expected a uint8 vector, "
            f"got {array.dtype} of shape {array.shape}"
        )
    look = _ext.describe if _structure_only.get() else _ext.validate
    try:
        info = look(array)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if info.scheme not in ("affine", "float"):
        raise ValueError(f"{name}: holds {info.scheme}, not weights")
    return info


def _swap(
    model: nn.Module,
    path: str,
    name: str,
    coded: mx.array,
    info: _ext.CodedInfo,
) -> None:
    """Put a coded layer in the place of the stock one at `path`."""
    try:
        stock = module_at(model, path)
    except LookupError as error:
        raise ValueError(f"{name}: {error}") from None
    kind = kind_of(stock)
    if kind is None or quantization_of(stock) is not None:
        raise ValueError(
            f"{name}: the model has a {type(stock).__name__} there, "
            "which cannot be coded"
        )
    layer = kind.placeholder(stock, coded.size, info.dtype)
    if (info.rows, info.cols) != layer.shape:
        raise ValueError(
            f"{name}: expected a matrix of shape {layer.shape}, "
            f"got {(info.rows, info.cols)}"
        )
    replace_module(model, path, layer)


def _wrap(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`mlx_lm.utils.load_model` that also understands converted models."""

    @functools.wraps(stock)
    def load_model(
        model_path: Path, *args: Any, **kwargs: Any
    ) -> tuple[nn.Module, Config]:
        # Somebody's wrapper around this one may outlive `unregister`.
        if not (_registered or _loading):
            return stock(model_path, *args, **kwargs)
        given = _by_name(*args, **kwargs)
        config = _checked_config(Path(model_path), not given["strict"])
        if config is None:
            return stock(model_path, *args, **kwargs)
        check_format(config)
        own = given["model_config"] or {}
        given["model_config"] = own | {"model_file": None}
        base = given["get_model_classes"] or own_classes(
            Path(model_path), config, given["trust_remote_code"]
        )
        given["get_model_classes"] = functools.partial(model_classes, base=base)
        model, loaded = stock(model_path, **given)
        # Whoever saves this config wants the file that the model came with.
        loaded["model_file"] = (config | own).get("model_file")
        if loaded["model_file"] is None:
            del loaded["model_file"]
        return model, loaded

    return load_model


def _by_name(
    lazy: bool = False,
    strict: bool = True,
    model_config: Config | None = None,
    get_model_classes: Callable[..., Classes] | None = None,
    trust_remote_code: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """Arguments of `load_model` after the first, in its order."""
    others["lazy"] = lazy
    others["strict"] = strict
    others["model_config"] = model_config
    others["get_model_classes"] = get_model_classes
    others["trust_remote_code"] = trust_remote_code
    return others


@contextmanager
def _wrapped() -> Iterator[None]:
    """`register` for as long as some thread is in here."""
    global _loading
    with _lock:
        _loading += 1
        _install()
    try:
        yield
    finally:
        with _lock:
            _loading -= 1
            if not _loading and not _registered:
                _uninstall()


def _install() -> None:
    global _wrapper, _stock
    import_mlx_lm()
    import mlx_lm.utils

    if mlx_lm.utils.load_model is not _wrapper:
        _stock = mlx_lm.utils.load_model
        _wrapper = _wrap(_stock)
        mlx_lm.utils.load_model = _wrapper


def _uninstall() -> None:
    import mlx_lm.utils

    if mlx_lm.utils.load_model is _wrapper:
        mlx_lm.utils.load_model = _stock
