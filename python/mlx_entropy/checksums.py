"""Checksums of everything that a converted model consists of.

`mlx_entropy_checksums.json` has a digest for each stored tensor, bound to its
name, type and shape, and one for every other file that a loader may read.
docs/directory.md defines them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from . import _ext
from .files import user_path, write_atomically
from .mlx_lm_files import import_mlx_lm
from .model_format import CHECKSUM_FILE, marked_config
from .sources.base import SourceError, quoted, read_bytes
from .sources.safetensors_file import data_bytes, read_header

_ALGORITHM = "xxh64"
_TENSORS, _FILES, _OWN = "tensors", "files", "digest"
_WEIGHTS = "model*.safetensors"
_MISSING = "is missing"
# What people and hubs add to a model, or change in it, and no loader reads.
_UNREAD = (".md", ".tmp")
_THREADS = 4


class Problem(NamedTuple):
    """What is not as it was written: a file, or a tensor in it."""

    file: str
    tensor: str | None
    what: str

    def __str__(self) -> str:
        if self.tensor is None:
            return f"{self.file} {self.what}"
        return f"{self.file}: tensor {quoted(self.tensor)} {self.what}"


@dataclass(frozen=True)
class SealReport:
    """What `seal` found changed since the checksums were written."""

    model: str
    tensors: int
    files: int
    changed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**vars(self), "changed": list(self.changed)}


def tensor_digest(
    name: str, dtype: str, shape: tuple[int, ...], data: Any
) -> str:
    """16 hexadecimal digits for a tensor's name, type, shape and bytes.

    `dtype` is safetensors' name of it, `data` any contiguous buffer.
    """
    return _json_digest([name, dtype, list(shape), _hex(_ext.xxh64(data))])


def checksums_of(directory: Path, but: str | None = None) -> dict[str, Any]:
    """The content of the checksum file for what is in `directory` now.

    Without the file named `but`. SourceError if a weight file is damaged or a
    file cannot be read.
    """
    tensors: dict[str, str] = {}
    for file in _weight_files(directory):
        tensors.update(_digests(file))
    files = {
        name: _file_digest(directory / name)
        for name in _other_files(directory)
        if name != but
    }
    tables = {"algorithm": _ALGORITHM, _TENSORS: tensors, _FILES: files}
    return {**tables, _OWN: _own_digest(tables)}


def as_json(checksums: dict[str, Any]) -> bytes:
    """The bytes of a checksum file."""
    return (json.dumps(checksums, indent=1) + "\n").encode()


def seal(model_dir: str | os.PathLike[str]) -> SealReport:
    """Write a converted model's checksums again, after an intended change.

    Loading refuses a model of which a byte has changed. Who has edited its
    config.json or chat template on purpose seals it again. The report names
    what had changed. SourceError if it is no converted model.
    """
    directory = user_path(model_dir)
    if not (directory / "config.json").is_file():
        raise SourceError(f"no converted model at {directory}")
    if marked_config(directory) is None:
        raise SourceError(f"{directory} is not entropy-coded")
    changed: tuple[str, ...] = ()
    if has_checksums(directory):
        # A checksum file that is damaged itself is what seal mends, too.
        with suppress(SourceError):
            changed = tuple(str(found) for found in problems(directory))
    content = checksums_of(directory)
    write_atomically(directory / CHECKSUM_FILE, as_json(content))
    return SealReport(
        str(directory), len(content[_TENSORS]), len(content[_FILES]), changed
    )


def check(directory: str | os.PathLike[str], partial: bool = False) -> bool:
    """ValueError, naming file and tensor, if anything is not as written.

    Of a model that is loaded in part, as for a pipeline, tensors may be
    missing (`partial`), and of any model a file that mlx-lm does not download.
    Returns whether there are checksums: models of older versions, and those
    that mlx-lm has saved again, have none.
    """
    directory = Path(directory)
    if not has_checksums(directory):
        return False
    found = (
        problem
        for problem in problems(directory)
        if not _may_be_missing(directory, problem, partial)
    )
    first = next(found, None)
    if first is None:
        return True
    more = sum(1 for _ in found)
    rest = f" ({more} more like this)" if more else ""
    hint = ""
    if first.tensor is None and first.file != CHECKSUM_FILE:
        hint = "; if it was changed on purpose: mlx-entropy seal MODEL"
    raise SourceError(f"{directory / str(first)}{rest}{hint}")


def _may_be_missing(directory: Path, found: Problem, partial: bool) -> bool:
    if found.what != _MISSING or os.path.lexists(directory / found.file):
        return False
    if found.tensor is not None:
        return partial
    import_mlx_lm()
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    patterns = DEFAULT_ALLOW_PATTERNS
    return not any(fnmatch(found.file, pattern) for pattern in patterns)


def has_checksums(directory: Path) -> bool:
    """Whether a model has them: old and re-saved ones have not."""
    return (directory / CHECKSUM_FILE).is_file()


def checks_on_loading() -> bool:
    """Whether loading checks; MLX_ENTROPY_CHECKSUMS=0 switches it off."""
    return os.environ.get("MLX_ENTROPY_CHECKSUMS", "1") != "0"


def problems(directory: Path) -> Iterator[Problem]:
    """Everything that is not as it was written; small files come first.

    SourceError if the checksum file itself or a weight file's header is
    damaged.
    """
    expected = _read(directory)
    for name, digest in expected[_FILES].items():
        found = None
        with suppress(SourceError):
            found = _file_digest(directory / name)
        if found != digest:
            yield Problem(name, None, _changed(found))
    left = dict(expected[_TENSORS])
    for file in _weight_files(directory):
        for name, digest in _digests(file).items():
            known = left.pop(name, None)
            if known is None:
                yield Problem(file.name, name, "is not one that was written")
            elif known != digest:
                yield Problem(file.name, name, "is not what was written")
    for name in left:
        yield Problem(_WEIGHTS, name, _MISSING)


def _changed(found: str | None) -> str:
    return _MISSING if found is None else "is not what was written"


def _read(directory: Path) -> dict[str, Any]:
    path = directory / CHECKSUM_FILE
    wrong = SourceError(f"{path} is damaged")
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        raise wrong from None
    if (
        not isinstance(content, dict)
        or content.keys() != {"algorithm", _TENSORS, _FILES, _OWN}
        or content["algorithm"] != _ALGORITHM
        or not _is_table(content[_TENSORS])
        or not _is_table(content[_FILES])
        or content[_OWN] != _own_digest(content)
    ):
        raise wrong
    return content


def _is_table(content: object) -> bool:
    return isinstance(content, dict) and all(
        isinstance(value, str) for value in content.values()
    )


def _own_digest(content: dict[str, Any]) -> str:
    """So that damage to a digest is told from damage to a tensor."""
    return _json_digest([content[_TENSORS], content[_FILES]])


def _json_digest(content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return _hex(_ext.xxh64(text.encode()))


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(_WEIGHTS))


def _other_files(directory: Path) -> list[str]:
    """Names, relative with `/`, of the files that loaders may read."""
    names = []
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if (
            path.is_file()
            and path.suffix not in (".safetensors", *_UNREAD)
            and path.name != CHECKSUM_FILE
            and not any(part.startswith((".", "__")) for part in relative.parts)
        ):
            names.append(relative.as_posix())
    return names


def _file_digest(path: Path) -> str:
    return _hex(_ext.xxh64(read_bytes(path)))


def _digests(file: Path) -> dict[str, str]:
    """The digest of every tensor of a weight file."""
    tensors = read_header(file)
    if not tensors:
        return {}
    data = data_bytes(file)

    def digest(name: str) -> str:
        stored = tensors[name]
        part = data[stored.start : stored.stop]
        return tensor_digest(name, stored.dtype, stored.shape, part)

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(tensors, pool.map(digest, tensors), strict=True))


def _hex(digest: int) -> str:
    return f"{digest:016x}"
