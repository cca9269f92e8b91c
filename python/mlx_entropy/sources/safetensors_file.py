"""Reads headers of safetensors files, and trusts nothing in them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .base import SourceError, quoted

LENGTH_BYTES = 8
# The safetensors library refuses longer headers, too.
_HEADER_LIMIT = 100_000_000
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes `[start, stop)` of the data of `file`."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, without their data.

    SourceError names the file unless every tensor lies inside of it, is as
    long as its shape says and overlaps no other.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(
                size - LENGTH_BYTES, _HEADER_LIMIT
            ):
                raise _damaged(path, "its header is truncated")
            text = file.read(length)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not valid JSON") from error
    if len(text) != length or not isinstance(content, dict):
        raise _damaged(path, "its header is not a JSON object")
    content.pop("__metadata__", None)
    tensors = {
        name: _tensor(path, name, entry) for name, entry in content.items()
    }
    _check_extents(path, tensors, size - LENGTH_BYTES - length)
    return tensors


def tensor_bytes(path: Path, stored: StoredTensor) -> np.ndarray:
    """The bytes of a tensor, uint8 [nbytes]; read when they are used."""
    if stored.nbytes == 0:
        return np.empty(0, np.uint8)
    return data_bytes(path)[stored.start : stored.stop]


def data_bytes(path: Path) -> np.ndarray:
    """Everything after the header, uint8 [bytes], mapped from the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    return np.memmap(path, np.uint8, "r")[LENGTH_BYTES + length :]


def _damaged(path: Path, reason: str) -> SourceError:
    return SourceError(f"{path} is damaged: {reason}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content


def _tensor(path: Path, name: str, entry: Any) -> StoredTensor:
    wrong = _damaged(path, f"the entry of tensor {quoted(name)} is wrong")
    if not isinstance(entry, dict):
        raise wrong
    dtype = entry.get("dtype")
    shape = _sizes(entry.get("shape"))
    offsets = _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None:
        raise wrong
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong
    found = StoredTensor(path.name, dtype, shape, *offsets)
    width = _DTYPE_BYTES.get(dtype)
    if width is not None and found.nbytes != math.prod(shape) * width:
        raise wrong
    return found


def _sizes(numbers: Any) -> tuple[int, ...] | None:
    """A list of integers that are not negative; None for anything else."""
    if not isinstance(numbers, list):
        return None
    if any(type(number) is not int or number < 0 for number in numbers):
        return None
    return tuple(numbers)


def _check_extents(
    path: Path, tensors: dict[str, StoredTensor], data_bytes: int
) -> None:
    previous = 0
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (item[1].start, item[1].stop)
    ):
        if tensor.stop > data_bytes:
            raise _damaged(
                path,
                f"tensor {quoted(name)} ends {tensor.stop - data_bytes} bytes "
                "after the end of the file",
            )
        if tensor.start < previous:
            raise _damaged(path, f"tensor {quoted(name)} overlaps another one")
        previous = tensor.stop
