"""Codecs in memory: transcoding, choosing, and loading with each of them."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_entropy
from helpers import llama
from mlx_entropy import _ext

CODECS = ("rans", "tree", "flat", "auto")


@pytest.fixture(scope="module")
def stock():
    weights = mx.random.normal((256, 1024), key=mx.random.key(3)) * 0.02
    return mx.quantize(weights.astype(mx.float16), 64, 4)


@pytest.fixture(scope="module")
def coded(stock):
    return _ext.encode_affine(*stock, 64, 4)


def test_transcoding_is_lossless(coded, stock):
    for codec in CODECS:
        other = mlx_entropy.transcode(coded, codec)
        decoded = _ext.decode_affine(other)
        for mine, theirs in zip(decoded, stock, strict=True):
            assert mx.array_equal(mine, theirs)
        back = mlx_entropy.transcode(other, "rans")
        assert mx.array_equal(back, coded)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_floats_and_symbols_are_transcoded(dtype):
    weights = mx.random.normal((64, 256)).astype(dtype)
    tree = _ext.transcode(_ext.encode_float(weights), "tree")
    assert _ext.validate(tree).codec == "tree"
    assert mx.array_equal(_ext.decode_float(tree), weights)
    symbols = mx.random.randint(0, 7, (64, 100)).astype(mx.uint8)
    tree = _ext.transcode(_ext.entropy_encode(symbols), "tree")
    assert mx.array_equal(_ext.entropy_decode(tree), symbols)


def test_sizes_are_in_order(coded):
    sizes = [_ext.transcode(coded, codec).nbytes for codec in CODECS[:3]]
    assert sizes == sorted(sizes)
    assert sizes[2] < 256 * 1024 * 4.5 / 8  # of the stock layer
    free = _ext.transcode(coded, "tree", pass_cost=0.0)
    assert free.nbytes <= sizes[1]


def test_rate_of_trees():
    """Within 4 % of the entropy of the codes, from 2.5 to 3.8 bits."""
    random = np.random.default_rng(1)
    for deviation in (1.4, 1.7, 2.0, 2.4, 2.9, 3.3):
        codes = np.clip(
            random.normal(7.5, deviation, (512, 4096)).round(), 0, 15
        )
        coded = _ext.entropy_encode(mx.array(codes.astype(np.uint8)))
        tree = _ext.transcode(coded, "tree")
        entropy = _ext.plane_entropies(tree)["codes"]
        assert 2.4 < entropy < 3.85
        assert 8 * tree.nbytes / codes.size <= 1.04 * entropy


def test_products_of_all_codecs_agree(coded, relative_error):
    for batch in (1, 3, 17):
        x = mx.random.normal((batch, 1024))
        expected = _ext.entropy_coded_matmul(x, coded, 256)
        for codec in ("tree", "flat"):
            other = _ext.transcode(coded, codec)
            y = _ext.entropy_coded_matmul(x, other, 256)
            assert relative_error(y, expected) <= 1e-6


def test_codecs_are_ranked(coded):
    machine = _ext.machine_model()
    assert machine["target"] == _ext.target()
    for key, value in machine.items():
        assert key in ("target", "file") or value >= 0
    ranked = _ext.rank_codecs(coded)
    assert {choice.codec for choice in ranked} >= {"rans", "flat"}
    chosen = _ext.transcode(coded, "auto")
    bits = 8 * chosen.nbytes / (256 * 1024)
    assert ranked[0].bits_per_weight == pytest.approx(bits, rel=0.02)
    for choice in ranked:
        assert choice.nanoseconds_per_weight > 0
    floats = _ext.encode_float(mx.random.normal((64, 64)))
    assert [choice.codec for choice in _ext.rank_codecs(floats)] == ["rans"]
    assert mx.array_equal(_ext.transcode(floats, "auto"), floats)


def test_bad_arguments(coded):
    for codec, cost in (("zip", None), ("rans", 1.0), ("tree", -1.0)):
        with pytest.raises(ValueError, match=r"\[transcode\]"):
            _ext.transcode(coded, codec, pass_cost=cost)
    with pytest.raises(ValueError, match="invalid coded matrix"):
        _ext.transcode(mx.concatenate([coded[:999], coded[999:] * 0]))


@pytest.mark.parametrize("codec", CODECS)
def test_models_load_in_each_codec(
    converted, codec, monkeypatch, relative_error
):
    folder, expected = converted
    model, _ = load(folder, codec)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4
    layer = model.model.layers[0].mlp.down_proj
    names = {"rans": {"rans16", "rans32"}, "tree": {"tree"}, "flat": {"tree"}}
    if codec != "auto":
        assert layer.info.codec in names[codec]
    monkeypatch.setenv("MLX_ENTROPY_CODEC", codec)
    again, _ = load(folder, None)
    assert again.model.layers[0].mlp.down_proj.info.codec == layer.info.codec


def test_unknown_codec(converted, monkeypatch):
    folder, _ = converted
    with pytest.raises(ValueError, match="codec must be one of"):
        load(folder, "zip")
    monkeypatch.setenv("MLX_ENTROPY_CODEC", "zip")
    with pytest.raises(ValueError, match="codec must be one of"):
        load(folder, None)


def load(folder, codec):
    """`mlx_entropy.load` for a directory without a tokenizer."""
    from mlx_lm import utils

    from mlx_entropy import loading

    token = loading._codec.set(codec)
    try:
        if codec is not None:
            loading._check_codec(codec)
        with loading._wrapped():
            return utils.load_model(folder)
    finally:
        loading._codec.reset(token)
