"""Stock models whose `sanitize` does more than llama's."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import utils
from mlx_lm.models import llama as stock_llama

import mlx_entropy
from helpers import llama
from mlx_entropy import EntropyCodedLinear

UP = "model.layers.1.mlp.up_proj"


def load(path, model_class):
    mlx_entropy.register()
    return utils.load_model(
        path,
        get_model_classes=lambda config: (model_class, stock_llama.ModelArgs),
    )[0]


def test_ties_a_head_that_is_not_there(converted, relative_error):
    class Model(stock_llama.Model):
        def sanitize(self, weights):
            if "lm_head.weight" not in weights:
                self.pop("lm_head")
            return weights

    path, expected = converted
    model = load(path, Model)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4


def test_renames(converted, relative_error):
    class Model(stock_llama.Model):
        def sanitize(self, weights):
            return {
                name.replace("feed_forward", "mlp"): array
                for name, array in weights.items()
            }

    path, expected = converted
    weights = {
        name.replace("mlp", "feed_forward"): array
        for name, array in llama.weights_of(path).items()
    }
    llama.save_weights(path, weights)
    model = load(path, Model)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4


def test_copies(converted, same_bits):
    class Model(stock_llama.Model):
        def sanitize(self, weights):
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
            return weights

    path, _ = converted
    weights = llama.weights_of(path)
    del weights["lm_head.coded"]
    llama.save_weights(path, weights)
    model = load(path, Model)
    assert isinstance(model.lm_head, EntropyCodedLinear)
    assert same_bits(model.lm_head.coded, model.model.embed_tokens.coded)


def test_drops_or_changes(converted):
    class Drops(stock_llama.Model):
        def sanitize(self, weights):
            return {k: v for k, v in weights.items() if "mlp.up" not in k}

    class Changes(stock_llama.Model):
        def sanitize(self, weights):
            return {
                k: v + 1 if "mlp.up" in k else v for k, v in weights.items()
            }

    path, _ = converted
    for model_class in (Drops, Changes):
        with pytest.raises(ValueError, match=f"{UP}.coded"):
            load(path, model_class)


def test_model_without_sanitize(converted, relative_error):
    class Model(nn.Module):
        def __init__(self, args):
            super().__init__()
            self.model = stock_llama.LlamaModel(args)
            self.lm_head = nn.Linear(128, 300, bias=False)

        def __call__(self, tokens):
            return self.lm_head(self.model(tokens))

    path, expected = converted
    model = load(path, Model)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4


@pytest.mark.parametrize("bits", [None, 4])
def test_converter_keeps_what_would_change(bits, tmp_path, relative_error):
    """Baichuan normalizes its head unless there are scales beside it."""
    from mlx_lm.models import baichuan_m1

    config = llama.CONFIG | {
        "model_type": "baichuan_m1",
        "rope_theta": 1e4,
        "sliding_window": 8,
        "sliding_window_layers": [0],
        "conv_window": 2,
    }
    model = baichuan_m1.Model(baichuan_m1.ModelArgs.from_dict(config))
    llama.randomize(model, mx.float32)
    if bits is not None:
        config["quantization"] = {"group_size": 64, "bits": bits}
        nn.quantize(model, **config["quantization"])
    path = llama.save(tmp_path / "stock", model, config)
    stock, _ = utils.load_model(path)
    expected = stock(llama.TOKENS, stock.make_cache())
    report = mlx_entropy.convert(path, tmp_path / "coded")
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons["lm_head.weight"] == "mlx-lm changes it on loading"
    assert reasons["model.embed_tokens.weight"] is None
    coded, _ = llama.load_registered(tmp_path / "coded")
    assert type(coded.lm_head) is type(stock.lm_head)
    found = coded(llama.TOKENS, coded.make_cache())
    assert relative_error(found, expected) <= 1e-4
