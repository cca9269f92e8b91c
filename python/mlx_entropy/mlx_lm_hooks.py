"""Teach mlx-lm's tools about coded layers, where they look for known classes.

Some functions of mlx-lm pick layers by class and skip all others in silence:
`dequantize_model` would leave coded layers as they are and call the result
dequantized. `install` wraps them. A wrapper does exactly what the function
did for a model without coded layers, so it may stay for good.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .checksums import seal
from .model_format import (
    CHECKSUM_FILE,
    CODED,
    CONFIG_KEY,
    MODEL_FILE,
    OWN_MODEL_FILE,
    Config,
    is_converted,
)
from .nn.coded import EntropyCoded
from .nn.swap import replace_module
from .tensors import dtype_name

_Function = Callable[..., Any]

_PROGRAMS = "quant."

_RESTORE = "`mlx-entropy restore MODEL DST` gives back the model it was made of"


def install() -> None:
    """Wrap mlx-lm's functions, in every module that has imported them.

    Modules imported later find the wrappers. Calling it again costs little.
    """
    for home, name, wrap in _HOOKS:
        path = f"mlx_lm.{home}"
        if home.startswith(_PROGRAMS) and path not in sys.modules:
            continue  # Nobody imports these to call them.
        stock = getattr(import_module(path), name)
        if hasattr(stock, "knows_coded"):
            continue
        wrapper: Any = functools.wraps(stock)(wrap(stock))
        wrapper.knows_coded = True
        for user, content in list(sys.modules.items()):
            if user.split(".")[0] != "mlx_lm":
                continue
            if getattr(content, "__dict__", {}).get(name) is stock:
                setattr(content, name, wrapper)


def decode_layers(model: nn.Module) -> nn.Module:
    """Swap coded layers for the stock ones that `decode` gives, in place."""
    decoded: dict[int, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, EntropyCoded):
            if id(module) not in decoded:
                layer = module.decode()
                decoded[id(module)] = _cast(model, path, layer)
            replace_module(model, path, decoded[id(module)])
    return model


def note_cast(model: nn.Module, parameters: dict[str, Any]) -> None:
    """Remember the type that mlx-lm casts a whole model to.

    `mlx_lm.convert` (--dtype, or the config's `torch_dtype`) updates the model
    with all of its parameters, floats in another type. Coded layers have none
    to cast: they get the type when they are decoded.
    """
    before: Any = dict(tree_flatten(model.parameters()))
    after: Any = dict(tree_flatten(parameters))
    coded = [name for name in before if name.endswith(f".{CODED}")]
    if not coded or any(after.get(name) is not before[name] for name in coded):
        return  # Somebody loads or trains weights.
    types = {
        array.dtype
        for name, array in after.items()
        if mx.issubdtype(array.dtype, mx.floating)
        and name in before
        and array.dtype != before[name].dtype
    }
    if len(types) == 1:
        model._cast_to = dtype_name(types.pop())


def _cast(model: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """A decoded layer in the type that the model was cast to."""
    dtype = getattr(model, "_cast_to", None)
    if dtype is None:
        return layer
    may_cast = getattr(model, "cast_predicate", lambda _: True)
    layer.update(
        {
            name: array.astype(getattr(mx, dtype))
            for name, array in layer.parameters().items()
            if mx.issubdtype(array.dtype, mx.floating)
            and may_cast(f"{path}.{name}")
        }
    )
    return layer


def _refuse_cast(model: nn.Module) -> None:
    dtype = getattr(model, "_cast_to", None)
    for module in model.modules():
        if isinstance(module, EntropyCoded) and dtype is not None:
            own = dtype_name(module.dtype)
            if own != dtype:
                raise ValueError(
                    f"entropy-coded layers are {own} and cannot be cast to "
                    f"{dtype}: dequantize them (-d), or {_RESTORE}"
                )


def _has_coded(model: nn.Module) -> bool:
    return any(isinstance(module, EntropyCoded) for module in model.modules())


def _dequantize_model(stock: _Function) -> _Function:
    def dequantize_model(model: nn.Module) -> nn.Module:
        dequantized: nn.Module = stock(decode_layers(model))
        return dequantized

    return dequantize_model


def _refusing(stock: _Function) -> _Function:
    def quantize(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _has_coded(model):
            raise ValueError(
                "[quantize] the model's layers are entropy-coded, which "
                f"mlx-lm cannot quantize; {_RESTORE}"
            )
        return stock(model, *args, **kwargs)

    return quantize


def _get_total_parameters(stock: _Function) -> _Function:
    def get_total_parameters(model: nn.Module) -> int:
        leaves: Any = tree_flatten(
            model.leaf_modules(), is_leaf=nn.Module.is_module
        )
        total: int = stock(model)
        for _, module in leaves:
            if isinstance(module, EntropyCoded):
                total += module.weight.size - module.coded_bytes
        return total

    return get_total_parameters


def _linear_to_lora_layers(stock: _Function) -> _Function:
    def linear_to_lora_layers(*args: Any, **kwargs: Any) -> None:
        try:
            stock(*args, **kwargs)
        except ValueError as error:
            # Of all that mlx-lm says here, only the class names the layer.
            if "EntropyCoded" not in str(error):
                raise
            raise ValueError(
                "DoRA does not work on entropy-coded layers, which keep no "
                f"weights to normalize: use LoRA, or train what was coded "
                f"({_RESTORE})"
            ) from None

    return linear_to_lora_layers


def _save(stock: _Function) -> _Function:
    def save(
        dst_path: str | Path,
        src_path_or_repo: str | Path,
        model: nn.Module,
        tokenizer: Any,
        config: Config,
        **kwargs: Any,
    ) -> None:
        if is_converted(dst_path) and _same(dst_path, src_path_or_repo):
            # mlx-lm would fail half way, when it copies Python files.
            raise ValueError(
                f"{dst_path} cannot be saved over itself; name another folder"
            )
        _refuse_cast(model)
        was_coded, is_coded = CONFIG_KEY in config, _has_coded(model)
        if is_coded and not was_coded:
            raise ValueError(
                "layers that entropy_quantize has coded cannot be saved by "
                "mlx-lm: save the model before, and mlx-entropy convert it"
            )
        if was_coded and not is_coded:
            config = _without_mark(config)
        stock(dst_path, src_path_or_repo, model, tokenizer, config, **kwargs)
        if is_coded and was_coded:
            # Over an earlier model there are checksums of that one.
            seal(dst_path)
        elif was_coded:
            # mlx-lm copies all Python files of the source.
            (Path(dst_path) / MODEL_FILE).unlink(missing_ok=True)
            (Path(dst_path) / CHECKSUM_FILE).unlink(missing_ok=True)

    return save


def _same(one: str | Path, other: str | Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _without_mark(config: Config) -> Config:
    own = config[CONFIG_KEY].get(OWN_MODEL_FILE)
    config = {k: v for k, v in config.items() if k != CONFIG_KEY}
    if config.get("model_file") == MODEL_FILE:
        del config["model_file"]
    if own is not None:
        config["model_file"] = own
    return config


def _convert_to_gguf(stock: _Function) -> _Function:
    def convert_to_gguf(
        model_path: str | Path, weights: dict[str, Any], *args: Any
    ) -> None:
        if any(name.endswith(f".{CODED}") for name in weights):
            raise ValueError(
                "entropy-coded weights cannot be exported to GGUF: "
                "add --dequantize"
            )
        stock(model_path, weights, *args)

    return convert_to_gguf


_HOOKS: tuple[tuple[str, str, Callable[[_Function], _Function]], ...] = (
    ("utils", "dequantize_model", _dequantize_model),
    ("utils", "quantize_model", _refusing),
    ("utils", "get_total_parameters", _get_total_parameters),
    ("utils", "save", _save),
    ("tuner.utils", "linear_to_lora_layers", _linear_to_lora_layers),
    ("gguf", "convert_to_gguf", _convert_to_gguf),
    ("quant.awq", "awq_quantize", _refusing),
    ("quant.dynamic_quant", "estimate_sensitivities", _refusing),
    ("quant.gptq", "gptq_quantize", _refusing),
)
