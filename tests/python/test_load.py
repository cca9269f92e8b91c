"""Converted directories through mlx-lm: the routes in, and what is refused."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.models import llama

import mlx_entropy
from helpers.tiny import write_tokenizer
from mlx_entropy import EntropyCodedEmbedding, EntropyCodedLinear
from mlx_entropy.loading import model_classes
from mlx_entropy.model_format import (
    CONFIG_KEY,
    FORMAT_VERSION,
    MODEL_FILE_SOURCE,
)

CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
MODEL_FILE = "mlx_entropy_model.py"
TOKENS = mx.array([[5, 299, 0, 17, 17], [1, 2, 3, 4, 250]])
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(autouse=True)
def stock_mlx_lm():
    stock = utils.load_model
    yield
    mlx_entropy.unregister()
    assert utils.load_model is stock


def stock_model(quantization=None, dtype=mx.float32, **changes):
    config = CONFIG | changes
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.apply(
        lambda p: (
            0.05 * mx.random.normal(p.shape) if p.ndim == 2 else p
        ).astype(dtype)
    )
    if quantization:
        nn.quantize(model, **quantization)
        config["quantization"] = quantization
    mx.eval(model.parameters())
    return model, config


def write(path, weights, config, model_file=MODEL_FILE_SOURCE):
    path.mkdir(exist_ok=True)
    config = config | {CONFIG_KEY: {"format_version": FORMAT_VERSION}}
    if model_file is not None:
        config["model_file"] = MODEL_FILE
        (path / MODEL_FILE).write_text(model_file)
    (path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path


def convert(path, model, config, predicate=None, **kwargs):
    report = mlx_entropy.entropy_quantize(model, predicate)
    if not report.raw:
        config = {k: v for k, v in config.items() if k != "quantization"}
    return write(path, dict(tree_flatten(model.parameters())), config, **kwargs)


def weights_of(path):
    return dict(mx.load(str(path / "model.safetensors")))


def save_weights(path, weights):
    mx.eval(weights)
    mx.save_safetensors(str(path / "model.safetensors"), weights)


@pytest.fixture
def converted(tmp_path):
    model, config = stock_model({"group_size": 64, "bits": 4})
    logits = model(TOKENS)
    mx.eval(logits)
    return convert(tmp_path / "converted", model, config), logits


def load_registered(path):
    mlx_entropy.register()
    return utils.load_model(path)


def load_model_file(path):
    return utils.load_model(path, trust_remote_code=True)


ROUTES = [load_registered, load_model_file]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "quantization", [None, {"group_size": 32, "bits": 3}], ids=["float", "q3"]
)
def test_logits(route, tied, quantization, tmp_path, relative_error):
    stock, config = stock_model(quantization, tie_word_embeddings=tied)
    expected = stock(TOKENS)
    mx.eval(expected)
    path = convert(tmp_path / "model", stock, config)
    model, loaded = route(path)
    assert isinstance(model, llama.Model)
    assert isinstance(model.model.embed_tokens, EntropyCodedEmbedding)
    assert isinstance(model.model.layers[0].mlp.up_proj, EntropyCodedLinear)
    assert ("lm_head" in model) is not tied
    assert "bias" in model.model.layers[0].self_attn.q_proj
    assert not model.training
    assert relative_error(model(TOKENS), expected) <= 1e-4
    assert loaded["model_file"] == MODEL_FILE


@pytest.mark.parametrize("route", ROUTES)
def test_weights_are_bit_identical(route, tmp_path, same_bits):
    stock, config = stock_model({"group_size": 64, "bits": 4}, mx.bfloat16)
    expected = dict(tree_flatten(stock.parameters()))
    path = convert(tmp_path / "model", stock, config)
    model, _ = route(path)
    for name, module in model.named_modules():
        if isinstance(module, EntropyCodedLinear | EntropyCodedEmbedding):
            back = dict(tree_flatten(module.decode().parameters()))
            for key, array in back.items():
                assert same_bits(array, expected.pop(f"{name}.{key}"))
    rest = dict(tree_flatten(model.parameters()))
    assert all(same_bits(rest[key], expected[key]) for key in expected)


@pytest.mark.parametrize("route", ROUTES)
def test_layers_that_stay_stock(route, tmp_path, relative_error):
    quantization = {"group_size": 64, "bits": 4, "mode": "affine"}
    stock, config = stock_model(quantization)
    expected = stock(TOKENS)
    mx.eval(expected)
    path = convert(
        tmp_path / "model",
        stock,
        config,
        predicate=lambda path, _: "mlp" not in path,
    )
    model, _ = route(path)
    mlp = model.model.layers[0].mlp
    assert type(mlp.up_proj) is nn.QuantizedLinear
    assert isinstance(model.lm_head, EntropyCodedLinear)
    assert relative_error(model(TOKENS), expected) <= 1e-4


def test_cache_and_steps(converted, relative_error):
    path, expected = converted
    model, _ = load_registered(path)
    cache = model.make_cache()
    steps = [model(TOKENS[:, i : i + 1], cache) for i in range(5)]
    logits = mx.concatenate(steps, axis=1)
    assert relative_error(logits, expected) <= 1e-4


def test_model_class_looks_like_the_stock_one(converted):
    path, _ = converted
    config = json.loads((path / "config.json").read_text())
    model_class, args_class = model_classes(config)
    assert args_class is llama.ModelArgs
    assert issubclass(model_class, llama.Model)
    assert model_class is model_classes(config)[0]
    assert model_class.__module__ == llama.Model.__module__
    assert model_class.__name__ == "Model"


def test_mlx_lm_utilities(converted, tmp_path):
    path, expected = converted
    model, config = load_registered(path)
    assert utils.get_total_parameters(model) > 0
    assert utils.compute_bits_per_weight(model) > 0
    assert utils.does_model_support_input_embeddings(model)
    again = tmp_path / "again"
    utils.save_model(again, model)
    utils.save_config(config, again / "config.json")
    model, _ = utils.load_model(again)
    assert mx.allclose(model(TOKENS), expected, atol=1e-3, rtol=1e-3)


class TestRegistration:
    def test_is_idempotent(self, converted):
        path, _ = converted
        stock = utils.load_model
        mlx_entropy.unregister()
        mlx_entropy.register()
        wrapped = utils.load_model
        assert wrapped is not stock
        mlx_entropy.register()
        assert utils.load_model is wrapped
        mlx_entropy.unregister()
        assert utils.load_model is stock
        mlx_entropy.unregister()
        assert utils.load_model is stock
        with pytest.raises(ValueError, match="trust_remote_code"):
            utils.load_model(path)

    def test_runs_no_code_of_the_model(self, tmp_path):
        model, config = stock_model()
        path = convert(
            tmp_path / "model", model, config, model_file="raise SystemExit"
        )
        load_registered(path)
        mlx_entropy.unregister()
        with pytest.raises(SystemExit):
            load_model_file(path)

    def test_works_without_a_model_file(self, tmp_path):
        model, config = stock_model()
        path = convert(tmp_path / "model", model, config, model_file=None)
        _, loaded = load_registered(path)
        assert "model_file" not in loaded

    def test_passes_other_models_through(self, tmp_path):
        model, config = stock_model(num_hidden_layers=1)
        utils.save_model(tmp_path, model)
        utils.save_config(config, tmp_path / "config.json")
        calls = []

        def classes(config):
            calls.append(config)
            return llama.Model, llama.ModelArgs

        mlx_entropy.register()
        loaded, config = utils.load_model(
            tmp_path,
            True,
            strict=False,
            model_config={"rope_theta": 5.0},
            get_model_classes=classes,
        )
        assert type(loaded) is llama.Model
        assert (config["rope_theta"], len(calls)) == (5.0, 1)
        assert "model_file" not in config

    def test_errors_of_mlx_lm_stay_its_own(self, tmp_path):
        mlx_entropy.register()
        with pytest.raises(FileNotFoundError):
            utils.load_model(tmp_path)
        with pytest.raises(TypeError):
            utils.load_model(tmp_path, no_such_argument=1)

    def test_merges_the_callers_arguments(self, converted):
        path, _ = converted
        seen = []

        class Mine(llama.Model):
            pass

        def classes(config):
            seen.append(config["rope_theta"])
            return Mine, llama.ModelArgs

        mlx_entropy.register()
        model, config = utils.load_model(
            path,
            lazy=True,
            model_config={"rope_theta": 7.0},
            get_model_classes=classes,
        )
        assert isinstance(model, Mine)
        assert (seen, config["rope_theta"]) == ([7.0], 7.0)
        assert isinstance(model.lm_head, EntropyCodedLinear)

    @pytest.mark.parametrize("updated", [(), functools.WRAPPER_UPDATES])
    def test_under_another_wrapper(self, converted, updated, relative_error):
        path, expected = converted
        stock = utils.load_model
        mlx_entropy.register()
        ours = utils.load_model

        @functools.wraps(ours, updated=updated)
        def other(*args, **kwargs):
            return ours(*args, **kwargs)

        utils.load_model = other
        mlx_entropy.register()
        model, _ = utils.load_model(path)
        assert relative_error(model(TOKENS), expected) <= 1e-4
        mlx_entropy.unregister()
        assert utils.load_model is other
        with pytest.raises(ValueError, match="trust_remote_code"):
            utils.load_model(path)
        utils.load_model = stock


class TestLoad:
    def test_model_and_tokenizer(self, converted, relative_error):
        path, expected = converted
        write_tokenizer(path)
        stock = utils.load_model
        model, tokenizer = mlx_entropy.load(path)
        assert utils.load_model is stock
        assert len(tokenizer.encode("two words")) == 9
        assert relative_error(model(TOKENS), expected) <= 1e-4
        _, _, config = mlx_entropy.load(str(path), return_config=True)
        assert config[CONFIG_KEY]["format_version"] == FORMAT_VERSION

    def test_keeps_a_registration(self, converted):
        path, _ = converted
        write_tokenizer(path)
        mlx_entropy.register()
        wrapped = utils.load_model
        mlx_entropy.load(path)
        assert utils.load_model is wrapped

    @pytest.mark.parametrize("trusted", [False, True])
    def test_generates_like_stock(self, trusted, tmp_path):
        model, config = stock_model({"group_size": 64, "bits": 4})
        stock, path = tmp_path / "stock", tmp_path / "converted"
        utils.save_model(stock, model)
        utils.save_config(dict(config), stock / "config.json")
        convert(path, model, config)
        write_tokenizer(stock)
        write_tokenizer(path)

        def text(model, tokenizer):
            return mlx_lm.generate(model, tokenizer, "a cat", max_tokens=8)

        expected = text(*mlx_lm.load(str(stock)))
        if trusted:
            assert text(*mlx_lm.load(path, trust_remote_code=True)) == expected
        else:
            assert text(*mlx_entropy.load(path)) == expected


class TestRefusal:
    @pytest.fixture(params=ROUTES)
    def load(self, request):
        return request.param

    def test_missing_parameter(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        del weights["model.norm.weight"]
        save_weights(path, weights)
        with pytest.raises(ValueError, match=r"model\.norm\.weight"):
            load(path)

    def test_missing_coded_tensor(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        del weights[f"{UP}.coded"]
        save_weights(path, weights)
        with pytest.raises(ValueError, match=f"{UP}.weight"):
            load(path)

    def test_missing_bias(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        del weights["model.layers.0.self_attn.q_proj.bias"]
        save_weights(path, weights)
        with pytest.raises(ValueError, match=r"q_proj\.bias"):
            load(path)

    @pytest.mark.parametrize(
        "name", ["model.norm.extra", f"{UP}.scales", f"{UP}.bias"]
    )
    def test_extra_parameter(self, converted, load, name):
        path, _ = converted
        save_weights(path, weights_of(path) | {name: mx.zeros((3,))})
        with pytest.raises(ValueError, match=name):
            load(path)

    @pytest.mark.parametrize(
        "name", ["model.nothing", "model.layers.9.mlp.up_proj", "model.layers"]
    )
    def test_coded_tensor_of_no_module(self, converted, load, name):
        path, _ = converted
        weights = weights_of(path)
        weights[f"{name}.coded"] = weights[f"{UP}.coded"]
        save_weights(path, weights)
        with pytest.raises(ValueError, match=f"{name}.coded: .*no module"):
            load(path)

    def test_coded_tensor_of_another_kind_of_module(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        weights["model.norm.coded"] = weights[f"{UP}.coded"]
        del weights["model.norm.weight"]
        save_weights(path, weights)
        with pytest.raises(ValueError, match=r"norm.coded: .*RMSNorm"):
            load(path)

    def test_both_forms(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        weights[f"{UP}.weight"] = mx.zeros((192, 128))
        save_weights(path, weights)
        with pytest.raises(ValueError, match=f"both {UP}.weight"):
            load(path)

    def test_another_shape(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        weights[f"{UP}.coded"] = weights["lm_head.coded"]
        save_weights(path, weights)
        with pytest.raises(
            ValueError, match=rf"{UP}.coded: .*\(192, 128\).*\(300, 128\)"
        ):
            load(path)

    def test_symbols(self, converted, load):
        path, _ = converted
        weights = weights_of(path)
        symbols = mx.zeros((192, 128), mx.uint8)
        weights[f"{UP}.coded"] = mlx_entropy.entropy_encode(symbols)
        save_weights(path, weights)
        with pytest.raises(ValueError, match=f"{UP}.coded: .*symbols"):
            load(path)

    @pytest.mark.parametrize("dtype", [mx.int8, mx.uint16, mx.float32])
    def test_another_type(self, converted, load, dtype):
        path, _ = converted
        weights = weights_of(path)
        weights[f"{UP}.coded"] = weights[f"{UP}.coded"].astype(dtype)
        save_weights(path, weights)
        with pytest.raises(ValueError, match=f"{UP}.coded: .*uint8"):
            load(path)

    def test_cut_short(self, converted, load):
        path, _ = converted
        whole = weights_of(path)
        coded = whole[f"{UP}.coded"]
        for size in (0, 1, 16, 63, coded.size // 2, coded.size - 1):
            save_weights(path, whole | {f"{UP}.coded": coded[:size]})
            with pytest.raises(ValueError, match=f"{UP}.coded"):
                load(path)

    def test_every_kind_of_damage(self, converted, load):
        path, _ = converted
        whole = weights_of(path)
        coded = np.array(whole[f"{UP}.coded"])
        places = np.random.default_rng(3).integers(0, coded.size, 40)
        for place in [*range(0, 64, 3), *places]:
            damaged = coded.copy()
            damaged[place] ^= 1 << (place % 8)
            weights = whole | {f"{UP}.coded": mx.array(damaged)}
            save_weights(path, weights)
            with pytest.raises(ValueError, match=f"{UP}.coded"):
                load(path)

    @pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
    def test_format_version(self, converted, load, version):
        path, _ = converted
        config = json.loads((path / "config.json").read_text())
        config[CONFIG_KEY]["format_version"] = version
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"format.version"):
            load(path)


class TestSanitize:
    """Stock models whose `sanitize` does more than llama's."""

    def load(self, path, model_class):
        mlx_entropy.register()
        return utils.load_model(
            path,
            get_model_classes=lambda config: (model_class, llama.ModelArgs),
        )[0]

    def test_ties_a_head_that_is_not_there(self, converted, relative_error):
        class Model(llama.Model):
            def sanitize(self, weights):
                if "lm_head.weight" not in weights:
                    self.pop("lm_head")
                return weights

        path, expected = converted
        model = self.load(path, Model)
        assert relative_error(model(TOKENS), expected) <= 1e-4

    def test_renames(self, converted, relative_error):
        class Model(llama.Model):
            def sanitize(self, weights):
                return {
                    name.replace("feed_forward", "mlp"): array
                    for name, array in weights.items()
                }

        path, expected = converted
        weights = {
            name.replace("mlp", "feed_forward"): array
            for name, array in weights_of(path).items()
        }
        save_weights(path, weights)
        model = self.load(path, Model)
        assert relative_error(model(TOKENS), expected) <= 1e-4

    def test_copies(self, converted, same_bits):
        class Model(llama.Model):
            def sanitize(self, weights):
                weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
                return weights

        path, _ = converted
        weights = weights_of(path)
        del weights["lm_head.coded"]
        save_weights(path, weights)
        model = self.load(path, Model)
        assert isinstance(model.lm_head, EntropyCodedLinear)
        assert same_bits(model.lm_head.coded, model.model.embed_tokens.coded)

    def test_drops_or_changes(self, converted):
        class Drops(llama.Model):
            def sanitize(self, weights):
                return {k: v for k, v in weights.items() if "mlp.up" not in k}

        class Changes(llama.Model):
            def sanitize(self, weights):
                return {
                    k: v + 1 if "mlp.up" in k else v for k, v in weights.items()
                }

        path, _ = converted
        for model_class in (Drops, Changes):
            with pytest.raises(ValueError, match=f"{UP}.coded"):
                self.load(path, model_class)

    def test_model_without_sanitize(self, converted, relative_error):
        class Model(nn.Module):
            def __init__(self, args):
                super().__init__()
                self.model = llama.LlamaModel(args)
                self.lm_head = nn.Linear(128, 300, bias=False)

            def __call__(self, tokens):
                return self.lm_head(self.model(tokens))

        path, expected = converted
        model = self.load(path, Model)
        assert relative_error(model(TOKENS), expected) <= 1e-4


def test_import_is_light():
    program = (
        "import sys, mlx_entropy\n"
        "from mlx_entropy.loading import model_classes\n"
        "assert callable(mlx_entropy.load)\n"
        "assert callable(mlx_entropy.convert)\n"
        "assert callable(mlx_entropy.verify)\n"
        "assert callable(mlx_entropy.inspect)\n"
        "assert not {'mlx_lm', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_import_needs_its_mlx_version():
    program = (
        "import mlx.core as mx\nmx.__version__ = '0.31.0'\nimport mlx_entropy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install" in last


def test_package_is_typed():
    assert (Path(mlx_entropy.__file__).parent / "py.typed").is_file()
