"""Measured sizes of a converted model, tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _ext
from .checksums import check
from .model_format import CODED, full_name
from .nn.layers import why_no_layer
from .progress import Progress, ProgressCallback
from .sources.base import LeftOut
from .sources.safetensors_file import StoredTensor
from .stored import StoredModel
from .tensors import (
    bits_per_weight,
    dtype_name,
    dtype_named,
    unpacked_shape,
)

# Planes whose values are the weights themselves.
_WEIGHT_PLANES = ("codes", "floats")
_FORMS = {
    "rans": "rANS",
    "tree": "trees",
    "flat": "plain bits, not entropy-coded",
}
_PACKED = ("weight", "scales", "biases")


@dataclass(frozen=True)
class InspectedTensor:
    """A stored weight, its scales and biases included, or a plain tensor.

    `shape` counts weights, also where they are packed. `entropy_bits` is the
    zero-order entropy of the codes (or of the values, for plain floats) in
    bits a weight, None where the tensor is not coded; then `reason` says why.
    `scheme` is "affine", MLX's name of another mode, or "float" for a tensor
    that is not quantized. `dtype` is the type of the values, or of the scales.
    `kind` is "linear", "embedding", "switch" (experts) or "other".
    `memory_codec` is the form that loading with codec "auto" gives a coded
    matrix on this machine, and `memory_bits_per_weight` what it then takes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    coded_bytes: int
    bits_per_weight: float
    entropy_bits: float | None
    codec: str
    scheme: str
    dtype: str
    group_size: int
    bits: int
    reason: str | None
    memory_codec: str | None = None
    memory_bits_per_weight: float | None = None

    @property
    def memory_nbytes(self) -> int:
        """Bytes of a coded matrix in that form; 0 if it is not coded."""
        return round((self.memory_bits_per_weight or 0.0) * self.weights / 8)


@dataclass(frozen=True)
class Totals:
    """Sums over tensors; `entropy_bits` averages the coded weights."""

    tensors: int
    weights: int
    coded_bytes: int
    bits_per_weight: float
    entropy_bits: float | None


@dataclass
class MemoryForm:
    """How many matrices have a form in memory, and their bytes in it."""

    matrices: int = 0
    nbytes: int = 0


def memory_line(forms: Mapping[str, MemoryForm]) -> str:
    """For people: what is in memory, which plain bits are not coded in."""
    parts = [
        f"{form.matrices} matrices as {_FORMS[name]} ({form.nbytes / 1e6:.1f} "
        "MB)"
        for name, form in forms.items()
    ]
    return "in memory on this machine: " + (", ".join(parts) or "none coded")


@dataclass(frozen=True)
class ModelReport:
    """What a converted directory holds; `file_bytes` includes headers.

    `left_out` are tensors of the source's files that it does not hold.
    """

    model: str
    format_version: int
    file_bytes: int
    tensors: tuple[InspectedTensor, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def total(self) -> Totals:
        return _totals(self.tensors)

    @property
    def linear(self) -> Totals:
        return _totals(row for row in self.tensors if row.kind == "linear")

    @property
    def embedding(self) -> Totals:
        return _totals(row for row in self.tensors if row.kind == "embedding")

    @property
    def switch(self) -> Totals:
        return _totals(row for row in self.tensors if row.kind == "switch")

    @property
    def memory_forms(self) -> dict[str, MemoryForm]:
        """What loading makes of the coded matrices, by codec in memory."""
        forms: dict[str, MemoryForm] = {}
        for row in self.tensors:
            if row.memory_codec is not None:
                form = forms.setdefault(row.memory_codec, MemoryForm())
                form.matrices += 1
                form.nbytes += row.memory_nbytes
        return forms

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, totals first."""
        total = self.total
        return {
            "model": self.model,
            "format_version": self.format_version,
            "file_bytes": self.file_bytes,
            "weights": total.weights,
            "coded_bytes": total.coded_bytes,
            "bits_per_weight": total.bits_per_weight,
            "entropy_bits": total.entropy_bits,
            "left_out": [vars(tensor) for tensor in self.left_out],
            "memory_forms": {
                name: vars(form) for name, form in self.memory_forms.items()
            },
            "total": vars(total),
            "linear": vars(self.linear),
            "embedding": vars(self.embedding),
            "switch": vars(self.switch),
            "tensors": [vars(row) for row in self.tensors],
        }


def inspect(
    model_dir: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
) -> ModelReport:
    """Measure every tensor of a converted model directory.

    Coded matrices are decoded one at a time to measure their entropy.
    SourceError if the directory is not a converted model or any byte of it is
    not as it was written, ValueError if a coded matrix is damaged.
    """
    model = StoredModel(os.fspath(model_dir))
    check(model.path)
    names = _Names(model)
    modules = list(model.modules())
    total_bytes = sum(tensor.nbytes for tensor in model.tensors.values())
    done_bytes, rows = 0, []
    for index, (path, parameters) in enumerate(modules):
        found = names.rows(path, parameters)
        rows += found
        done_bytes += sum(row.coded_bytes for row in found)
        if progress is not None:
            progress(
                Progress(path, index + 1, len(modules), done_bytes, total_bytes)
            )
    return ModelReport(
        model.path.name or str(model.path),
        model.about["format_version"],
        sum(file.stat().st_size for file in model.files),
        tuple(rows),
        model.left_out,
    )


class _Names:
    """Rows for the tensors of a module, by their names."""

    def __init__(self, model: StoredModel) -> None:
        self._model = model
        self._embeddings = set(model.about.get("embeddings", ()))
        self._experts: dict[str, int] = model.about.get("experts", {})
        self._raw: dict[str, dict[str, str]] = model.about.get("raw", {})

    def rows(self, path: str, parameters: list[str]) -> list[InspectedTensor]:
        rest = list(parameters)
        rows = []
        if CODED in rest:
            rest.remove(CODED)
            rows.append(self._coded(path))
        elif "weight" in rest:
            packed = ["weight"]
            if "scales" in rest and self._model.config.get("quantization"):
                packed = [name for name in _PACKED if name in rest]
            rest = [name for name in rest if name not in packed]
            rows.append(self._raw_weight(path, packed))
        rows += [self._plain(path, name) for name in rest]
        return rows

    def _stored(self, path: str, name: str) -> tuple[str, StoredTensor]:
        full = full_name(path, name)
        return full, self._model.tensors[full]

    def _coded(self, path: str) -> InspectedTensor:
        name, stored = self._stored(path, CODED)
        try:
            coded = self._model.load(name)
            info = _ext.describe(coded)
            entropies = _ext.plane_entropies(coded)
            best = _ext.rank_codecs(coded)[0]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        plane = next(p for p in _WEIGHT_PLANES if p in entropies)
        weights = info.rows * info.cols
        kind = "linear"
        shape: tuple[int, ...] = (info.rows, info.cols)
        if path in self._embeddings:
            kind = "embedding"
        elif experts := self._experts.get(path):
            kind = "switch"
            shape = (experts, info.rows // experts, info.cols)
        return InspectedTensor(
            name=f"{path}.weight",
            kind=kind,
            shape=shape,
            weights=weights,
            coded_bytes=stored.nbytes,
            bits_per_weight=bits_per_weight(stored.nbytes, weights),
            entropy_bits=entropies[plane],
            codec=info.codec,
            scheme=info.scheme,
            dtype=dtype_name(info.dtype),
            group_size=info.group_size,
            bits=info.bits,
            reason=None,
            memory_codec=best.codec,
            memory_bits_per_weight=best.bits_per_weight,
        )

    def _raw_weight(self, path: str, packed: list[str]) -> InspectedTensor:
        stored = [self._stored(path, name)[1] for name in packed]
        shape, layout = stored[0].shape, _plain_layout(stored[0])
        if "scales" in packed:
            quantization = self._quantization(path)
            bits = quantization["bits"]
            shape = unpacked_shape(shape, bits)
            layout = _Layout(
                quantization.get("mode", "affine"),
                _plain_layout(stored[1]).dtype,
                quantization["group_size"],
                bits,
            )
        raw = self._raw.get(path, {})
        return _raw_row(
            f"{path}.weight",
            raw.get("kind", "other"),
            shape,
            sum(tensor.nbytes for tensor in stored),
            layout,
            raw.get("reason", why_no_layer(len(shape))),
        )

    def _quantization(self, path: str) -> dict[str, Any]:
        quantization: dict[str, Any] = self._model.config["quantization"]
        own = quantization.get(path)
        return own if isinstance(own, dict) else quantization

    def _plain(self, path: str, name: str) -> InspectedTensor:
        full, stored = self._stored(path, name)
        return _raw_row(
            full,
            "other",
            stored.shape,
            stored.nbytes,
            _plain_layout(stored),
            why_no_layer(len(stored.shape)),
        )


@dataclass(frozen=True)
class _Layout:
    """How values are stored; the fields of `InspectedTensor`."""

    scheme: str
    dtype: str
    group_size: int
    bits: int


def _plain_layout(stored: StoredTensor) -> _Layout:
    dtype = dtype_named(stored.dtype)
    return _Layout("float", dtype_name(dtype), 0, 8 * dtype.size)


def _raw_row(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    nbytes: int,
    layout: _Layout,
    reason: str,
) -> InspectedTensor:
    weights = math.prod(shape)
    return InspectedTensor(
        name=name,
        kind=kind,
        shape=shape,
        weights=weights,
        coded_bytes=nbytes,
        bits_per_weight=bits_per_weight(nbytes, weights),
        entropy_bits=None,
        codec="raw",
        scheme=layout.scheme,
        dtype=layout.dtype,
        group_size=layout.group_size,
        bits=layout.bits,
        reason=reason,
    )


def _totals(rows: Iterable[InspectedTensor]) -> Totals:
    rows = tuple(rows)
    weights = sum(row.weights for row in rows)
    nbytes = sum(row.coded_bytes for row in rows)
    measured = [row for row in rows if row.entropy_bits is not None]
    entropy = None
    if measured:
        bits = sum((row.entropy_bits or 0.0) * row.weights for row in measured)
        entropy = bits / sum(row.weights for row in measured)
    return Totals(
        len(rows), weights, nbytes, bits_per_weight(nbytes, weights), entropy
    )
