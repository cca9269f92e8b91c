"""Prove that a converted model holds every bit of its source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from . import _ext
from .model_format import CODED, full_name
from .progress import Progress, ProgressCallback
from .sources import open_source
from .sources.base import Module, Source
from .stored import StoredModel
from .tensors import as_bits, dtype_name


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is not identical, and in what way."""

    name: str
    problem: str


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of `verify`; `tensors` and `nbytes` count the source's."""

    model: str
    against: str
    tensors: int
    nbytes: int
    mismatches: tuple[Mismatch, ...]

    @property
    def identical(self) -> bool:
        return not self.mismatches

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "model": self.model,
            "against": self.against,
            "identical": self.identical,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "mismatches": [vars(found) for found in self.mismatches],
        }


def verify(
    model_dir: str | os.PathLike[str],
    against: str | os.PathLike[str] | Source,
    *,
    progress: ProgressCallback | None = None,
) -> VerifyReport:
    """Compare a converted model with its source, bit for bit.

    Every tensor of the source must be there and no other; every coded matrix
    must pass full validation. One module is in memory at a time.
    SourceError if either model cannot be opened; differences, damaged coded
    matrices included, are in the report.
    """
    model = StoredModel(os.fspath(model_dir))
    if isinstance(against, (str, os.PathLike)):
        against = open_source(os.fspath(against))
    return _Verification(model, against, progress).run()


class _Verification:
    """The state of one `verify` call."""

    def __init__(
        self,
        model: StoredModel,
        source: Source,
        progress: ProgressCallback | None,
    ) -> None:
        self.model = model
        self.source = source
        self._progress = progress
        self._unclaimed = set(model.tensors)
        self._mismatches: list[Mismatch] = []
        self._tensors = 0
        self._nbytes = 0

    def run(self) -> VerifyReport:
        layout = self.source.layout()
        total = sum(module.nbytes for module in layout)
        for index, module in enumerate(self.source.modules()):
            self._check(module)
            name = module.path
            del module  # Before the next one is read.
            mx.clear_cache()
            if self._progress is not None:
                self._progress(
                    Progress(name, index + 1, len(layout), self._nbytes, total)
                )
        for name in sorted(self._unclaimed):
            self._note(name, "is not in the source")
        return VerifyReport(
            str(self.model.path),
            self.source.name,
            self._tensors,
            self._nbytes,
            tuple(self._mismatches),
        )

    def _note(self, name: str, problem: str) -> None:
        self._mismatches.append(Mismatch(name, problem))

    def _check(self, module: Module) -> None:
        self._tensors += len(module.tensors)
        self._nbytes += module.nbytes
        decoded: dict[str, mx.array] = {}
        coded = full_name(module.path, CODED)
        if coded in self._unclaimed and CODED not in module.tensors:
            self._unclaimed.discard(coded)
            try:
                decoded = self._decode(coded)
                if module.kind == "switch":
                    # Coded as one matrix; the experts' axis has no bytes.
                    decoded = _with_experts(decoded, module.tensors)
            except (ValueError, RuntimeError) as error:
                self._note(coded, str(error))
                return
        for name, expected in module.tensors.items():
            self._check_tensor(
                full_name(module.path, name), expected, decoded.get(name)
            )

    def _decode(self, name: str) -> dict[str, mx.array]:
        coded = self.model.load(name)
        info = _ext.validate(coded)
        if info.scheme == "affine":
            parts = _ext.decode_affine(coded)
            return dict(zip(("weight", "scales", "biases"), parts, strict=True))
        if info.scheme == "float":
            return {"weight": _ext.decode_float(coded)}
        raise ValueError(f"scheme {info.scheme} is not lossless")

    def _check_tensor(
        self, name: str, expected: mx.array, found: mx.array | None
    ) -> None:
        if found is None:
            if name not in self._unclaimed:
                self._note(name, "is missing")
                return
            self._unclaimed.discard(name)
            try:
                found = self.model.load(name)
            except (ValueError, RuntimeError) as error:
                self._note(name, str(error))
                return
        problem = difference(expected, found)
        if problem is not None:
            self._note(name, problem)


def _with_experts(
    decoded: dict[str, mx.array], expected: dict[str, mx.array]
) -> dict[str, mx.array]:
    return {
        name: array.reshape(expected[name].shape)
        if name in expected and array.size == expected[name].size
        else array
        for name, array in decoded.items()
    }


def difference(expected: mx.array, found: mx.array) -> str | None:
    """How `found` differs from `expected` in any bit; None if it does not."""
    if found.dtype != expected.dtype:
        return (
            f"type {dtype_name(found.dtype)}, "
            f"expected {dtype_name(expected.dtype)}"
        )
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if found.size == 0:
        return None
    differ = mx.sum(as_bits(found) != as_bits(expected)).item()
    if differ == 0:
        return None
    return f"{differ} of {found.size} values differ"
