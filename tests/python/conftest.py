"""Fixtures shared by the tests of the Python package."""

import mlx.core as mx
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(7)


@pytest.fixture
def float64():
    """An mx.array of any float type -> numpy float64."""
    return lambda array: np.array(array.astype(mx.float32), dtype=np.float64)


@pytest.fixture
def relative_error(float64):
    """``|actual - expected| / |expected|`` in the L2 norm."""

    def error(actual, expected):
        if isinstance(actual, mx.array):
            actual = float64(actual)
        if isinstance(expected, mx.array):
            expected = float64(expected)
        assert actual.shape == expected.shape
        return np.linalg.norm(actual - expected) / np.linalg.norm(expected)

    return error


@pytest.fixture
def same_bits():
    """Whether two arrays have equal types, shapes and bits (NaN included)."""

    def same(a, b):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[a.dtype.size]
        return mx.array_equal(a.view(words), b.view(words)).item()

    return same
