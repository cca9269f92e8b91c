"""Fixtures shared by the tests of the Python package."""

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import utils

import mlx_entropy
from benchmarks.llama_cpp import find_llama_cpp
from helpers import llama, peers, tiny


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """What tests measure while others run is not kept for the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(7)


@pytest.fixture(autouse=True)
def stock_mlx_lm():
    """No test leaves mlx-lm patched."""
    stock = utils.load_model
    yield
    mlx_entropy.unregister()
    assert utils.load_model is stock


@pytest.fixture
def model(tmp_path):
    """A quantized llama directory with a tokenizer."""
    folder = tmp_path / "model"
    tiny.write_model(folder, quantization=tiny.affine(4))
    tiny.write_tokenizer(folder)
    return folder


@pytest.fixture
def converted(tmp_path):
    """A coded llama directory, and the stock model's logits."""
    model, config = llama.build({"group_size": 64, "bits": 4})
    logits = model(llama.TOKENS)
    mx.eval(logits)
    return llama.save_coded(tmp_path / "converted", model, config), logits


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


@pytest.fixture
def llama_cpp(tmp_path):
    """Stand-ins for llama.cpp's programs."""
    folder = tmp_path / "llama.cpp" / "bin"
    peers.program(folder, "ggml-peer", peers.GGML_PEER)
    peers.program(folder, "llama-bench", f"print('''{peers.RECORDED}''')")
    (folder / "VERSION").write_text("llama.cpp 1.2.3\n")
    return find_llama_cpp(tmp_path / "llama.cpp")


@pytest.fixture(scope="session")
def real_llama():
    """llama.cpp, where it has been built."""
    root = Path(__file__).parents[2] / "build" / "llama.cpp"
    found = find_llama_cpp(os.environ.get("MLX_ENTROPY_LLAMA_CPP", root))
    if found is None:
        pytest.skip("scripts/build_llama_cpp.sh has not been run")
    return found
