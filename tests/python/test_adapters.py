"""LoRA by mlx-lm's own tools: around coded layers, trained and fused."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner import trainer
from mlx_lm.tuner import utils as tuner
from mlx_lm.utils import load_model

import mlx_entropy
from helpers import stock
from mlx_entropy.nn.coded import EntropyCoded

SETTINGS = {"rank": 4, "scale": 2.0, "dropout": 0.0}
# Keys of mlx-lm's adapter_config.json; None is what it takes by default.
EVERYTHING = {
    "llama": ["model.embed_tokens", "lm_head", "self_attn.q_proj"],
    "tied": ["model.embed_tokens", "mlp.down_proj"],
    "moe": None,
}
QUANTIZATIONS = {"4bit": stock.QUANTIZED, "float": None}


@pytest.fixture(params=QUANTIZATIONS, ids=str)
def quantization(request):
    return QUANTIZATIONS[request.param]


@pytest.fixture(params=stock.MODELS, ids=str)
def kind(request):
    return request.param


@pytest.fixture
def source(tmp_path, kind, quantization):
    return stock.write(tmp_path / "source", stock.MODELS[kind], quantization)


@pytest.fixture
def coded(tmp_path, source):
    mlx_entropy.convert(source, tmp_path / "coded")
    return tmp_path / "coded"


@pytest.fixture
def adapter(tmp_path, source, kind):
    return stock.write_adapter(tmp_path / "adapter", source, EVERYTHING[kind])


def coded_layers(model):
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, EntropyCoded)
    }


def test_adapters_of_stock_models_load(source, coded, adapter, relative_error):
    expected = mlx_lm.load(str(source), adapter_path=str(adapter))[0]
    found = mlx_entropy.load(coded, adapter_path=str(adapter))[0]
    plain = mlx_entropy.load(coded)[0](stock.TOKENS)
    logits = found(stock.TOKENS)
    assert relative_error(logits, expected(stock.TOKENS)) <= 2e-3
    assert relative_error(logits, plain) > 0.05  # It does something.


def test_gradients_of_adapters(source, coded, kind, relative_error):
    """One step of mlx-lm's training, beside the stock model's."""
    lengths = mx.array([[0, 6], [0, 6]])
    gradients = []
    for model in (load_model(source)[0], mlx_entropy.load(coded)[0]):
        model.freeze()
        mx.random.seed(3)
        settings = SETTINGS | (
            {"keys": EVERYTHING[kind]} if EVERYTHING[kind] else {}
        )
        tuner.linear_to_lora_layers(model, 2, settings)
        for name, array in tree_flatten(model.trainable_parameters()):
            noise = mx.random.normal(array.shape) * 0.05
            model.load_weights([(name, noise)], strict=False)
        model.train()
        step = nn.value_and_grad(model, trainer.default_loss)
        (loss, _), gradient = step(model, stock.TOKENS, lengths)
        gradients.append(dict(tree_flatten(gradient)) | {"loss": loss})
    expected, found = gradients
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert relative_error(found[name], array) <= 5e-3, name


def test_training_by_mlx_lm(tmp_path, monkeypatch, source, coded, kind):
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"text": letter * 12}) for letter in "abcdefgh"]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    trained = tmp_path / "trained"
    stock.run(
        monkeypatch, "lora", "--train", "--model", coded, "--data", data,
        "--adapter-path", trained, "--iters", 2, "--batch-size", 2,
        "--num-layers", 2, "--steps-per-eval", 10, "--grad-checkpoint",
        "--trust-remote-code",
    )  # fmt: skip
    model = mlx_entropy.load(coded, adapter_path=str(trained))[0]
    mx.eval(model(stock.TOKENS))
    assert coded_layers(model)
    weights = mx.load(str(trained / "adapters.safetensors"))
    assert any(mx.abs(w).max() > 0 for n, w in weights.items() if "lora_b" in n)
    # What was trained on the coded model fits the one it was made of.
    mlx_lm.load(str(source), adapter_path=str(trained))


def test_fusing_codes_again(
    tmp_path, monkeypatch, source, coded, adapter, same_bits
):
    """`mlx_lm.fuse` gives the same weights as for the stock model, coded."""
    for model, fused in ((source, "stock"), (coded, "ours")):
        stock.run(
            monkeypatch, "fuse", "--model", model, "--adapter-path", adapter,
            "--save-path", tmp_path / fused, "--trust-remote-code",
        )  # fmt: skip
    ours = mlx_entropy.load(tmp_path / "ours")[0]
    layers = coded_layers(ours)
    assert layers.keys() == coded_layers(mlx_entropy.load(coded)[0]).keys()
    expected = stock.tensors(tmp_path / "stock")
    for path, layer in layers.items():
        for name, array in tree_flatten(layer.decode().parameters()):
            assert same_bits(array, expected.pop(f"{path}.{name}")), path
    for name, array in expected.items():
        assert same_bits(stock.tensors(tmp_path / "ours")[name], array)


def test_adapters_come_off(tmp_path, same_bits):
    source = stock.write(tmp_path / "source")
    coded = tmp_path / "coded"
    mlx_entropy.convert(source, coded)
    adapter = stock.write_adapter(
        tmp_path / "adapter", source, ["self_attn.q_proj", "mlp.up_proj"]
    )
    model = mlx_entropy.load(coded, adapter_path=str(adapter))[0]
    tuner.remove_lora_layers(model)
    expected = mlx_entropy.load(coded)[0](stock.TOKENS)
    assert same_bits(model(stock.TOKENS), expected)


@pytest.mark.parametrize(
    "keys", [None, ["model.embed_tokens"], ["self_attn.q_proj"]], ids=str
)
def test_dora_is_refused(tmp_path, keys):
    source = stock.write(tmp_path / "source")
    mlx_entropy.convert(source, tmp_path / "coded")
    adapter = stock.write_adapter(
        tmp_path / "dora", source, ["self_attn.q_proj"], "dora"
    )
    refusal = "DoRA does not work on entropy-coded layers.*mlx-entropy restore"
    with pytest.raises(ValueError, match=refusal) as caught:
        mlx_entropy.load(tmp_path / "coded", adapter_path=str(adapter))
    assert "\n" not in str(caught.value)
    model = mlx_entropy.load(tmp_path / "coded")[0]
    settings = SETTINGS | ({"keys": keys} if keys else {})
    with pytest.raises(ValueError, match=refusal):
        tuner.linear_to_lora_layers(model, 2, settings, use_dora=True)
    # Stock models keep it, and their errors.
    mlx_lm.load(str(source), adapter_path=str(adapter))
    with pytest.raises(ValueError, match="RMSNorm"):
        tuner.linear_to_lora_layers(
            load_model(source)[0], 2, SETTINGS | {"keys": ["model.norm"]}
        )


def test_weights_cannot_be_trained(tmp_path):
    source = stock.write(tmp_path / "source")
    mlx_entropy.convert(source, tmp_path / "coded")
    model = mlx_entropy.load(tmp_path / "coded")[0]
    model.unfreeze()
    model.train()
    step = nn.value_and_grad(model, trainer.default_loss)
    with pytest.raises(
        ValueError, match=r"LoRA.*mlx-entropy restore"
    ) as caught:
        step(model, stock.TOKENS, mx.array([[0, 6], [0, 6]]))
    assert "\n" not in str(caught.value)
