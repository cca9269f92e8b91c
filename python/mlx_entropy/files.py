"""What makes files survive a crash, and errors name them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def user_path(spec: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user at its start, and only there, filled in.

    Path.expanduser also does so for `./~`, which names a file.
    """
    return Path(os.path.expanduser(os.fspath(spec)))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError from inside say which file it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Keep Python from writing beside the files of a model that it runs."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it is either whole, or as it was before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
