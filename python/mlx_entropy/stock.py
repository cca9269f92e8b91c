"""A stock MLX copy of a source: the peer that a converted model is held to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .destination import DestinationError
from .model_format import full_name
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
    sizes = {module.path: module.nbytes for module in layout}
    done: list[str] = []

    def count(written: str) -> None:
        done.append(written)
        if progress is not None:
            nbytes = sum(sizes[each] for each in done)
            total = sum(sizes.values())
            progress(Progress(written, len(done), len(sizes), nbytes, total))

    with ShardWriter(path, header_room(sizes)) as writer:
        copy_modules(source.modules(), writer, sizes, source.name, count)
        writer.finish()


def copy_modules(
    modules: Iterator[Module],
    writer: ShardWriter,
    paths: Iterable[str],
    name: str,
    done: Callable[[str], None],
) -> None:
    """Write the next modules, one in memory at a time.

    They must be those at `paths`; SourceError says that `name` changed. `done`
    is called after each.
    """
    for path in paths:
        _copy_module(modules, writer, path, name)
        mx.clear_cache()
        done(path)


def _copy_module(
    modules: Iterator[Module], writer: ShardWriter, path: str, name: str
) -> None:
    """Its own function, so that no tensor outlives it in memory."""
    module = next(modules, None)
    if module is None or module.path != path:
        raise SourceError(f"{name} changed while it was read")
    for parameter, array in module.tensors.items():
        writer.add(full_name(path, parameter), array)
