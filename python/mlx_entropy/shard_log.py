"""Which modules of an unfinished shard are complete, so that it continues."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .files import naming
from .shards import ShardWriter, data_start

_CHUNK = 1 << 20


@dataclass(frozen=True)
class CompleteModule:
    """A module whose tensors end at byte `stop` of the shard's data.

    `record` is the conversion's, `tensors` are entries of the shard's header,
    and `crc32` is of the bytes since the module before.
    """

    record: dict[str, Any]
    tensors: dict[str, Any]
    stop: int
    crc32: int


class ResumableShard(ShardWriter):
    """A shard that keeps its complete modules when it is interrupted.

    Each gets a line in a log beside the file. Nothing waits for the disk:
    what a power cut has lost of either file does not match its checksum, and
    is written again. `kept` are the `complete_modules` to continue after.
    """

    def __init__(
        self, path: Path, log: Path, room: int, kept: list[CompleteModule]
    ) -> None:
        self._complete = kept[-1].stop if kept else 0
        super().__init__(path, room, self._complete)
        for module in kept:
            self._entries.update(module.tensors)
        self._logged = len(self._entries)
        self._crc32 = 0
        # A line that was cut short must not become part of the next one.
        temporary = log.with_name(log.name + ".tmp")
        temporary.write_bytes(b"".join(map(_line, kept)))
        os.replace(temporary, log)
        self._log = open(log, "ab", buffering=0)  # noqa: SIM115

    def _write(self, content: memoryview) -> None:
        self._crc32 = zlib.crc32(content, self._crc32)
        super()._write(content)

    def complete(self, record: dict[str, Any]) -> None:
        """Keep the tensors added since the last call: they are a module."""
        names = list(self._entries)[self._logged :]
        tensors = {name: self._entries[name] for name in names}
        module = CompleteModule(record, tensors, self._offset, self._crc32)
        with naming(self.path):
            self._file.flush()
            self._log.write(_line(module))
        self._logged = len(self._entries)
        self._complete = self._offset
        self._crc32 = 0

    def _finish(self) -> None:
        super()._finish()
        self._log.close()

    def _abandon(self) -> None:
        """Keep what is complete, and give back the space of the rest."""
        self._log.close()
        with suppress(OSError):
            os.truncate(self.path, self._data_start + self._complete)


def _line(module: CompleteModule) -> bytes:
    return json.dumps(asdict(module)).encode() + b"\n"


def complete_modules(shard: Path, log: Path, room: int) -> list[CompleteModule]:
    """The leading modules of which the shard has every byte."""
    try:
        lines = log.read_bytes().splitlines(keepends=True)
        file = open(shard, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return []
    found: list[CompleteModule] = []
    with file:
        file.seek(data_start(room))
        start = 0
        for line in lines:
            module = _parsed(line)
            if module is None or not _is_intact(file, start, module):
                break
            found.append(module)
            start = module.stop
    return found


def _parsed(line: bytes) -> CompleteModule | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return CompleteModule(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _is_intact(file: BinaryIO, start: int, module: CompleteModule) -> bool:
    left, crc32 = module.stop - start, 0
    # A hole that a power cut left may be larger than memory.
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        crc32 = zlib.crc32(chunk, crc32)
        left -= len(chunk)
    return left == 0 and crc32 == module.crc32
