"""Give back the model that was converted, as stock mlx-lm loads it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import _ext
from ._version import version
from .checksums import check
from .conversion import DEFAULT_SHARD_BYTES
from .destination import Destination, DestinationError
from .files import user_path
from .model_format import CHECKSUM_FILE, CODED, MODEL_FILE, full_name
from .progress import Progress, ProgressCallback
from .shard_log import CompleteModule, ResumableShard, complete_modules
from .shards import Shard, header_room, plan_shards, weight_index
from .source_config import restored
from .sources.base import (
    Assets,
    Contents,
    Layout,
    LeftOut,
    Module,
    SourceError,
    left_out_lines,
    read_bytes,
    stays_inside,
)
from .sources.side_files import INDEX, read_side_files
from .stock import copy_modules
from .stored import StoredModel

_OURS = ("config.json", MODEL_FILE, CHECKSUM_FILE, INDEX)


@dataclass(frozen=True)
class RestoreReport:
    """What `restore` wrote: tensors, their bytes, and what cannot be there.

    `left_out` are tensors of the source's files that conversion left out.
    """

    model: str
    destination: str
    tensors: int
    nbytes: int
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        left_out = [vars(tensor) for tensor in self.left_out]
        return {
            **vars(self),
            "left_out": left_out,
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"restored: {self.tensors} tensors, {self.nbytes / 1e6:.1f} MB "
            f"in {self.seconds:.1f} s"
        ]
        return "\n".join([*lines, *left_out_lines(self.left_out)])


class ConvertedSource:
    """The source of a converted model, from that model: a `Source`.

    The tensors are the source's, bit for bit, under the names that mlx-lm
    gives them; the layout's bytes are those stored now. SourceError if the
    directory is no converted model, or anything in it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stored = StoredModel(os.fspath(path))
        check(self._stored.path)
        self.name = str(self._stored.path)
        self._modules = dict(self._stored.modules())
        self.config = restored(self._stored.config, self._quantized)
        stored = self._stored.tensors.values()
        nbytes = sum(tensor.nbytes for tensor in stored)
        self.contents = Contents(len(stored), nbytes, self._stored.left_out)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(read_bytes(self._stored.path / "config.json"))
        for file in self._stored.files:
            status = file.stat()
            identity = (file.name, status.st_size, status.st_mtime_ns)
            digest.update(repr(identity).encode())
        return digest.hexdigest()

    def layout(self) -> list[Layout]:
        return [
            Layout(
                path,
                sum(
                    self._stored.tensors[full_name(path, name)].nbytes
                    for name in names
                ),
            )
            for path, names in self._modules.items()
        ]

    def modules(self, skip: frozenset[str] = frozenset()) -> Iterator[Module]:
        for path in self._modules:
            if path not in skip:
                # Not bound to a name: the generator must not keep it alive.
                yield self._module(path)

    def assets(self) -> Assets:
        folder = self._stored.path
        assets = read_side_files(folder)
        # Conversion may have copied more: a Python file in a folder.
        for name in self._listed():
            if name not in assets.files and (folder / name).is_file():
                assets.files[name] = read_bytes(folder / name)
        for name in _OURS:
            assets.files.pop(name, None)
        return assets

    def _listed(self) -> list[str]:
        listed = self._stored.about.get("files")
        return [
            name
            for name in (listed if isinstance(listed, list) else [])
            if isinstance(name, str)
            and stays_inside(name)
            and not name.endswith(".safetensors")
        ]

    def _module(self, path: str) -> Module:
        tensors: dict[str, mx.array] = {}
        for name in self._modules[path]:
            whole = full_name(path, name)
            if name == CODED:
                try:
                    tensors |= self._stored.decode(whole)
                except ValueError as error:
                    raise SourceError(f"{whole}: {error}") from error
            else:
                tensors[name] = self._stored.load(whole)
        return Module(path, "other", tensors)

    def _quantized(self) -> dict[str, dict[str, Any]]:
        """What the coded headers and the config say of quantized modules."""
        old = self._stored.config.get("quantization") or {}
        default = {"mode": "affine", **old}
        found: dict[str, dict[str, Any]] = {}
        for path, names in self._modules.items():
            if CODED in names:
                info = _ext.describe(self._stored.load(full_name(path, CODED)))
                if info.scheme == "affine":
                    found[path] = {
                        "group_size": info.group_size,
                        "bits": info.bits,
                        "mode": "affine",
                    }
            elif "scales" in names and {"group_size", "bits"} <= old.keys():
                kind = old.get(path) or default
                found[path] = {
                    key: kind.get(key, default[key])
                    for key in ("group_size", "bits", "mode")
                }
        return found


def restore(
    model_dir: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: ProgressCallback | None = None,
) -> RestoreReport:
    """Write the model that was converted, for stock mlx-lm.

    Every tensor has the bits, the type and the shape that it had, and the
    name that mlx-lm gives it; config.json is the source's again; side files
    are copied. The checksums are checked first, every coded matrix before it
    is decoded. One module is in memory at a time. Works beside `destination`,
    which must be new or empty, and continues after an interruption as
    `convert` does; one rename publishes the finished directory.

    SourceError if the model cannot be read or is damaged, ValueError if the
    destination must not be written, OSError if writing fails.
    """
    source = ConvertedSource(model_dir)
    _refuse_existing(user_path(destination))
    target = Destination(destination, source.name)
    try:
        return _Restoration(source, target, shard_bytes, progress).run()
    finally:
        target.close()


def _refuse_existing(path: Path) -> None:
    if not os.path.lexists(path) or (path.is_dir() and not os.listdir(path)):
        return
    raise DestinationError(
        f"{path} exists; restore replaces nothing, name a new directory"
    )


class _Restoration:
    """The state of one `restore` call."""

    def __init__(
        self,
        source: ConvertedSource,
        target: Destination,
        shard_bytes: int,
        progress: ProgressCallback | None,
    ) -> None:
        self.source = source
        self.target = target
        self.sizes = {each.path: each.nbytes for each in source.layout()}
        self.plan = plan_shards(source.layout(), shard_bytes)
        self.assets = source.assets()
        self._shard_bytes = shard_bytes
        self._progress = progress
        self._modules = 0
        self._bytes = 0

    def run(self) -> RestoreReport:
        started = time.perf_counter()
        # The layout has the bytes of what is coded.
        with self.target.explaining_full_disks(self._bytes_left, "at least"):
            index = self._write()
            warnings = [*self.assets.warnings, *self.target.publish()]
        return RestoreReport(
            self.source.name,
            str(self.target.path),
            len(index["weight_map"]),
            index["metadata"]["total_size"],
            self.source.contents.left_out,
            tuple(warnings),
            time.perf_counter() - started,
        )

    def _bytes_left(self) -> int:
        return sum(self.sizes.values()) - self._bytes

    def _write(self) -> dict[str, Any]:
        """Everything but the name; returns the index."""
        files = [shard.file for shard in self.plan]
        finished = self._resume([*files, *self.assets.files, *_OURS])
        kept = self._kept(finished)
        done = [path for each in self.plan[:finished] for path in each.paths]
        if kept:
            done += self.plan[finished].paths[: len(kept)]
        modules = self.source.modules(skip=frozenset(done))
        for path in done:
            self._count(path)
        for shard in self.plan[finished:]:
            self._write_shard(shard, modules, kept)
            kept = []
        index = weight_index(self.target.partial, self.plan)
        self._write_small_files(index)
        return index

    def _places(self, shard: Shard) -> tuple[Path, Path, int]:
        """Unfinished shard, its log, and the room for its header."""
        return (
            self.target.temporary(shard.file),
            self.target.log(shard.file),
            header_room(shard.paths),
        )

    def _kept(self, finished: int) -> list[CompleteModule]:
        """Complete modules of the shard that was interrupted."""
        if finished == len(self.plan):
            return []
        return complete_modules(*self._places(self.plan[finished]))

    def _write_shard(
        self,
        shard: Shard,
        modules: Iterator[Module],
        kept: list[CompleteModule],
    ) -> None:
        with ResumableShard(*self._places(shard), kept) as writer:

            def done(path: str) -> None:
                writer.complete({})
                self._count(path)

            left = shard.paths[len(kept) :]
            copy_modules(modules, writer, left, self.source.name, done)
            writer.finish()
        self.target.finish_shard({"file": shard.file})

    def _resume(self, names: list[str]) -> int:
        """Open the partial; returns how many shards it already has."""
        identity = {
            "restores": self.source.fingerprint,
            "mlx_entropy_version": version(),
            "shard_bytes": self._shard_bytes,
        }
        kept, note = self.target.open(identity, names)
        if note is not None and self._progress is not None:
            self._progress(self._state("", note))
        return len(kept)

    def _count(self, path: str) -> None:
        self._modules += 1
        self._bytes += self.sizes[path]
        if self._progress is not None:
            self._progress(self._state(path))

    def _state(self, path: str, note: str | None = None) -> Progress:
        total = sum(self.sizes.values())
        count = len(self.sizes)
        return Progress(
            path, self._modules, count, self._bytes, total, note=note
        )

    def _write_small_files(self, index: dict[str, Any]) -> None:
        for name, content in self.assets.files.items():
            self.target.write(name, content)
        ours = {"config.json": self.source.config, INDEX: index}
        for name, table in ours.items():
            text = json.dumps(table, indent=4) + "\n"
            self.target.write(name, text.encode())
