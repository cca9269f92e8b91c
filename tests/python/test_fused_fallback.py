"""What is not fused takes mlx-lm's path; how models come to be fused."""

import copy
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from mlx_lm.models.llama import LlamaModel
from mlx_lm.tuner.utils import linear_to_lora_layers

import mlx_entropy
from helpers import llama
from mlx_entropy import _ext, fuse, unfuse
from mlx_entropy.nn.fused_llama import FusedLayers
from test_fused import TOKENS, coded, runs  # noqa: F401


@pytest.fixture
def falls_back(runs, relative_error):  # noqa: F811
    """The function gives the same with a fused model, but not by fusing."""

    def check(model, function):
        unfuse(model)
        expected = function(model)
        mx.eval(expected)
        assert fuse(model)
        assert relative_error(function(model), expected) < 1e-6
        assert not runs

    return check


def embeddings(model):
    return model.model.embed_tokens(TOKENS)


def gradient(model):
    x = embeddings(model)
    direction = mx.random.normal(x.shape, key=mx.random.key(3))

    def loss(x):
        return (model.model(TOKENS, input_embeddings=x) * direction).sum()

    return mx.grad(loss)(x)


def tangent(model):
    def hidden(x):
        return model.model(TOKENS, input_embeddings=x)

    x = embeddings(model)
    return mx.jvp(hidden, [x], [x])[1][0]


def vectorized(model):
    rows = mx.stack([TOKENS, TOKENS + 1]) % 300
    return mx.vmap(model)(rows)


@pytest.mark.parametrize("function", [gradient, tangent, vectorized])
def test_transformations(falls_back, function):
    falls_back(coded(), function)


def test_compiled(relative_error):
    model = coded()
    expected = model(TOKENS)
    assert relative_error(mx.compile(model)(TOKENS), expected) < 1e-3


def test_lora_of_the_embedding_alone(relative_error):
    """In evaluation mode, with all projections coded."""

    def gradients(model):
        settings = {"rank": 4, "scale": 2.0, "dropout": 0.0}
        keys = ["model.embed_tokens", "lm_head"]
        model.freeze()
        mx.random.seed(1)
        linear_to_lora_layers(model, 0, settings | {"keys": keys})
        for name, array in tree_flatten(model.trainable_parameters()):
            noise = mx.random.normal(array.shape) * 0.1
            model.load_weights([(name, noise)], strict=False)
        loss = nn.value_and_grad(model, lambda m: (m(TOKENS) ** 2).mean())
        return dict(tree_flatten(loss(model)[1]))

    found = gradients(coded())
    mx.random.seed(7)
    plain = coded()
    unfuse(plain)
    expected = gradients(plain)
    assert len(found) == 4
    for name, array in expected.items():
        assert relative_error(found[name], array) < 1e-3, name


def test_batches(falls_back):
    tokens = mx.concatenate([TOKENS, TOKENS + 1]) % 300
    falls_back(coded(), lambda model: model(tokens))


@pytest.mark.parametrize(
    "kind",
    [
        lambda: QuantizedKVCache(group_size=32),
        lambda: RotatingKVCache(max_size=8),
    ],
)
def test_other_caches(falls_back, kind):
    def logits(model):
        cache = [kind() for _ in model.layers]
        model(TOKENS, cache=cache)
        return model(TOKENS[:, :1], cache=cache)

    falls_back(coded(), logits)


def test_training(falls_back):
    model = coded()
    model.train()
    falls_back(model, lambda model: model(TOKENS))


def test_layers_that_are_not_coded(falls_back):
    model, _ = llama.build()
    mlx_entropy.entropy_quantize(
        model, lambda path, _: path != "model.layers.1.mlp.up_proj"
    )
    model.eval()
    falls_back(model, lambda model: model(TOKENS))


def test_sliding_windows(falls_back):
    model = coded(
        layer_types=["full_attention", "sliding_attention"], sliding_window=4
    )
    falls_back(model, lambda model: model(TOKENS))


def test_dynamic_rope(falls_back):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    falls_back(coded(rope_scaling=scaling), lambda model: model(TOKENS))


def test_norms_of_another_kind(falls_back):
    model = coded()
    model.model.norm = nn.LayerNorm(128)
    falls_back(model, lambda model: model(TOKENS))


def test_lora_after_the_first_call(runs, relative_error):  # noqa: F811
    model = coded()
    assert fuse(model)
    before = model(TOKENS)
    assert len(runs) == 1
    config = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, config)
    model.eval()
    assert relative_error(model(TOKENS), before) < 1e-5
    assert len(runs) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model, other: model.model.layers.__setitem__(
            1, other.model.layers[1]
        ),
        lambda model, other: model.update(other.parameters()),
        lambda model, other: setattr(
            model.model.layers[0].mlp,
            "up_proj",
            other.model.layers[0].mlp.up_proj,
        ),
        lambda model, other: setattr(
            model.model.layers[0].self_attn.k_proj,
            "bias",
            model.model.layers[0].self_attn.k_proj.bias + 1,
        ),
        lambda model, other: setattr(
            model.model.norm, "weight", 2 * model.model.norm.weight
        ),
    ],
)
def test_changed_weights_are_noticed(change, runs, relative_error):  # noqa: F811
    model, other = coded(), coded()
    assert fuse(model)
    before = model(TOKENS)
    change(model, other)
    after = model(TOKENS)
    assert len(runs) == 2
    assert relative_error(after, before) > 1e-3
    unfuse(model)
    assert relative_error(after, model(TOKENS)) < 1e-5


def test_parameters_stay_as_they_are():
    model = coded()
    before = dict(tree_flatten(model.parameters()))
    assert fuse(model)
    model(TOKENS)
    after = dict(tree_flatten(model.parameters()))
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_models_can_be_copied(runs):  # noqa: F811
    model = coded()
    assert fuse(model)
    expected = model(TOKENS)
    twin = copy.deepcopy(model)
    model.model.norm.weight = 0 * model.model.norm.weight
    assert mx.array_equal(twin(TOKENS), expected)
    assert len(runs) == 2


def test_weights_outlive_the_model():
    model = coded()
    assert fuse(model)
    expected = model(TOKENS)
    mx.eval(expected)
    hidden = model.model(TOKENS)
    head = model.lm_head
    del model
    assert mx.array_equal(head(hidden), expected)


@pytest.mark.parametrize("load", llama.ROUTES)
def test_loaded_models_are_fused(converted, load, runs):  # noqa: F811
    model, _ = load(converted[0])
    assert isinstance(model.model, FusedLayers)
    cache = make_prompt_cache(model)
    model(llama.TOKENS[:1], cache=cache)
    assert len(runs) == 1


def test_load_takes_a_switch(model, tmp_path, runs):  # noqa: F811
    mlx_entropy.convert(str(model), tmp_path / "coded")
    fused, _ = mlx_entropy.load(tmp_path / "coded")
    plain, _ = mlx_entropy.load(tmp_path / "coded", fused=False)
    assert isinstance(fused.model, FusedLayers)
    assert type(plain.model) is LlamaModel


def test_environment_switches_it_off(converted):
    script = (
        "import sys; from helpers import llama; from pathlib import Path\n"
        "model, _ = llama.load_registered(Path(sys.argv[1]))\n"
        "print(hasattr(model.model, 'stock'))"
    )
    import os

    for value, expected in (("0", "False"), ("1", "True")):
        environment = os.environ | {
            "MLX_ENTROPY_FUSED": value,
            "PYTHONPATH": str(llama.Path(__file__).parent),
        }
        output = subprocess.run(
            [sys.executable, "-c", script, str(converted[0])],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert output.stdout.strip() == expected


def test_coding_a_model_fuses_it(runs, relative_error):  # noqa: F811
    model, _ = llama.build()
    model.eval()
    expected = model(TOKENS)
    mx.eval(expected)
    mlx_entropy.entropy_quantize(model)
    assert relative_error(model(TOKENS), expected) < 1e-5
    assert len(runs) == 1


def test_other_architectures_stay():
    assert not fuse(nn.Linear(2, 2))


class TestDecoder:
    """`_ext.FusedLlama` says what does not fit."""

    @pytest.fixture
    def weights(self):
        stack = coded().model
        names = (
            *(f"self_attn.{n}_proj" for n in "qkvo"),
            *(f"mlp.{n}_proj" for n in ("gate", "up", "down")),
        )
        projections = []
        for layer in stack.layers:
            modules = dict(layer.named_modules())
            projections += [modules[name] for name in names]
        return {
            "coded": [module["coded"] for module in projections],
            "biases": [module.get("bias") for module in projections],
            "norms": [mx.ones((128,))] * 5,
            "head_norms": [],
            "inverse_frequencies": mx.ones((16,)),
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 32,
            "eps": 1e-5,
            "attention_scale": 0.2,
        }

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("coded", [], "expected 7 matrices"),
            ("coded", [mx.zeros((4,), mx.uint8)] * 14, "coded matrix"),
            ("coded", [mx.zeros((4,))] * 14, "uint8 vectors"),
            ("norms", [mx.ones((127,))] * 5, "expected"),
            ("norms", [mx.ones((1, 128))] * 5, "vectors of floats"),
            ("head_norms", [mx.ones((32,))] * 3, "2 head norms a layer"),
            ("head_norms", [mx.ones((31,))] * 4, "layer 0 head norm"),
            ("heads", 3, "multiple of kv_heads"),
            ("heads", 0, "must be positive"),
            ("head_dim", 16, "frequencies"),
            ("kv_heads", 1, r"layer 0 k: expected .* \(32, 128\)"),
        ],
    )
    def test_weights(self, weights, name, value, message):
        with pytest.raises(ValueError, match=message):
            _ext.FusedLlama(**weights | {name: value})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x": mx.zeros((2, 3, 128))}, "expected x"),
            ({"x": mx.zeros((1, 3, 64))}, "expected x"),
            ({"x": mx.zeros((1, 3, 128), mx.int32)}, "x must be"),
            ({"keys": []}, "expected keys and values"),
            ({"keys": [], "values": []}, "no room"),
            ({"capacity": 12}, "no room"),
            ({"offset": -1}, "no room"),
            ({"offset": 17, "capacity": 64}, "expected caches"),
            ({"keys": [mx.zeros((1, 2, 16, 16))] * 2}, "expected caches"),
            ({"keys": [mx.zeros((1, 2, 16, 32), mx.int8)] * 2}, "caches must"),
            ({"keys": [mx.zeros((1, 2, 16, 32), mx.float16)] * 2}, "same type"),
        ],
    )
    def test_arguments(self, weights, changes, message):
        decoder = _ext.FusedLlama(**weights)
        caches = [mx.zeros((1, 2, 16, 32))] * 2
        arguments = {
            "x": mx.zeros((1, 3, 128)),
            "keys": caches,
            "values": caches,
            "offset": 10,
            "capacity": 16,
        }
        mx.eval(decoder(**arguments)[0])
        with pytest.raises(ValueError, match=message):
            decoder(**arguments | changes)

    def test_strided_caches(self, weights):
        decoder = _ext.FusedLlama(**weights)
        x = mx.random.normal((1, 3, 128))
        dense = [mx.random.normal((1, 2, 16, 32)) for _ in range(2)]
        strided = [
            mx.contiguous(cache.swapaxes(1, 2)).swapaxes(1, 2)[..., :12, :]
            for cache in dense
        ]
        expected = decoder(x, dense, dense, 12, 16)
        actual = decoder(x, strided, strided, 12, 16)
        assert mx.array_equal(actual[0], expected[0])
        for a, b in zip(actual[1], expected[1], strict=True):
            assert mx.array_equal(a[..., :15, :], b[..., :15, :])
