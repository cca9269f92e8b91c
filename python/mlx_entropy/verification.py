"""Prove that a converted model holds every bit of its source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .checksums import has_checksums, problems
from .model_format import CODED, full_name
from .progress import Progress, ProgressCallback
from .sources import open_source
from .sources.base import LeftOut, Module, Source
from .stored import StoredModel
from .tensors import as_bits, dtype_name


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is not identical, and in what way."""

    name: str
    problem: str


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of `verify`.

    `tensors` and `nbytes` are those of the source's files, of which the model
    holds every bit but for the tensors in `left_out`.
    """

    model: str
    against: str
    tensors: int
    nbytes: int
    mismatches: tuple[Mismatch, ...]
    left_out: tuple[LeftOut, ...] = ()

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
            "left_out": [vars(tensor) for tensor in self.left_out],
            "mismatches": [vars(found) for found in self.mismatches],
        }


def verify(
    model_dir: str | os.PathLike[str],
    against: str | os.PathLike[str] | Source,
    *,
    progress: ProgressCallback | None = None,
    trust_remote_code: bool = False,
) -> VerifyReport:
    """Compare a converted model with its source, bit for bit.

    Every tensor of the source's files must be there, or be one that the model
    says was left out, and no other may; every coded matrix must pass full
    validation. One module is in memory at a time. `trust_remote_code` lets the
    source's own Python file run.

    SourceError if either model cannot be opened; differences, damaged coded
    matrices included, are in the report.
    """
    model = StoredModel(os.fspath(model_dir), incomplete=True)
    if isinstance(against, (str, os.PathLike)):
        against = open_source(
            os.fspath(against),
            as_loaded=True,
            trust_remote_code=trust_remote_code,
        )
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
        self._check_left_out()
        self._check_checksums()
        return VerifyReport(
            str(self.model.path),
            self.source.name,
            self.source.contents.tensors,
            self.source.contents.nbytes,
            tuple(self._mismatches),
            self.source.contents.left_out,
        )

    def _note(self, name: str, problem: str) -> None:
        self._mismatches.append(Mismatch(name, problem))

    def _check_left_out(self) -> None:
        """The model must name what it does not hold of the files."""
        told = {tensor.name for tensor in self.model.left_out}
        for tensor in self.source.contents.left_out:
            if tensor.name not in told:
                self._note(tensor.name, f"is not in the model: {tensor.reason}")

    def _check_checksums(self) -> None:
        """What the comparison cannot see: the other files, wrong digests."""
        if not has_checksums(self.model.path):
            return
        told = bool(self._mismatches)
        for found in problems(self.model.path):
            if found.tensor is None or not told:
                self._note(found.tensor or found.file, found.what)

    def _check(self, module: Module) -> None:
        self._nbytes += module.nbytes
        decoded: dict[str, mx.array] = {}
        coded = full_name(module.path, CODED)
        if coded in self._unclaimed and CODED not in module.tensors:
            self._unclaimed.discard(coded)
            try:
                decoded = self.model.decode(coded)
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
