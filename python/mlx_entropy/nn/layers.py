"""The one table of layers that can be coded: stock type, name, coded class.

Whoever asks what a stock layer is, whether it may be coded and how, asks here:
`entropy_quantize`, conversion, the sources and the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..tensors import FLOATS, dtype_name
from .coded import AffineMatrix, EntropyCoded, encode_weight
from .embedding import EntropyCodedEmbedding
from .linear import EntropyCodedLinear
from .switch import EntropyCodedSwitchLinear

Quantization = dict[str, Any]
_MATRIX = ("weight", "scales", "biases")


@dataclass(frozen=True)
class LayerKind:
    """A row of the table.

    `name` is what sources and converted configs call the kind; `types` are
    the stock layers, float and quantized, by their full names: importing
    mlx-lm's takes long. `axes` are those of the weight. `from_float` and
    `from_quantized` code a stock layer, `placeholder` is one for coded bytes
    that are loaded later.
    """

    name: str
    types: tuple[str, str]
    axes: int
    from_float: Callable[..., EntropyCoded]
    from_quantized: Callable[..., EntropyCoded]
    placeholder: Callable[[nn.Module, int, mx.Dtype], EntropyCoded]


KINDS = (
    LayerKind(
        "linear",
        (
            "mlx.nn.layers.linear.Linear",
            "mlx.nn.layers.quantized.QuantizedLinear",
        ),
        2,
        EntropyCodedLinear.from_linear,
        EntropyCodedLinear.from_quantized,
        EntropyCodedLinear.placeholder,
    ),
    LayerKind(
        "embedding",
        (
            "mlx.nn.layers.embedding.Embedding",
            "mlx.nn.layers.quantized.QuantizedEmbedding",
        ),
        2,
        EntropyCodedEmbedding.from_embedding,
        EntropyCodedEmbedding.from_quantized,
        EntropyCodedEmbedding.placeholder,
    ),
    LayerKind(
        "switch",
        (
            "mlx_lm.models.switch_layers.SwitchLinear",
            "mlx_lm.models.switch_layers.QuantizedSwitchLinear",
        ),
        3,
        EntropyCodedSwitchLinear.from_switch,
        EntropyCodedSwitchLinear.from_quantized,
        EntropyCodedSwitchLinear.placeholder,
    ),
)
_BY_TYPE = {name: kind for kind in KINDS for name in kind.types}
_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a stock layer, None for any other module.

    Subclasses have none: a coded layer would lose what they override.
    """
    cls = type(module)
    kind = _BY_TYPE.get(f"{cls.__module__}.{cls.__qualname__}")
    if kind is None or module.weight.ndim != kind.axes:
        return None
    return kind


def kind_named(name: str) -> LayerKind | None:
    """The kind that sources call `name`; None for "other"."""
    return _BY_NAME.get(name)


def quantization_of(module: nn.Module) -> Quantization | None:
    """MLX's description of any layer that MLX or mlx-lm has quantized.

    Those have a mode; layers of a model's own that merely have `bits` are
    none that a config.json could describe.
    """
    if "scales" not in module or not hasattr(module, "mode"):
        return None
    quantization = {
        "group_size": module.group_size,
        "bits": module.bits,
        "mode": module.mode,
    }
    # One more scale for all of a layer, which nvfp4 may have.
    if module.get("global_scale") is not None:
        quantization["global_scale"] = True
    return quantization


def why_raw(
    kind: LayerKind | None,
    tensors: Mapping[str, mx.array],
    quantization: Quantization | None,
) -> str | None:
    """Why a layer's weight cannot be coded; None if it can.

    `tensors` are the layer's parameters. Whether a coded weight is smaller
    shows when it is coded: `NOT_SMALLER`.
    """
    weight = tensors.get("weight")
    if weight is None:
        return "no weight"
    if kind is None:
        return why_no_layer(weight.ndim)
    if weight.ndim != kind.axes:
        return f"{weight.ndim}-D tensor"
    if weight.size == 0:
        return "empty tensor"
    if quantization is None:
        if weight.dtype not in FLOATS:
            return f"type {dtype_name(weight.dtype)}"
        return None
    if quantization["mode"] != "affine":
        return f"mode {quantization['mode']} is not affine"
    if not {"scales", "biases"} <= tensors.keys():
        return "scales or biases missing"
    return None


NOT_SMALLER = "not smaller coded"


def why_no_layer(ndim: int, kind: str = "other") -> str:
    """Why a tensor that is no layer's weight matrix is not coded."""
    if ndim < 2:
        return f"{ndim}-D tensor"
    if kind == "other":
        return "not a linear, embedding or expert layer"
    return "not a weight"


def matrix_of(
    tensors: Mapping[str, mx.array], quantization: Quantization | None
) -> dict[str, mx.array]:
    """The weight, with the scales and biases that belong to it."""
    if "weight" not in tensors:
        return {}
    names = ("weight",) if quantization is None else _MATRIX
    return {name: array for name, array in tensors.items() if name in names}


def encode(
    kind: LayerKind,
    tensors: Mapping[str, mx.array],
    quantization: Quantization | None,
) -> mx.array:
    """The coded bytes of a weight that `why_raw` has nothing against.

    ValueError for arrays that do not fit together.
    """
    if quantization is None:
        return encode_weight(tensors["weight"], axes=kind.axes)
    matrix = AffineMatrix(
        tensors["weight"],
        tensors["scales"],
        tensors["biases"],
        int(quantization["group_size"]),
        int(quantization["bits"]),
    )
    return matrix.encode(kind.axes)
