"""One module of a source -> the tensors that a converted model stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx

from . import _ext
from .sources.base import Module
from .tensors import bits_per_weight, dtype_name, weight_shape

_FLOATS = (mx.float16, mx.bfloat16, mx.float32)


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor of the source.

    `source_bytes` and `coded_bytes` are stored bytes before and after; for
    a quantized weight both include scales and biases. `reason` is why the
    tensor was copied, None if it was coded. `codec` is "raw" for copied ones,
    and for coded ones of which no bit is worth more than its plain form.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    source_bytes: int
    coded_bytes: int
    bits_per_weight: float
    codec: str
    reason: str | None


@dataclass(frozen=True)
class ModuleRecord:
    """A module of the converted model, as the journal keeps it.

    `quantization` is MLX's description of a quantized module that was not
    coded; `reason` is why a linear, embedding or quantized one was not.
    """

    path: str
    kind: str
    coded: bool
    reason: str | None
    quantization: dict[str, Any] | None
    rows: tuple[ConvertedTensor, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> ModuleRecord:
        rows = tuple(
            ConvertedTensor(**{**row, "shape": tuple(row["shape"])})
            for row in record["rows"]
        )
        return ModuleRecord(**{**record, "rows": rows})


def raw_reason(kind: str, array: mx.array) -> str:
    """Why a tensor that is no linear or embedding weight is not coded."""
    if array.ndim < 2:
        return f"{array.ndim}-D tensor"
    if kind == "other":
        return "not a linear or embedding layer"
    return "not a weight"


def code_module(
    module: Module, config: dict[str, Any]
) -> tuple[dict[str, mx.array], ModuleRecord]:
    """Tensors to store under the module's path, and the record of it.

    A module that cannot be coded, or would not get smaller, keeps its
    tensors and names. `config` is the source's.
    """
    module = replace(module, quantization=_quantization(module, config))
    reason = _ineligible(module)
    if reason is None:
        try:
            coded = _encode(module)
        except ValueError as error:
            reason = str(error)
        else:
            replaced = _replaced(module)
            if coded.nbytes < _nbytes(module, replaced):
                return _coded(module, coded, replaced)
            reason = "not smaller coded"
    return module.tensors, _raw_record(module, reason)


def _quantization(
    module: Module, config: dict[str, Any]
) -> dict[str, Any] | None:
    """How the module is quantized, also where the source leaves that open.

    It describes only what can be coded; a quantized layer of another type
    follows the config, as it does in mlx-lm.
    """
    if module.quantization is not None or "scales" not in module.tensors:
        return module.quantization
    default = config.get("quantization") or {}
    stated = default.get(module.path) or default
    if "bits" not in stated or "group_size" not in stated:
        return None
    return {
        "group_size": stated["group_size"],
        "bits": stated["bits"],
        "mode": stated.get("mode", "affine"),
    }


def _ineligible(module: Module) -> str | None:
    """Why the module's weight cannot be entropy-coded, None if it can."""
    weight = module.tensors.get("weight")
    if weight is None:
        return "no weight"
    mode = (module.quantization or {}).get("mode", "affine")
    if mode != "affine":
        return f"mode {mode}"
    if module.kind not in ("linear", "embedding"):
        return raw_reason("other", weight)
    if weight.ndim != 2:
        return f"{weight.ndim}-D tensor"
    if weight.size == 0:
        return "empty tensor"
    if module.quantization is None:
        if weight.dtype not in _FLOATS:
            return f"type {dtype_name(weight.dtype)}"
        return None
    if not {"scales", "biases"} <= module.tensors.keys():
        return "scales or biases missing"
    return None


def _encode(module: Module) -> mx.array:
    tensors, quantization = module.tensors, module.quantization
    if quantization is None:
        return _ext.encode_float(tensors["weight"])
    return _ext.encode_affine(
        tensors["weight"],
        tensors["scales"],
        tensors["biases"],
        int(quantization["group_size"]),
        int(quantization["bits"]),
    )


def _replaced(module: Module) -> frozenset[str]:
    """Names of the tensors that the coded one stands for."""
    if module.quantization is None:
        return frozenset({"weight"})
    return frozenset({"weight", "scales", "biases"})


def _nbytes(module: Module, names: frozenset[str]) -> int:
    return sum(
        array.nbytes for name, array in module.tensors.items() if name in names
    )


def _coded(
    module: Module, coded: mx.array, replaced: frozenset[str]
) -> tuple[dict[str, mx.array], ModuleRecord]:
    rest = {
        name: array
        for name, array in module.tensors.items()
        if name not in replaced
    }
    weight = _row(
        f"{module.path}.weight",
        weight_shape(module.tensors["weight"], module.quantization),
        _nbytes(module, replaced),
        coded.nbytes,
        _ext.describe(coded).codec,
        None,
    )
    rows = (weight, *_copied_rows(module, rest))
    record = ModuleRecord(module.path, module.kind, True, None, None, rows)
    return {"coded": coded, **rest}, record


def _raw_record(module: Module, reason: str) -> ModuleRecord:
    rest, rows = dict(module.tensors), []
    if "weight" in rest:
        names = frozenset({"weight"})
        if module.quantization is not None:
            names = frozenset({"weight", "scales", "biases"})
        nbytes = _nbytes(module, names)
        rows.append(
            _row(
                f"{module.path}.weight",
                weight_shape(rest["weight"], module.quantization),
                nbytes,
                nbytes,
                "raw",
                reason,
            )
        )
        rest = {n: a for n, a in rest.items() if n not in names}
    rows += _copied_rows(module, rest)
    notable = module.kind != "other" or module.quantization is not None
    return ModuleRecord(
        module.path,
        module.kind,
        False,
        reason if notable else None,
        module.quantization,
        tuple(rows),
    )


def _copied_rows(
    module: Module, tensors: dict[str, mx.array]
) -> list[ConvertedTensor]:
    return [
        _row(
            f"{module.path}.{name}" if module.path else name,
            tuple(array.shape),
            array.nbytes,
            array.nbytes,
            "raw",
            raw_reason(module.kind, array),
        )
        for name, array in tensors.items()
    ]


def _row(
    name: str,
    shape: tuple[int, ...],
    source_bytes: int,
    coded_bytes: int,
    codec: str,
    reason: str | None,
) -> ConvertedTensor:
    weights = 1
    for extent in shape:
        weights *= extent
    return ConvertedTensor(
        name,
        shape,
        weights,
        source_bytes,
        coded_bytes,
        bits_per_weight(coded_bytes, weights),
        codec,
        reason,
    )
