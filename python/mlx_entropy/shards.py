"""Planning and writing the safetensors files of a model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mlx.core as mx

from .files import naming
from .sources.base import Layout
from .sources.safetensors_file import LENGTH_BYTES, read_header
from .tensors import DTYPE_NAMES, as_bytes

# The first tensor starts on a cache line; coded sizes do not keep that up.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Shard:
    """One file of a plan: the modules it holds, and their source bytes."""

    file: str
    paths: tuple[str, ...]
    nbytes: int


def plan_shards(layout: Iterable[Layout], shard_bytes: int) -> list[Shard]:
    """Files for the modules of `layout`, in order.

    A file ends before the module that would take it over `shard_bytes`
    bytes *of the source*: only those are known before coding, and the number
    of files is part of each one's name. A larger module gets its own file.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard size must be positive, got {shard_bytes}")
    groups: list[list[Layout]] = [[]]
    room = shard_bytes
    for module in layout:
        if groups[-1] and module.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(module)
        room -= module.nbytes
    return [
        Shard(
            _shard_name(index, len(groups)),
            tuple(module.path for module in group),
            sum(module.nbytes for module in group),
        )
        for index, group in enumerate(groups)
    ]


def _shard_name(index: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def weight_index(folder: Path, shards: Iterable[Shard]) -> dict[str, Any]:
    """The index of written shards, as Hugging Face's libraries have it."""
    stored = {}
    for shard in shards:
        stored.update(read_header(folder / shard.file))
    return {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in stored.values())
        },
        "weight_map": {name: stored[name].file for name in sorted(stored)},
    }


def header_room(paths: Iterable[str]) -> int:
    """Header bytes that nearly always suffice for modules at `paths`.

    Two entries a module: `{"dtype":...,"shape":[...],"data_offsets":[...]}`
    takes about 90 bytes beside the name.
    """
    return 64 + sum(2 * (len(path) + 110) for path in paths)


class ShardWriter:
    """Writes tensors to a safetensors file as they come, keeping none.

    The header, which comes first, is known last, so room is left for it;
    the format allows trailing spaces. Only a header that outgrows its room
    costs a second pass over the file. Leaving the `with` block by an
    exception removes the file. OSError, which names the file, as from any
    write. `keep` bytes of data that are there already stay.
    """

    def __init__(self, path: Path, room: int, keep: int = 0) -> None:
        self.path = path
        self._data_start = data_start(room)
        self._entries: dict[str, Any] = {}
        self._offset = keep
        self._file = open(path, "r+b" if keep else "wb")  # noqa: SIM115
        self._file.truncate(self._data_start + keep if keep else 0)
        self._file.seek(self._data_start + keep)

    def add(self, name: str, array: mx.array) -> None:
        """Append a tensor; ValueError if safetensors lacks its type."""
        if array.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name}: cannot store type {array.dtype}")
        if name in self._entries:
            raise ValueError(f"{name}: two tensors have this name")
        stop = self._offset + array.nbytes
        self._entries[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [self._offset, stop],
        }
        if array.nbytes:
            with naming(self.path):
                self._write(as_bytes(array))
        self._offset = stop

    def _write(self, content: memoryview) -> None:
        self._file.write(content)

    def finish(self) -> None:
        """Write the header and wait until the disk has everything."""
        with naming(self.path):
            self._finish()

    def _finish(self) -> None:
        content = {"__metadata__": {"format": "mlx"}, **self._entries}
        header = json.dumps(content, separators=(",", ":")).encode()
        if LENGTH_BYTES + len(header) > self._data_start:
            self._move_data(_round_up(LENGTH_BYTES + len(header)))
        room = self._data_start - LENGTH_BYTES
        self._file.seek(0)
        self._file.write(room.to_bytes(LENGTH_BYTES, "little"))
        self._file.write(header.ljust(room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _move_data(self, start: int) -> None:
        self._file.close()
        old = self.path.with_name(self.path.name + ".old")
        os.replace(self.path, old)
        self._file = open(self.path, "wb")  # noqa: SIM115
        self._file.seek(start)
        with open(old, "rb") as source:
            source.seek(self._data_start)
            shutil.copyfileobj(source, self._file, 1 << 20)
        old.unlink()
        self._data_start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        # Closing flushes, which fails again on a full disk.
        with suppress(OSError):
            self._file.close()
        self._abandon()

    def _abandon(self) -> None:
        self.path.unlink(missing_ok=True)


def data_start(room: int) -> int:
    """Where the data starts in a file with `room` bytes for its header."""
    return _round_up(LENGTH_BYTES + room)


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
