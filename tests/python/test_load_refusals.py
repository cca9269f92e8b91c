"""Damaged and ill-fitting coded models are refused before a kernel runs."""

import json

import mlx.core as mx
import numpy as np
import pytest

import mlx_entropy
from helpers import llama
from mlx_entropy.model_format import CONFIG_KEY, FORMAT_VERSION

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(params=llama.ROUTES)
def load(request):
    return request.param


def test_missing_parameter(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    del weights["model.norm.weight"]
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        load(path)


def test_missing_coded_tensor(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    del weights[f"{UP}.coded"]
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=f"{UP}.weight"):
        load(path)


def test_missing_bias(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    del weights["model.layers.0.self_attn.q_proj.bias"]
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        load(path)


@pytest.mark.parametrize(
    "name", ["model.norm.extra", f"{UP}.scales", f"{UP}.bias"]
)
def test_extra_parameter(converted, load, name):
    path, _ = converted
    llama.save_weights(path, llama.weights_of(path) | {name: mx.zeros((3,))})
    with pytest.raises(ValueError, match=name):
        load(path)


@pytest.mark.parametrize(
    "name", ["model.nothing", "model.layers.9.mlp.up_proj", "model.layers"]
)
def test_coded_tensor_of_no_module(converted, load, name):
    path, _ = converted
    weights = llama.weights_of(path)
    weights[f"{name}.coded"] = weights[f"{UP}.coded"]
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=f"{name}.coded: .*no module"):
        load(path)


def test_coded_tensor_of_another_kind_of_module(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    weights["model.norm.coded"] = weights[f"{UP}.coded"]
    del weights["model.norm.weight"]
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=r"norm.coded: .*RMSNorm"):
        load(path)


def test_both_forms(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    weights[f"{UP}.weight"] = mx.zeros((192, 128))
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=f"both {UP}.weight"):
        load(path)


def test_another_shape(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    weights[f"{UP}.coded"] = weights["lm_head.coded"]
    llama.save_weights(path, weights)
    with pytest.raises(
        ValueError, match=rf"{UP}.coded: .*\(192, 128\).*\(300, 128\)"
    ):
        load(path)


def test_symbols(converted, load):
    path, _ = converted
    weights = llama.weights_of(path)
    symbols = mx.zeros((192, 128), mx.uint8)
    weights[f"{UP}.coded"] = mlx_entropy.entropy_encode(symbols)
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=f"{UP}.coded: .*symbols"):
        load(path)


@pytest.mark.parametrize("dtype", [mx.int8, mx.uint16, mx.float32])
def test_another_type(converted, load, dtype):
    path, _ = converted
    weights = llama.weights_of(path)
    weights[f"{UP}.coded"] = weights[f"{UP}.coded"].astype(dtype)
    llama.save_weights(path, weights)
    with pytest.raises(ValueError, match=f"{UP}.coded: .*uint8"):
        load(path)


def test_cut_short(converted, load):
    path, _ = converted
    whole = llama.weights_of(path)
    coded = whole[f"{UP}.coded"]
    for size in (0, 1, 16, 63, coded.size // 2, coded.size - 1):
        llama.save_weights(path, whole | {f"{UP}.coded": coded[:size]})
        with pytest.raises(ValueError, match=f"{UP}.coded"):
            load(path)


def test_every_kind_of_damage(converted, load):
    path, _ = converted
    whole = llama.weights_of(path)
    coded = np.array(whole[f"{UP}.coded"])
    places = np.random.default_rng(3).integers(0, coded.size, 40)
    for place in [*range(0, 64, 3), *places]:
        damaged = coded.copy()
        damaged[place] ^= 1 << (place % 8)
        weights = whole | {f"{UP}.coded": mx.array(damaged)}
        llama.save_weights(path, weights)
        with pytest.raises(ValueError, match=f"{UP}.coded"):
            load(path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_format_version(converted, load, version):
    path, _ = converted
    config = json.loads((path / "config.json").read_text())
    config[CONFIG_KEY]["format_version"] = version
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"format.version"):
        load(path)
