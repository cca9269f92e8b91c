"""One module of a source -> the tensors that a converted model stores."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from . import _ext
from .model_format import CODED, full_name
from .nn.layers import (
    NOT_SMALLER,
    encode,
    kind_named,
    matrix_of,
    why_no_layer,
    why_raw,
)
from .sources.base import Module
from .tensors import bits_per_weight, unpacked_shape


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
    coded; `reason` is why one of a kind that can be coded was not. `rows` of
    a coded module start with that of its weight.
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


def code_module(
    module: Module,
) -> tuple[dict[str, mx.array], ModuleRecord]:
    """Tensors to store under the module's path, and the record of it.

    A module that cannot be coded, or would not get smaller, keeps its
    tensors and names.
    """
    kind = kind_named(module.kind)
    reason = why_raw(kind, module.tensors, module.quantization)
    reason = reason or module.obstacle
    if reason is not None:
        return module.tensors, _raw(module, reason)
    assert kind is not None  # Or there was a reason.
    try:
        coded = encode(kind, module.tensors, module.quantization)
    except ValueError as error:
        return module.tensors, _raw(module, str(error))
    replaced = matrix_of(module.tensors, module.quantization)
    if coded.nbytes >= _nbytes(replaced):
        return module.tensors, _raw(module, NOT_SMALLER)
    return _coded(module, coded, replaced)


def _nbytes(tensors: dict[str, mx.array]) -> int:
    return sum(array.nbytes for array in tensors.values())


def _coded(
    module: Module, coded: mx.array, replaced: dict[str, mx.array]
) -> tuple[dict[str, mx.array], ModuleRecord]:
    codec = _ext.describe(coded).codec
    weight = _weight_row(module, replaced, coded.nbytes, codec, None)
    rest = _without(module, replaced)
    rows = (weight, *_copied_rows(module, rest))
    record = ModuleRecord(module.path, module.kind, True, None, None, rows)
    return {CODED: coded, **rest}, record


def _raw(module: Module, reason: str) -> ModuleRecord:
    matrix = matrix_of(module.tensors, module.quantization)
    rows = _copied_rows(module, _without(module, matrix))
    if matrix:
        nbytes = _nbytes(matrix)
        rows.insert(0, _weight_row(module, matrix, nbytes, "raw", reason))
    notable = module.kind != "other" or module.quantization is not None
    return ModuleRecord(
        module.path,
        module.kind,
        False,
        reason if notable else None,
        module.quantization,
        tuple(rows),
    )


def _without(
    module: Module, tensors: dict[str, mx.array]
) -> dict[str, mx.array]:
    return {n: a for n, a in module.tensors.items() if n not in tensors}


def _weight_row(
    module: Module,
    matrix: dict[str, mx.array],
    nbytes: int,
    codec: str,
    reason: str | None,
) -> ConvertedTensor:
    shape = tuple(matrix["weight"].shape)
    if module.quantization is not None:
        shape = unpacked_shape(shape, module.quantization["bits"])
    name = full_name(module.path, "weight")
    return _row(name, shape, _nbytes(matrix), nbytes, codec, reason)


def _copied_rows(
    module: Module, tensors: dict[str, mx.array]
) -> list[ConvertedTensor]:
    return [
        _row(
            full_name(module.path, name),
            tuple(array.shape),
            array.nbytes,
            array.nbytes,
            "raw",
            why_no_layer(array.ndim, module.kind),
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
    weights = math.prod(shape)
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
