"""Reads GGUF files: a checked header, and tensors one at a time.

`mx.load` also reads GGUF, but it needs write permission on the file, crashes
on some valid metadata (64-bit floats), turns types it does not know into
float16 and holds all tensors at once. This reader gives the same arrays, bit
for bit, for the types whose values MLX can hold exactly, and refuses others.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from .base import SourceError, quoted

GROUP_SIZE = 32
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

# Bytes that a tensor is decoded in: bounds the memory beside its arrays.
_CHUNK_BYTES = 8 << 20


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

_UNSUPPORTED_NAMES = {
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
_SCALARS = {
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


class GgufFile:
    """A GGUF file whose header was found valid.

    `metadata` maps keys to bool, int, float, str, list[str] or a 1-D numpy
    array; `tensors` maps names to entries in file order. `header_digest` is
    the SHA-256 of everything before the tensor data. Raises SourceError when
    the file is truncated, malformed or holds types MLX cannot represent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.size = status.st_size
                self.mtime_ns = status.st_mtime_ns
                header = _Header(path, file, self.size)
                header.parse()
                self.metadata = header.metadata
                self.tensors = header.tensors
                file.seek(0)
                content = file.read(min(header.data_start, self.size))
                self.header_digest = hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise SourceError(
                f"cannot read {path}: {error.strerror}"
            ) from error

    def refuse_unsupported_types(self) -> None:
        """Raises SourceError naming the types that MLX cannot represent."""
        counts = Counter(
            _UNSUPPORTED_NAMES.get(info.type, f"number {info.type}")
            for info in self.tensors.values()
            if info.type not in SUPPORTED
        )
        if counts:
            found = ", ".join(
                f"{name} ({count} tensor{'s' * (count > 1)})"
                for name, count in counts.most_common()
            )
            accepted = ", ".join(kind.name for kind in SUPPORTED.values())
            raise SourceError(
                f"{self.path}: unsupported tensor types {found}; supported: "
                f"{accepted} (choose a Q8_0 file, or a Q4_0 or Q4_1 file made "
                "with llama-quantize --pure)"
            )

    def read(self, info: TensorInfo) -> dict[str, mx.array]:
        """The arrays of one tensor, by MLX's parameter name.

        Plain types give "weight" alone, of shape `info.shape`. Quantized ones
        give "weight" (uint32 [..., columns * bits / 32]) with float16 "scales"
        and "biases" ([..., columns / 32]), such that a value is exactly
        code * scale + bias. Raises SourceError when the file has changed.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                unchanged = (self.size, self.mtime_ns)
                if (status.st_size, status.st_mtime_ns) != unchanged:
                    raise SourceError(f"{self.path} changed while being read")
                file.seek(info.offset)
                if info.format.bits == 0:
                    return {"weight": self._read_plain(file, info)}
                return self._read_quantized(file, info)
        except OSError as error:
            raise SourceError(
                f"cannot read {self.path}: {error.strerror}"
            ) from error

    def _read_plain(self, file: BinaryIO, info: TensorInfo) -> mx.array:
        dtype = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
        values = np.empty(info.shape, dtype[info.format.name])
        self._fill(file, values)
        array = mx.array(values)
        return array.view(mx.bfloat16) if info.format.name == "BF16" else array

    def _read_quantized(
        self, file: BinaryIO, info: TensorInfo
    ) -> dict[str, mx.array]:
        kind = info.format
        count = math.prod(info.shape) // GROUP_SIZE
        codes = np.empty((count, GROUP_SIZE * kind.bits // 8), np.uint8)
        scales = np.empty(count, np.float16)
        biases = np.empty(count, np.float16)
        step = _CHUNK_BYTES // kind.nbytes
        blocks = np.empty((min(step, count), kind.nbytes), np.uint8)
        for start in range(0, count, step):
            part = blocks[: min(step, count - start)]
            self._fill(file, part)
            there = slice(start, start + len(part))
            codes[there] = _mlx_codes(part, kind)
            scales[there] = part[:, 0:2].copy().view(np.float16)[:, 0]
            biases[there] = _biases(part, kind, scales[there])
        if np.any(np.isfinite(scales) & ~np.isfinite(biases)):
            # MLX has no zero point: the offset needs float16's range itself.
            raise SourceError(
                f"{self.path}: tensor {quoted(info.name)} has block scales "
                "too large for MLX's float16 biases"
            )
        *rows, columns = info.shape
        words = codes.view(np.uint32)
        return {
            "weight": mx.array(words.reshape(*rows, columns * kind.bits // 32)),
            "scales": mx.array(scales.reshape(*rows, columns // GROUP_SIZE)),
            "biases": mx.array(biases.reshape(*rows, columns // GROUP_SIZE)),
        }

    def _fill(self, file: BinaryIO, array: np.ndarray) -> None:
        """Reads exactly `array.nbytes` bytes into a C-contiguous `array`."""
        view = memoryview(array).cast("B")
        while view:
            count = file.readinto(view)
            if not count:
                raise SourceError(f"{self.path} ended while being read")
            view = view[count:]


def _mlx_codes(blocks: np.ndarray, kind: TensorType) -> np.ndarray:
    """Packed codes [blocks, bytes] in MLX's order: ascending, low bits first.

    ggml keeps values 0 to 15 in the low nibbles and 16 to 31 in the high ones,
    and 8-bit codes signed; MLX's codes are unsigned.
    """
    if kind.bits == 8:
        return blocks[:, 2:] ^ np.uint8(0x80)
    nibbles = blocks[:, kind.nbytes - 16 :]
    pairs = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    return pairs[:, 0::2] | (pairs[:, 1::2] << 4)


def _biases(
    blocks: np.ndarray, kind: TensorType, scales: np.ndarray
) -> np.ndarray:
    """The float16 value of code 0 in each block.

    Exact: a scale times a power of two, unless it overflows to infinity.
    """
    if kind.name == "Q4_1":
        return blocks[:, 2:4].copy().view(np.float16)[:, 0]
    zero_code = {"Q4_0": -8.0, "Q8_0": -128.0}[kind.name]
    with np.errstate(over="ignore"):
        return (scales.astype(np.float32) * np.float32(zero_code)).astype(
            np.float16
        )


class _Header:
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
        if self.size < 4 or self.take(4) != b"GGUF":
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

    def fail(self, reason: str) -> None:
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
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

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
        extents = []
        for entry in entries:
            name = quoted(entry.name)
            if entry.name in self.tensors:
                self.fail(f"tensor {name} appears twice")
            if entry.offset % alignment:
                self.fail(f"tensor {name} is not aligned to {alignment} bytes")
            info = TensorInfo(
                entry.name,
                entry.shape,
                entry.type,
                self.data_start + entry.offset,
            )
            self.tensors[info.name] = info
            # The sizes of types that will be refused anyway are not known.
            if info.type in SUPPORTED:
                if info.shape[-1] % info.format.values:
                    self.fail(
                        f"tensor {name}: {info.shape[-1]} columns are not "
                        f"whole {info.format.name} blocks"
                    )
                extents.append((info.offset, info.stored_nbytes, name))
            else:
                extents.append((info.offset, 0, name))
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
