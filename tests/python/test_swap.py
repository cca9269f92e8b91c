"""entropy_quantize: which layers are swapped, and what is reported."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_entropy import (
    EntropyCodedEmbedding,
    EntropyCodedLinear,
    entropy_quantize,
)

DIMS = 128


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(DIMS, 2 * DIMS)
        self.down = nn.Linear(2 * DIMS, DIMS, bias=False)
        self.norm = nn.RMSNorm(DIMS)

    def __call__(self, x):
        return x + self.down(nn.silu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.embed = nn.Embedding(500, DIMS)
        self.blocks = [Block() for _ in range(depth)]
        self.heads = {"main": nn.Linear(DIMS, 200)}

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.heads["main"](x), self.embed.as_linear(x)


@pytest.fixture
def model():
    model = Model()
    # Uniform weights, which nn.Linear starts with, leave nothing to code.
    model.apply(lambda p: 0.1 * mx.random.normal(p.shape) if p.ndim == 2 else p)
    return model


@pytest.fixture
def close(relative_error):
    def close(outputs, expected):
        return all(
            relative_error(a, b) <= 2e-3
            for a, b in zip(outputs, expected, strict=True)
        )

    return close


TOKENS = mx.array([[1, 2, 3], [499, 0, 7]])
PATHS = {"embed", "heads.main"} | {
    f"blocks.{i}.{name}" for i in range(3) for name in ("up", "down")
}


def test_lossless(model, close):
    model.set_dtype(mx.bfloat16)
    model.apply(lambda p: p.astype(mx.float32))
    expected = model(TOKENS)
    report = entropy_quantize(model)
    assert report.keys() == PATHS
    assert isinstance(model.embed, EntropyCodedEmbedding)
    assert isinstance(model.heads["main"], EntropyCodedLinear)
    assert all(isinstance(b.down, EntropyCodedLinear) for b in model.blocks)
    assert isinstance(model.blocks[0].norm, nn.RMSNorm)
    for path, (kind, before, after) in report.items():
        assert kind == "coded", path
        assert after < before
    assert report["blocks.0.up"][1] == 2 * DIMS * DIMS * 4
    assert report.coded_bytes < report.source_bytes
    assert report.raw == {}
    assert close(model(TOKENS), expected)


def test_quantized_model(model, close):
    nn.quantize(model, bits=4)
    expected = model(TOKENS)
    report = entropy_quantize(model)
    assert report.keys() == PATHS
    assert report.raw == {}
    before = 2 * DIMS * DIMS * (4 + 2 * 32 / 64) / 8
    assert report["blocks.1.down"][1] == before
    assert model.blocks[2].up.info.scheme == "affine"
    assert close(model(TOKENS), expected)


def test_bits_quantizes_floats(model, close):
    reference = Model()
    reference.update(model.parameters())
    nn.quantize(reference, bits=3, group_size=32)
    report = entropy_quantize(model, bits=3, group_size=32)
    assert report.raw == {}
    info = model.heads["main"].info
    assert (info.scheme, info.bits, info.group_size) == ("affine", 3, 32)
    assert close(model(TOKENS), reference(TOKENS))


def test_predicate(model):
    seen = []

    def predicate(path, module):
        seen.append((path, type(module)))
        if path == "embed":
            return False
        return {"bits": 8} if path.endswith("up") else True

    report = entropy_quantize(model, predicate, bits=4, group_size=32)
    assert {path for path, _ in seen} == PATHS
    assert ("embed", nn.Embedding) in seen
    assert report["embed"] == ("raw", "excluded by class_predicate")
    assert type(model.embed) is nn.Embedding
    assert model.blocks[0].up.info.bits == 8
    assert model.blocks[0].up.info.group_size == 32
    assert model.blocks[0].down.info.bits == 4


def test_what_cannot_be_coded_is_reported():
    class Special(nn.Linear):
        pass

    model = nn.Module()
    model.special = Special(64, 64)
    model.fp4 = nn.Linear(64, 64).to_quantized(32, 4, "mxfp4")
    model.conv = nn.Conv2d(4, 4, 3)
    model.odd = nn.Linear(96, 64)
    model.integers = nn.Linear(64, 64)
    model.integers.weight = mx.zeros((64, 64), mx.int32)
    model.norm = nn.LayerNorm(64)
    modules = {path: model[path] for path in model.children()}
    report = entropy_quantize(model, bits=4)
    assert report.raw == {
        "special": "not a linear, embedding or expert layer",
        "fp4": "mode mxfp4 is not affine",
        "conv": "not a linear, embedding or expert layer",
        "odd": report.raw["odd"],
        "integers": "type int32",
    }
    assert "multiple of the group size 64" in report.raw["odd"]
    assert all(model[path] is module for path, module in modules.items())
    assert f"odd stays raw: {report.raw['odd']}" in str(report)


def test_what_does_not_shrink_stays():
    model = nn.Module()
    model.noise = nn.Linear(64, 64)
    # Every bit of these floats is random.
    noise = np.random.default_rng(7).bytes(64 * 64 * 4)
    words = mx.array(np.frombuffer(noise, np.uint32)).reshape(64, 64)
    model.noise.weight = words.view(mx.float32)
    layer = model.noise
    report = entropy_quantize(model)
    kind, reason = report["noise"]
    assert kind == "raw"
    assert reason == "not smaller coded"
    assert model.noise is layer


def test_shared_layer_stays_shared(model):
    model.blocks[1].up = model.blocks[0].up
    report = entropy_quantize(model)
    assert model.blocks[1].up is model.blocks[0].up
    assert report["blocks.1.up"] == report["blocks.0.up"]


def test_second_call_changes_nothing(model):
    first = entropy_quantize(model, bits=4)
    layer = model.blocks[0].up
    second = entropy_quantize(model, bits=4)
    assert model.blocks[0].up is layer
    assert second.keys() == first.keys()
    for path, (kind, before, after) in second.items():
        assert kind == "coded"
        assert before <= first[path][1]
        assert after == first[path][2]


def test_summary(model):
    report = entropy_quantize(model)
    assert str(report) == (
        f"8 layers coded: {report.source_bytes} -> {report.coded_bytes} bytes"
    )


def test_errors(model):
    with pytest.raises(ValueError, match="bits"):
        entropy_quantize(model, bits=7)
    with pytest.raises(ValueError, match="group_size"):
        entropy_quantize(model, bits=4, group_size=48)
    with pytest.raises(ValueError, match="a bool or a dict, got str"):
        entropy_quantize(model, lambda path, module: "yes")
    with pytest.raises(ValueError, match="mode"):
        entropy_quantize(model, lambda path, module: {"mode": "mxfp4"})
    assert type(model.embed) is nn.Embedding
