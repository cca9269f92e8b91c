"""Arrays as bytes and as bit patterns, and the shape behind packed codes."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

# safetensors' names of the types that both it and MLX know.
DTYPE_NAMES: dict[mx.Dtype, str] = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
}

# The types of weights that can be coded.
FLOATS = (mx.float32, mx.float16, mx.bfloat16)

_UNSIGNED: dict[int, mx.Dtype] = {
    1: mx.uint8,
    2: mx.uint16,
    4: mx.uint32,
    8: mx.uint64,
}


def dtype_name(dtype: mx.Dtype) -> str:
    """`dtype` as people write it: "bfloat16", not "mlx.core.bfloat16"."""
    return str(dtype).rsplit(".", 1)[-1]


def dtype_named(name: str) -> mx.Dtype:
    """The type that safetensors calls `name`; ValueError for others."""
    for dtype, known in DTYPE_NAMES.items():
        if known == name:
            return dtype
    raise ValueError(f"MLX has no tensors of type {name}")


def as_bits(array: mx.array) -> mx.array:
    """`array` as unsigned integers of the same width, so NaNs compare."""
    if array.ndim == 0:
        array = array.reshape(1)
    return array.view(_UNSIGNED[array.dtype.size])


def as_bytes(array: mx.array) -> memoryview:
    """The little-endian bytes of `array` in row-major order, not copied."""
    flat = mx.contiguous(array).reshape(-1)
    # mx.array has the buffer protocol, which its type stubs do not say.
    return memoryview(flat.view(mx.uint8))  # type: ignore[arg-type]


def unpacked_shape(shape: Sequence[int], bits: int) -> tuple[int, ...]:
    """Shape in weights of codes that are packed into 32-bit words."""
    *rows, words = shape
    return (*rows, words * 32 // bits)


def bits_per_weight(nbytes: int, weights: int) -> float:
    """Stored bits a weight; 0 when there are no weights."""
    return 8 * nbytes / weights if weights else 0.0
