"""A stock MLX copy of a source: the peer that a converted model is held to."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .destination import DestinationError
from .progress import Progress, ProgressCallback
from .shards import ShardWriter, header_room
from .sources.base import Module, Source, SourceError, stays_inside

MARKER = "mlx-entropy-stock.json"
"""Says which source a stock copy is of, and whether it is complete."""

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class StockReport:
    """A stock copy; `nbytes` are those of its weight file."""

    directory: str
    nbytes: int
    seconds: float


def is_stock_copy(source: Source, directory: str | os.PathLike[str]) -> bool:
    """Whether `write_stock` has finished a copy of this source there."""
    marker = _marker(Path(directory))
    return (
        marker.get("fingerprint") == source.fingerprint
        and marker.get("complete") is True
        and (Path(directory) / _WEIGHTS).is_file()
    )


def write_stock(
    source: Source,
    directory: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
) -> StockReport:
    """Write the source as a directory that stock mlx-lm loads.

    The tensors are the source's, unchanged; one module is in memory at a
    time. An earlier stock copy is replaced. DestinationError if the directory
    holds anything else, SourceError if the source cannot be read.
    """
    started = time.perf_counter()
    target = Path(directory)
    _prepare(target)
    _mark(target, source, complete=False)
    # Of an earlier copy, or of one that was interrupted.
    (target / _WEIGHTS).unlink(missing_ok=True)
    _write_weights(source, target / _WEIGHTS, progress)
    files = dict(source.assets().files)
    files["config.json"] = (json.dumps(source.config, indent=4) + "\n").encode()
    for name, content in files.items():
        if stays_inside(name):
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(content)
    _mark(target, source, complete=True)
    nbytes = (target / _WEIGHTS).stat().st_size
    return StockReport(str(target), nbytes, time.perf_counter() - started)


def _prepare(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()) and not _marker(target):
        raise DestinationError(
            f"{target} is not empty and no stock copy; not replaced"
        )


def _marker(target: Path) -> dict[str, Any]:
    """The marker's content; {} in a directory that is not a stock copy."""
    try:
        content = json.loads((target / MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mark(target: Path, source: Source, complete: bool) -> None:
    content = {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "complete": complete,
    }
    (target / MARKER).write_text(json.dumps(content, indent=4) + "\n")


def _write_weights(
    source: Source, path: Path, progress: ProgressCallback | None
) -> None:
    layout = source.layout()
    total = sum(module.nbytes for module in layout)
    written = done = 0
    room = header_room(module.path for module in layout)
    with ShardWriter(path, room) as writer:
        # Without enumerate, which would keep a module until the next is read.
        for module in source.modules():
            _add(module, writer)
            written, done = written + 1, done + module.nbytes
            state = Progress(module.path, written, len(layout), done, total)
            del module  # Before the next one is read.
            mx.clear_cache()
            if progress is not None:
                progress(state)
        if written != len(layout):
            raise SourceError(f"{source.name} changed while it was read")
        writer.finish()


def _add(module: Module, writer: ShardWriter) -> None:
    """Its own function, so that no tensor outlives it in memory."""
    for name, array in module.tensors.items():
        writer.add(f"{module.path}.{name}" if module.path else name, array)
