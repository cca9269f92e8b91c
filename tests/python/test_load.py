"""Converted directories through mlx-lm: both routes, and what they give."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.models import llama as stock_llama

import mlx_entropy
from helpers import llama, tiny
from mlx_entropy import EntropyCodedEmbedding, EntropyCodedLinear
from mlx_entropy.loading import model_classes
from mlx_entropy.model_format import CONFIG_KEY, FORMAT_VERSION, MODEL_FILE


@pytest.mark.parametrize("route", llama.ROUTES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "quantization", [None, {"group_size": 32, "bits": 3}], ids=["float", "q3"]
)
def test_logits(route, tied, quantization, tmp_path, relative_error):
    stock, config = llama.build(quantization, tie_word_embeddings=tied)
    expected = stock(llama.TOKENS)
    mx.eval(expected)
    path = llama.save_coded(tmp_path / "model", stock, config)
    model, loaded = route(path)
    assert isinstance(model, stock_llama.Model)
    assert isinstance(model.model.embed_tokens, EntropyCodedEmbedding)
    assert isinstance(model.model.layers[0].mlp.up_proj, EntropyCodedLinear)
    assert ("lm_head" in model) is not tied
    assert "bias" in model.model.layers[0].self_attn.q_proj
    assert not model.training
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4
    assert loaded["model_file"] == MODEL_FILE


@pytest.mark.parametrize("route", llama.ROUTES)
def test_weights_are_bit_identical(route, tmp_path, same_bits):
    stock, config = llama.build({"group_size": 64, "bits": 4}, mx.bfloat16)
    expected = dict(tree_flatten(stock.parameters()))
    path = llama.save_coded(tmp_path / "model", stock, config)
    model, _ = route(path)
    for name, module in model.named_modules():
        if isinstance(module, EntropyCodedLinear | EntropyCodedEmbedding):
            back = dict(tree_flatten(module.decode().parameters()))
            for key, array in back.items():
                assert same_bits(array, expected.pop(f"{name}.{key}"))
    rest = dict(tree_flatten(model.parameters()))
    assert all(same_bits(rest[key], expected[key]) for key in expected)


@pytest.mark.parametrize("route", llama.ROUTES)
def test_layers_that_stay_stock(route, tmp_path, relative_error):
    quantization = {"group_size": 64, "bits": 4, "mode": "affine"}
    stock, config = llama.build(quantization)
    expected = stock(llama.TOKENS)
    mx.eval(expected)
    path = llama.save_coded(
        tmp_path / "model",
        stock,
        config,
        predicate=lambda path, _: "mlp" not in path,
    )
    model, _ = route(path)
    mlp = model.model.layers[0].mlp
    assert type(mlp.up_proj) is nn.QuantizedLinear
    assert isinstance(model.lm_head, EntropyCodedLinear)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4


def test_cache_and_steps(converted, relative_error):
    path, expected = converted
    model, _ = llama.load_registered(path)
    cache = model.make_cache()
    steps = [model(llama.TOKENS[:, i : i + 1], cache) for i in range(5)]
    logits = mx.concatenate(steps, axis=1)
    assert relative_error(logits, expected) <= 1e-4


def test_model_class_looks_like_the_stock_one(converted):
    path, _ = converted
    config = json.loads((path / "config.json").read_text())
    model_class, args_class = model_classes(config)
    assert args_class is stock_llama.ModelArgs
    assert issubclass(model_class, stock_llama.Model)
    assert model_class is model_classes(config)[0]
    assert model_class.__module__ == stock_llama.Model.__module__
    assert model_class.__name__ == "Model"


def test_mlx_lm_utilities(converted, tmp_path):
    path, expected = converted
    model, config = llama.load_registered(path)
    assert utils.get_total_parameters(model) > 0
    assert utils.compute_bits_per_weight(model) > 0
    assert utils.does_model_support_input_embeddings(model)
    again = tmp_path / "again"
    llama.save(again, model, config)
    model, _ = utils.load_model(again)
    assert mx.allclose(model(llama.TOKENS), expected, atol=1e-3, rtol=1e-3)


class TestLoad:
    def test_model_and_tokenizer(self, converted, relative_error):
        path, expected = converted
        tiny.write_tokenizer(path)
        stock = utils.load_model
        model, tokenizer = mlx_entropy.load(path)
        assert utils.load_model is stock
        assert len(tokenizer.encode("two words")) == 9
        assert relative_error(model(llama.TOKENS), expected) <= 1e-4
        _, _, config = mlx_entropy.load(str(path), return_config=True)
        assert config[CONFIG_KEY]["format_version"] == FORMAT_VERSION

    def test_keeps_a_registration(self, converted):
        path, _ = converted
        tiny.write_tokenizer(path)
        mlx_entropy.register()
        wrapped = utils.load_model
        mlx_entropy.load(path)
        assert utils.load_model is wrapped

    @pytest.mark.parametrize("trusted", [False, True])
    def test_generates_like_stock(self, trusted, tmp_path):
        model, config = llama.build({"group_size": 64, "bits": 4})
        stock, path = tmp_path / "stock", tmp_path / "converted"
        llama.save(stock, model, config)
        llama.save_coded(path, model, config)
        tiny.write_tokenizer(stock)
        tiny.write_tokenizer(path)

        def text(model, tokenizer):
            return mlx_lm.generate(model, tokenizer, "a cat", max_tokens=8)

        expected = text(*mlx_lm.load(str(stock)))
        if trusted:
            assert text(*mlx_lm.load(path, trust_remote_code=True)) == expected
        else:
            assert text(*mlx_entropy.load(path)) == expected
