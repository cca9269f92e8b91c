"""What every source of weights offers to conversion, `verify` and the CLI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import mlx.core as mx

_MOST_NAMES = 3


class SourceError(ValueError):
    """A source is missing, unreadable or of an unsupported kind."""


@dataclass(frozen=True)
class Module:
    """The parameters of one module, e.g. `model.layers.0.mlp.up_proj`.

    `tensors` maps the parameter name inside the module ("weight", "scales",
    "biases", "bias") to an array; arrays may be lazy, and nothing holds them
    once the module is dropped. `kind` is the mlx layer: "linear",
    "embedding" and "switch" (mlx-lm's experts, with an axis for them) can be
    entropy-coded, "other" is copied. `quantization` is
    MLX's own description ({"group_size", "bits", "mode"}) or None. `obstacle`
    is why a module must be copied all the same, or None.
    """

    path: str
    kind: str
    tensors: dict[str, mx.array]
    quantization: dict[str, Any] | None = None
    obstacle: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())


@dataclass(frozen=True)
class Layout:
    """Name and stored bytes of a module, known before its data is read."""

    path: str
    nbytes: int


@dataclass(frozen=True)
class LeftOut:
    """A tensor of a source's files that the converted model does not hold.

    `dtype` is the file's own name of the type.
    """

    name: str
    file: str
    dtype: str
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Contents:
    """What a source's weight files hold: all tensors, and those left out."""

    tensors: int
    nbytes: int
    left_out: tuple[LeftOut, ...] = ()

    @property
    def kept_bytes(self) -> int:
        return self.nbytes - sum(tensor.nbytes for tensor in self.left_out)


@dataclass
class Assets:
    """Small files to write beside the weights: file name -> content.

    A name may be in a folder ("folder/name"). `warnings` are sentences about
    what was left out or is odd.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Source(Protocol):
    """A model to convert. Names are those that mlx-lm has after `sanitize`."""

    @property
    def name(self) -> str:
        """What the user typed, for messages."""

    @property
    def config(self) -> dict[str, Any]:
        """The mlx-lm config.json of the model."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the source's content may have changed."""

    @property
    def contents(self) -> Contents:
        """Every tensor of the files, by the files' own types and bytes."""

    def layout(self) -> list[Layout]:
        """Every module in conversion order."""

    def modules(self, skip: frozenset[str] = frozenset()) -> Iterator[Module]:
        """Modules in `layout` order, one at a time, without those in `skip`."""

    def assets(self) -> Assets:
        """Tokenizer, chat template, generation config and the like."""


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """For people: how much was left out, then a line for each reason."""
    if not left_out:
        return []
    total = sum(tensor.nbytes for tensor in left_out)
    lines = [
        f"{_tensors(left_out)} of the source ({total / 1e6:.2f} MB) left out:"
    ]
    for reason in dict.fromkeys(tensor.reason for tensor in left_out):
        found = [tensor for tensor in left_out if tensor.reason == reason]
        nbytes = sum(tensor.nbytes for tensor in found)
        names = ", ".join(tensor.name for tensor in found[:_MOST_NAMES])
        if len(found) > _MOST_NAMES:
            names += ", ..."
        lines.append(
            f"  {_tensors(found)} ({nbytes / 1e6:.2f} MB): {reason} ({names})"
        )
    return lines


def _tensors(some: Sequence[object]) -> str:
    return f"{len(some)} tensor{'s' * (len(some) != 1)}"


def read_bytes(path: Path) -> bytes:
    """`path`'s content; SourceError names the file when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def stays_inside(name: str) -> bool:
    """Whether the name of an asset is one of a file below its folder."""
    path = PurePosixPath(name)
    parts = name.split("/")
    return not path.is_absolute() and not {"", ".", ".."} & set(parts)


def quoted(text: str) -> str:
    """`text` from an untrusted file, short and on one line, for messages."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
