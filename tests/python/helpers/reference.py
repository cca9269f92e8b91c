"""The reference decoder and encoder, and the library in their terms."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_entropy import _ext

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests" / "vectors"
sys.path.append(str(ROOT / "tests" / "reference"))

import decode  # noqa: E402
import encode  # noqa: E402

WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}

__all__ = ["decode", "encode"]


def to_array(data):
    return mx.array(np.frombuffer(data, dtype=np.uint8))


def to_bytes(coded):
    return np.array(coded).tobytes()


def bits(array):
    """An mx.array as a numpy array of bit patterns."""
    return np.array(array.view(WORDS[array.dtype.size]))


def float_array(patterns, dtype):
    """An mx.array of a float type from bit patterns."""
    words = np.uint32 if dtype == mx.float32 else np.uint16
    return mx.array(np.asarray(patterns).astype(words)).view(dtype)


def pack_codes(codes, width):
    """MLX's packing: `width` bits each, lowest first, in uint32 words."""
    planes = np.asarray(codes, np.uint8)[..., None] >> np.arange(width)
    packed = np.packbits(
        (planes & 1).astype(np.uint8).reshape(len(codes), -1),
        axis=1,
        bitorder="little",
    )
    return mx.array(packed.view(np.uint32))


def unpack_codes(packed, width):
    data = np.array(packed).view(np.uint8)
    ones = np.unpackbits(data, axis=1, bitorder="little")
    ones = ones.reshape(len(data), ones.shape[1] // width, width)
    return (ones << np.arange(width, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def library_arrays(coded, **rows):
    """What the library decodes, as the reference decoder's `arrays`."""
    info = _ext.describe(coded)
    if info.scheme == "symbols":
        return {"symbols": np.array(_ext.entropy_decode(coded, **rows))}
    if info.scheme == "float":
        return {"floats": bits(_ext.decode_float(coded, **rows))}
    packed, scales, biases = _ext.decode_affine(coded, **rows)
    return {
        "codes": unpack_codes(packed, info.bits),
        "scales": bits(scales),
        "biases": bits(biases),
    }


def assert_same_arrays(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
