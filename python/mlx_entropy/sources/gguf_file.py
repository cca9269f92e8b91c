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
from collections import Counter
from io import RawIOBase
from pathlib import Path

import mlx.core as mx
import numpy as np

from .base import SourceError, quoted
from .gguf_header import (
    GROUP_SIZE,
    SUPPORTED,
    UNSUPPORTED_NAMES,
    GgufHeader,
    TensorInfo,
    TensorType,
)

# Bytes that a tensor is decoded in: bounds the memory beside its arrays.
_CHUNK_BYTES = 8 << 20


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
                header = GgufHeader(path, file, self.size)
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
            UNSUPPORTED_NAMES.get(info.type, f"number {info.type}")
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

    def _read_plain(self, file: RawIOBase, info: TensorInfo) -> mx.array:
        dtype = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
        values = np.empty(info.shape, dtype[info.format.name])
        self._fill(file, values)
        array = mx.array(values)
        return array.view(mx.bfloat16) if info.format.name == "BF16" else array

    def _read_quantized(
        self, file: RawIOBase, info: TensorInfo
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

    def _fill(self, file: RawIOBase, array: np.ndarray) -> None:
        """Reads exactly `array.nbytes` bytes into a C-contiguous `array`."""
        view = array.data.cast("B")
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
