"""Convert a model to entropy-coded weights, one module at a time."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import source_config
from ._version import version
from .checksums import as_json, checksums_of
from .coding import ConvertedTensor, ModuleRecord, code_module
from .destination import JOURNAL, Destination
from .files import user_path
from .loading import check_structure
from .model_format import (
    CHECKSUM_FILE,
    CONFIG_KEY,
    FORMAT_VERSION,
    MODEL_FILE,
    MODEL_FILE_SOURCE,
    OWN_MODEL_FILE,
    full_name,
)
from .progress import Progress, ProgressCallback
from .shard_log import CompleteModule, ResumableShard, complete_modules
from .shards import Shard, header_room, plan_shards, weight_index
from .sources import open_source
from .sources.base import (
    Contents,
    Module,
    Source,
    SourceError,
    left_out_lines,
    stays_inside,
)
from .sources.side_files import INDEX
from .tensors import bits_per_weight

# Bytes of the source a shard. Memory does not depend on it, since tensors
# are written as they are coded, nor does what an interruption loses.
DEFAULT_SHARD_BYTES = 1 << 30

# Side files of the source do not replace these.
_OURS = ("config.json", MODEL_FILE, INDEX, CHECKSUM_FILE)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    `contents` are the tensors of the source's files; bytes are those that
    tensors take in files. `warnings` are sentences about what the user may
    want to mend.
    """

    source: str
    destination: str
    tensors: tuple[ConvertedTensor, ...]
    seconds: float
    contents: Contents
    warnings: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.tensors)

    @property
    def source_bytes(self) -> int:
        """Those of the file's tensors that the converted model holds."""
        return self.contents.kept_bytes

    @property
    def coded_bytes(self) -> int:
        return sum(row.coded_bytes for row in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.coded_bytes, self.weights)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, totals first."""
        return {
            "source": self.source,
            "destination": self.destination,
            "weights": self.weights,
            "source_bytes": self.source_bytes,
            "coded_bytes": self.coded_bytes,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "file_tensors": self.contents.tensors,
            "file_bytes": self.contents.nbytes,
            "left_out": [vars(each) for each in self.contents.left_out],
            "tensors": [vars(row) for row in self.tensors],
        }

    def summary(self) -> str:
        """A few lines for people: sizes, rate, and what stayed raw and why."""
        before = bits_per_weight(self.source_bytes, self.weights)
        ratio = self.coded_bytes / max(self.source_bytes, 1)
        coded = sum(row.reason is None for row in self.tensors)
        lines = [
            f"{self.weights / 1e6:.1f} M weights: "
            f"{before:.3f} -> {self.bits_per_weight:.3f} bits a weight",
            f"{self.source_bytes / 1e6:.1f} MB -> "
            f"{self.coded_bytes / 1e6:.1f} MB ({100 * ratio:.1f} %) "
            f"in {self.seconds:.1f} s",
            f"{coded} of {len(self.tensors)} tensors coded",
        ]
        raw: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for row in self.tensors:
            if row.reason is not None:
                raw[row.reason] += 1
                sizes[row.reason] += row.coded_bytes
        lines += [
            f"  {count} raw ({sizes[reason] / 1e6:.2f} MB): {reason}"
            for reason, count in raw.most_common()
        ]
        lines += left_out_lines(self.contents.left_out)
        return "\n".join(lines)


def convert(
    source: str | os.PathLike[str] | Source,
    destination: str | os.PathLike[str],
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    as_loaded: bool = False,
    trust_remote_code: bool = False,
) -> ConversionReport:
    """Write an entropy-coded copy of a model, bit for bit recoverable.

    Works in `destination` + ".mlx-entropy-partial"; when it is interrupted the
    same call continues after the last finished module. `shard_bytes` is the
    size of a shard in bytes of the source. `progress` is called after every
    module; what it raises stops the conversion. With `overwrite` an earlier
    conversion at `destination` is replaced once the new one is complete,
    unless it holds files that its conversion did not write.

    Every tensor of the source's files is kept bit for bit, or in the report's
    `contents.left_out`. A source is refused when mlx-lm turns some of its
    tensors into another type, as 8-bit floats; with `as_loaded` the model is
    converted as mlx-lm loads it, and those tensors are left out.

    `trust_remote_code` lets the source's own Python file run, if its config
    names one (`model_file`); it is copied, and the converted model needs it.

    SourceError if the source cannot be read, ValueError if the destination
    must not be written, OSError if writing fails.
    """
    if isinstance(source, (str, os.PathLike)):
        source = open_source(
            os.fspath(source),
            as_loaded=as_loaded,
            trust_remote_code=trust_remote_code,
        )
    target = Destination(destination, source.name, overwrite)
    try:
        return _Conversion(source, target, shard_bytes, progress).run()
    finally:
        target.close()


class _Conversion:
    """The state of one `convert` call."""

    def __init__(
        self,
        source: Source,
        target: Destination,
        shard_bytes: int,
        progress: ProgressCallback | None,
    ) -> None:
        self.source = source
        self.target = target
        layout = source.layout()
        self.plan = plan_shards(layout, shard_bytes)
        self.sizes = {module.path: module.nbytes for module in layout}
        self.records: list[ModuleRecord] = []
        self._kept: list[CompleteModule] = []
        # Read first: what is wrong with them should not be found at the end.
        assets = source.assets()
        self.assets = {
            name: content
            for name, content in assets.files.items()
            if _may_copy(name)
        }
        self.warnings: list[str] = []
        self._early_warnings = tuple(assets.warnings)
        self._progress = progress
        self._shard_bytes = shard_bytes
        self._done_bytes = 0
        self._coded_bytes = 0

    def run(self) -> ConversionReport:
        started = time.perf_counter()
        with self.target.explaining_full_disks(self._bytes_left):
            self._write()
            warnings = self.target.publish()
        for warning in warnings:
            self._warn(warning)
        rows = tuple(row for record in self.records for row in record.rows)
        seconds = time.perf_counter() - started
        return ConversionReport(
            self.source.name,
            str(self.target.path),
            rows,
            seconds,
            self.source.contents,
            tuple(self.warnings),
        )

    def _write(self) -> None:
        finished = self._resume()
        for warning in self._early_warnings:
            self._warn(warning)
        skip = frozenset(record.path for record in self.records)
        modules = iter(self.source.modules(skip=skip))
        for shard in self.plan[finished:]:
            self._write_shard(shard, modules)
        self._write_small_files()

    def _bytes_left(self) -> int:
        return sum(self.sizes.values()) - self._done_bytes

    def _warn(self, warning: str) -> None:
        self.warnings.append(warning)
        self._report("", f"warning: {warning}")

    def _resume(self) -> int:
        """Open the partial; returns how many shards it already has."""
        identity = {
            "fingerprint": self.source.fingerprint,
            "format_version": FORMAT_VERSION,
            "mlx_entropy_version": version(),
            "shard_bytes": self._shard_bytes,
        }
        shards, note = self.target.open(identity, self._files())
        for shard in shards:
            for record in shard["modules"]:
                self._count(ModuleRecord.from_json(record))
        for shard in self.plan[len(shards) : len(shards) + 1]:
            self._kept = complete_modules(*self._places(shard))
            for module in self._kept:
                self._count(ModuleRecord.from_json(module.record))
        if note is not None:
            done = f"{len(self.records)} of {len(self.sizes)} modules are done"
            self._report("", f"{note}; {done}" if self.records else note)
        return len(shards)

    def _places(self, shard: Shard) -> tuple[Path, Path, int]:
        """Unfinished shard, its log, and the room for its header."""
        return (
            self.target.temporary(shard.file),
            self.target.log(shard.file),
            header_room(shard.paths),
        )

    def _count(self, record: ModuleRecord) -> None:
        self.records.append(record)
        self._done_bytes += self.sizes[record.path]
        self._coded_bytes += sum(row.coded_bytes for row in record.rows)

    def _report(self, module: str, note: str | None = None) -> None:
        if self._progress is None:
            return
        self._progress(
            Progress(
                module,
                len(self.records),
                len(self.sizes),
                self._done_bytes,
                sum(self.sizes.values()),
                self._coded_bytes,
                note,
            )
        )

    def _write_shard(self, shard: Shard, modules: Iterator[Module]) -> None:
        kept, self._kept = self._kept, []
        first = len(self.records) - len(kept)
        with ResumableShard(*self._places(shard), kept) as writer:
            for expected in shard.paths[len(kept) :]:
                self._write_module(expected, modules, writer)
                # Kept buffers of a GPU's allocator count as memory too.
                mx.clear_cache()
                self._report(expected)
            writer.finish()
        records = [record.to_json() for record in self.records[first:]]
        self.target.finish_shard({"file": shard.file, "modules": records})

    def _write_module(
        self, expected: str, modules: Iterator[Module], writer: ResumableShard
    ) -> None:
        """Its own function, so that nothing outlives it in memory."""
        module = next(modules, None)
        if module is None or module.path != expected:
            raise SourceError(f"{self.source.name} changed while it was read")
        tensors, record = code_module(module)
        for name, array in tensors.items():
            writer.add(full_name(module.path, name), array)
        writer.complete(record.to_json())
        self._count(record)

    def _files(self) -> list[str]:
        """Names of all files that the converted model will have."""
        shards = [shard.file for shard in self.plan]
        return sorted({*shards, *self.assets, *_OURS})

    def _write_small_files(self) -> None:
        ours = {
            "config.json": _json(self._config()),
            MODEL_FILE: MODEL_FILE_SOURCE.encode(),
            INDEX: _json(self._index()),
        }
        for name, content in {**self.assets, **ours}.items():
            self.target.write(name, content)
        self._check_loads()
        sums = checksums_of(self.target.partial, but=JOURNAL)
        self.target.write(CHECKSUM_FILE, as_json(sums))

    def _check_loads(self) -> None:
        try:
            check_structure(self.target.partial)
        except Exception as error:  # Models' own code may raise anything.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceError(
                f"mlx-lm cannot load what became of {self.source.name}: "
                f"{reason[:300]}"
            ) from error

    def _config(self) -> dict[str, Any]:
        config = source_config.converted(self.source.config, self.records)
        coded = sum(record.coded for record in self.records)
        own = {OWN_MODEL_FILE: config.pop("model_file", None)}
        config["model_file"] = MODEL_FILE
        config[CONFIG_KEY] = {
            "format_version": FORMAT_VERSION,
            "mlx_entropy_version": version(),
            "source": _public_name(self.source.name),
            source_config.KEY: source_config.remembered(self.source.config),
            "files": self._files(),
            **{key: name for key, name in own.items() if name is not None},
            "modules": {"coded": coded, "raw": len(self.records) - coded},
            "embeddings": [
                record.path
                for record in self.records
                if record.kind == "embedding"
            ],
            "experts": {
                record.path: record.rows[0].shape[0]
                for record in self.records
                if record.kind == "switch" and record.coded
            },
            "left_out": [vars(each) for each in self.source.contents.left_out],
            "raw": {
                record.path: {"kind": record.kind, "reason": record.reason}
                for record in self.records
                if record.reason is not None
            },
        }
        return config

    def _index(self) -> dict[str, Any]:
        rows = [row for record in self.records for row in record.rows]
        index = weight_index(self.target.partial, self.plan)
        weights = sum(row.weights for row in rows)
        index["metadata"]["total_parameters"] = weights
        return index


def _may_copy(name: str) -> bool:
    """Whether an asset stays in its folder and has no name of ours."""
    if not stays_inside(name):
        return False
    # Some file systems do not tell case apart.
    folded = name.casefold()
    if folded in {*_OURS, JOURNAL} or folded.endswith(".tmp"):
        return False
    return ".safetensors" not in folded


def _public_name(name: str) -> str:
    """A package's name as it is; the last part of a path: no folder leaks."""
    path = user_path(name)
    public = path.resolve().name if path.exists() else name
    # JSON has no bytes that are not UTF-8.
    return public.encode(errors="replace").decode()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(_tag_floats(content), indent=4) + "\n").encode()


def _tag_floats(value: Any) -> Any:
    """JSON has no infinity: write what transformers and mlx-lm read."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return {"__float__": "NaN"}
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _tag_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tag_floats(item) for item in value]
    return value
