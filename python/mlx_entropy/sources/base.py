"""What every source of weights offers to conversion, `verify` and the CLI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import mlx.core as mx


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

    def layout(self) -> list[Layout]:
        """Every module in conversion order."""

    def modules(self, skip: frozenset[str] = frozenset()) -> Iterator[Module]:
        """Modules in `layout` order, one at a time, without those in `skip`."""

    def assets(self) -> Assets:
        """Tokenizer, chat template, generation config and the like."""


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
