"""What users mean by names that are no model directory: the Hub's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files import user_path
from .base import SourceError

_ADDRESS = re.compile(r"(https?://)?(huggingface\.co|hf\.co)/")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def model_directory(spec: str | os.PathLike[str]) -> Path:
    """The local directory of a model to load; SourceError if it is none.

    mlx-lm would look for it on the Hub, and download gigabytes.
    """
    path = user_path(spec)
    if not path.is_dir():
        raise SourceError(
            f"no model directory at {path}{absent(os.fspath(spec))}"
        )
    if not (path / "config.json").is_file():
        raise SourceError(f"{path} has no config.json{inside(path)}")
    return path


def absent(name: str) -> str:
    """What to do when nothing is called `name`; "" if nothing comes to mind.

    Starts with a separator, to be put at the end of a message.
    """
    repository = _ADDRESS.sub("", name)
    if not _REPOSITORY.fullmatch(repository):
        return ""
    folder = _cache() / f"models--{repository.replace('/', '--')}"
    if (cached := snapshot(folder)) is not None:
        return f"; the Hugging Face cache has that repository: {cached}"
    short = repository.partition("/")[2]
    return (
        "; if it is a repository of the Hugging Face Hub, download it first: "
        f"hf download {repository} --local-dir {short}"
    )


def inside(folder: Path) -> str:
    """The like for a directory that has no config.json."""
    if (found := snapshot(folder)) is None:
        return ""
    return f"; it is a folder of the Hugging Face cache, the model is {found}"


def snapshot(folder: Path) -> Path | None:
    """The model in a cache folder: that of its main branch, else any."""
    snapshots = folder / "snapshots"
    try:
        main = (folder / "refs" / "main").read_text().strip()
        if main and (snapshots / main / "config.json").is_file():
            return snapshots / main
    except (OSError, ValueError):
        pass
    found = sorted(snapshots.glob("*/config.json"))
    return found[-1].parent if found else None


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
