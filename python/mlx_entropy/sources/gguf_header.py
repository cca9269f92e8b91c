"""Parses the header of a GGUF file, never trusting what it says."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from .base import SourceError, quoted

GGUF_MAGIC = b"GGUF"
"""The first bytes of every GGUF file."""

GROUP_SIZE = 32
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorType:
    """A ggml type: `values` weights are stored in a block of `nbytes`.

    `bits` is the width of MLX's affine codes, 0 for plain floating point.
    """

    name: str
    values: int
    nbytes: int
    bits: int = 0


SUPPORTED = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", GROUP_SIZE, 18, bits=4),
    3: TensorType("Q4_1", GROUP_SIZE, 20, bits=4),
    8: TensorType("Q8_0", GROUP_SIZE, 34, bits=8),
    30: TensorType("BF16", 1, 2),
}

UNSUPPORTED_NAMES = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}

# GGUF metadata value types with a fixed size.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header. `shape` is in row-major order.

    `offset` counts bytes from the start of the file; `type` is ggml's number.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def format(self) -> TensorType:
        return SUPPORTED[self.type]

    @property
    def stored_nbytes(self) -> int:
        """Bytes in the file."""
        blocks = math.prod(self.shape) // self.format.values
        return blocks * self.format.nbytes

    @property
    def array_nbytes(self) -> int:
        """Bytes of the MLX arrays that `GgufFile.read` returns."""
        values = math.prod(self.shape)
        if self.format.bits == 0:
            return values * self.format.nbytes
        return values * self.format.bits // 8 + values // GROUP_SIZE * 4


class GgufHeader:
    """Parses a GGUF header, never trusting a count, length or offset."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.position = 0
        self.data_start = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}

    def parse(self) -> None:
        if self.size < 4 or self.take(4) != GGUF_MAGIC:
            raise SourceError(f"{self.path} is not a GGUF file")
        version = self.number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            found = f"version {version}"
            if swapped in (2, 3):
                found = f"big-endian version {swapped}"
            raise SourceError(
                f"{self.path}: GGUF {found} is not supported (versions 2 and 3 "
                "are, little-endian)"
            )
        tensor_count = self.number("<Q")
        pair_count = self.number("<Q")
        self.check_count(pair_count, 8 + 4 + 1, "metadata entries")
        for _ in range(pair_count):
            key = self.string()
            if key in self.metadata:
                self.fail(f"metadata key {quoted(key)} appears twice")
            self.metadata[key] = self.value(self.number("<I"))
        self.check_count(tensor_count, 8 + 4 + 4 + 8, "tensors")
        entries = [self.tensor() for _ in range(tensor_count)]
        self.place(entries)

    def fail(self, reason: str) -> NoReturn:
        raise SourceError(f"{self.path}: invalid GGUF file: {reason}")

    def check_count(self, count: int, least: int, what: str) -> None:
        """Fails when `count` items of `least` bytes cannot be in the file."""
        if count * least > self.size - self.position:
            self.fail(f"{count} {what} do not fit in the file")

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            self.fail(f"truncated at byte {self.size}, or a length is wrong")
        data = self.file.read(count)
        if len(data) != count:
            self.fail(f"truncated at byte {self.position + len(data)}")
        self.position += count
        return data

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def string(self) -> str:
        length = self.number("<Q")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.fail(f"text at byte {self.position - length} is not UTF-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            self.fail(f"metadata type {kind} is unknown")
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def array(self) -> list[str] | np.ndarray:
        kind = self.number("<I")
        count = self.number("<Q")
        if kind == _STRING:
            self.check_count(count, 8, "strings")
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            self.fail(f"metadata arrays of type {kind} are not supported")
        dtype = _SCALARS[kind]
        self.check_count(count, dtype.itemsize, "array elements")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor(self) -> TensorInfo:
        """One entry, its offset still relative to the data section."""
        name = self.string()
        dimensions = self.number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(f"tensor {quoted(name)} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        if 0 in shape:
            self.fail(f"tensor {quoted(name)} is empty")
        kind = self.number("<I")
        return TensorInfo(name, shape[::-1], kind, self.number("<Q"))

    def place(self, entries: list[TensorInfo]) -> None:
        """Fills `tensors` after checking where each one's data lies."""
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or alignment < 1
            or alignment & (alignment - 1)
        ):
            self.fail("general.alignment is not a power of two")
        self.data_start = -(-self.position // alignment) * alignment
        for entry in entries:
            name = quoted(entry.name)
            if entry.name in self.tensors:
                self.fail(f"tensor {name} appears twice")
            if entry.offset % alignment:
                self.fail(f"tensor {name} is not aligned to {alignment} bytes")
            self.tensors[entry.name] = replace(
                entry, offset=self.data_start + entry.offset
            )
        self.check_extents()

    def check_extents(self) -> None:
        extents = [
            (info.offset, self.stored_nbytes(info), quoted(info.name))
            for info in self.tensors.values()
        ]
        end = self.data_start
        for offset, length, name in sorted(extents):
            if offset < end:
                self.fail(f"tensor {name} overlaps another one")
            if offset + length > self.size:
                self.fail(
                    f"truncated: tensor {name} ends at byte {offset + length}"
                    f" of {self.size}"
                )
            end = offset + length

    def stored_nbytes(self, info: TensorInfo) -> int:
        """Bytes of a tensor; 0 for types that will be refused anyway."""
        if info.type not in SUPPORTED:
            return 0
        if info.shape[-1] % info.format.values:
            self.fail(
                f"tensor {quoted(info.name)}: {info.shape[-1]} columns are "
                f"not whole {info.format.name} blocks"
            )
        return info.stored_nbytes
