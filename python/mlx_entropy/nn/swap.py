"""Swap a model's stock layers for coded ones, and find layers by path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .coded import EntropyCoded, check_quantization
from .fusing import fuse
from .layers import (
    NOT_SMALLER,
    kind_of,
    matrix_of,
    quantization_of,
    why_raw,
)

Outcome = tuple[str, int, int] | tuple[str, str]
Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]


class EntropyReport(dict[str, Outcome]):
    """What became of each layer: module path -> outcome.

    An outcome is ``("coded", bytes before, bytes after)``, counting the
    weight with its scales and biases, or ``("raw", reason)``.
    """

    @property
    def source_bytes(self) -> int:
        """Bytes that the coded layers took before."""
        return sum(o[1] for o in self.values() if len(o) == 3)

    @property
    def coded_bytes(self) -> int:
        """Bytes that the coded layers take now."""
        return sum(o[2] for o in self.values() if len(o) == 3)

    @property
    def raw(self) -> dict[str, str]:
        """Path -> reason of the layers that stayed as they were."""
        return {path: o[1] for path, o in self.items() if len(o) == 2}

    def __str__(self) -> str:
        raw = self.raw
        lines = [
            f"{len(self) - len(raw)} layers coded: "
            f"{self.source_bytes} -> {self.coded_bytes} bytes"
        ]
        lines += [f"{path} stays raw: {reason}" for path, reason in raw.items()]
        return "\n".join(lines)


def entropy_quantize(
    model: nn.Module,
    class_predicate: Predicate | None = None,
    *,
    bits: int | None = None,
    group_size: int = 64,
    fused: bool = True,
) -> EntropyReport:
    """Swap linear, embedding and expert layers for coded ones, in place.

    `nn.QuantizedLinear`, `nn.QuantizedEmbedding` and mlx-lm's
    `QuantizedSwitchLinear` are coded as they are. `nn.Linear`,
    `nn.Embedding` and `SwitchLinear` are coded without loss, or quantized
    first when `bits` is given. A layer that would not shrink stays as it is.
    Layers are swapped one by one, so a lazily loaded model is never whole in
    memory in its source form.

    Args:
        model (nn.Module): The model; its leaf modules are considered.
        class_predicate (Callable): Gets path and module, returns whether to
            code it, or a dict of ``bits`` and ``group_size`` for this float
            layer. None: every layer that can be coded.
        bits (int): Bits for float layers: 2, 3, 4, 5, 6 or 8; None for
            lossless.
        group_size (int): Group size for float layers with ``bits``.
        fused (bool): Whether to `fuse` the model, if it is one of mlx-lm's
            that can be.

    Returns:
        EntropyReport: The outcome for every layer with a weight matrix.

    Raises:
        ValueError: Unsupported ``bits`` or ``group_size``, or a predicate
            that returns something else.
    """
    options = _checked({"bits": bits, "group_size": group_size})
    report = EntropyReport()
    layers = _layers(model)
    # Dropping each source layer before the next bounds the memory.
    for key in list(layers):
        module, paths = layers.pop(key)
        chosen = _choose(class_predicate, paths[0], module, options)
        outcome, replacement = _code(module, chosen)
        for path in paths:
            report[path] = outcome
            if replacement is not None:
                replace_module(model, path, replacement)
    if fused:
        fuse(model)
    if "mlx_lm.utils" in sys.modules:
        # Not above: it imports this.
        from ..mlx_lm_hooks import install

        install()
    return report


def module_at(model: nn.Module, path: str) -> Any:
    """The module at a dotted path; LookupError without one."""
    node: Any = model
    for key in path.split("."):
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise LookupError(f"the model has no module {path!r}") from None
    if not isinstance(node, nn.Module):
        raise LookupError(f"the model has no module {path!r}")
    return node


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at a dotted path where `module_at` finds one."""
    *parents, name = path.split(".")
    node: Any = model
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if isinstance(node, list):
        node[int(name)] = module
    else:
        node[name] = module


def _layers(model: nn.Module) -> dict[int, tuple[nn.Module, list[str]]]:
    """Leaf modules with a weight matrix, each with every path it has."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    leaves: Any = tree_flatten(
        model.leaf_modules(), is_leaf=nn.Module.is_module
    )
    for path, module in leaves:
        if isinstance(module, EntropyCoded) or _has_matrix(module):
            found.setdefault(id(module), (module, []))[1].append(path)
    return found


def _has_matrix(module: nn.Module) -> bool:
    weight = module.get("weight")
    return isinstance(weight, mx.array) and weight.ndim >= 2


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    unknown = options.keys() - {"bits", "group_size"}
    if unknown:
        raise ValueError(
            "[entropy_quantize] class_predicate may set bits and group_size, "
            f"got {sorted(unknown)}"
        )
    check_quantization(options["group_size"], options["bits"] or 4)
    return options


def _choose(
    predicate: Predicate | None,
    path: str,
    module: nn.Module,
    options: dict[str, Any],
) -> dict[str, Any] | None:
    """Options for this layer, or None to leave it."""
    choice = True if predicate is None else predicate(path, module)
    if isinstance(choice, dict):
        return _checked(options | choice)
    if not isinstance(choice, bool):
        raise ValueError(
            "[entropy_quantize] class_predicate must return a bool or a dict, "
            f"got {type(choice).__name__}"
        )
    return options if choice else None


def _code(
    module: nn.Module, options: dict[str, Any] | None
) -> tuple[Outcome, EntropyCoded | None]:
    if isinstance(module, EntropyCoded):
        return ("coded", module.source_bytes, module.coded_bytes), None
    if options is None:
        return ("raw", "excluded by class_predicate"), None
    kind, quantization = kind_of(module), quantization_of(module)
    reason = why_raw(kind, module, quantization)
    if reason is not None:
        return ("raw", reason), None
    assert kind is not None  # Or there was a reason.
    try:
        if quantization is None:
            layer = kind.from_float(module, **options)
        else:
            layer = kind.from_quantized(module)
    except ValueError as error:
        return ("raw", str(error)), None
    matrix = matrix_of(module, quantization)
    before = sum(array.nbytes for array in matrix.values())
    after = layer.coded_bytes
    if after >= before:
        return ("raw", NOT_SMALLER), None
    return ("coded", before, after), layer
