"""What mlx-lm cannot do with files, and the operating system can.

Its loader takes the name of a directory for a pattern, MLX and tokenizers
need names in UTF-8, weight files stay open until their last tensor is read,
and importing it raises the limit of open files, which may be forbidden.
"""

from __future__ import annotations

import glob
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a process has open beside weights: streams, modules, tokenizers.
_OTHER_FILES = 48
_swapping = threading.RLock()


def import_mlx_lm() -> None:
    """Import mlx_lm, also where it may not set the limit that it wants."""
    if "mlx_lm" in sys.modules:
        return
    setrlimit = resource.setrlimit

    def tolerant(which: int, limits: tuple[int, int]) -> None:
        try:
            setrlimit(which, limits)
        except (ValueError, OSError):
            _, hard = resource.getrlimit(which)
            setrlimit(which, (min(limits[0], hard), hard))

    resource.setrlimit = tolerant
    try:
        import mlx_lm  # noqa: F401
    finally:
        resource.setrlimit = setrlimit


@contextmanager
def readable(directory: Path) -> Iterator[Path]:
    """Where mlx-lm's loader finds `directory`, however it is called and
    however many files it has. Names of what is no directory stay."""
    with plain_path(directory) as path, few_open_files(path):
        yield path


@contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """`directory`, under a name that every loader takes.

    That is a link where the name has signs of patterns or is not UTF-8. Files
    that are open stay readable afterwards.
    """
    if _is_plain(os.fspath(directory)) or not directory.is_dir():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="mlx-entropy-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(directory.resolve())
        yield link


def _is_plain(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return glob.escape(name) == name


@contextmanager
def few_open_files(directory: Path) -> Iterator[None]:
    """Has mlx-lm's loader keep no weight file open, if there are many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = len(list(directory.glob("model*.safetensors")))
    if soft == resource.RLIM_INFINITY or count + _OTHER_FILES <= soft:
        yield
        return
    from mlx_lm import utils

    with _swapping:
        # Perhaps another stand-in for mlx.core: each does one thing.
        inner = utils.mx
        utils.mx = _Reopening(inner)  # type: ignore[assignment]
        try:
            yield
        finally:
            utils.mx = inner


class _Reopening:
    """`mlx.core`, but `load` opens files again for each tensor."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def load(self, file: str, **kwargs: Any) -> Any:
        return self._inner.load(
            _ReopenedFile(file), **{"format": "safetensors", **kwargs}
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _ReopenedFile:
    """As much of a file as MLX uses, open only while it is read."""

    closed = False

    def __init__(self, path: str) -> None:
        # A link to its directory may be gone when it is read.
        self.name = os.path.realpath(path)
        self._size = os.stat(path).st_size
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:
        with open(self.name, "rb", buffering=0) as file:
            file.seek(self._position)
            count = file.readinto(buffer) or 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = start.get(whence, 0) + offset
        return self._position

    def tell(self) -> int:
        return self._position
