"""mlx-lm's programs that write a model anew, given a converted one."""

from __future__ import annotations

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import utils
from mlx_lm.tuner import utils as tuner

import mlx_entropy
from helpers import stock
from mlx_entropy.checksums import has_checksums
from mlx_entropy.model_format import CONFIG_KEY, MODEL_FILE
from mlx_entropy.nn.coded import EntropyCoded

TRUST = "--trust-remote-code"


@pytest.fixture(params=stock.MODELS, ids=str)
def source(request, tmp_path):
    return stock.write(tmp_path / "source", stock.MODELS[request.param])


@pytest.fixture
def coded(tmp_path, source):
    mlx_entropy.convert(source, tmp_path / "coded")
    return tmp_path / "coded"


def assert_same(ours, expected, same_bits):
    """Directories with the same tensors and a config of no coded model."""
    found, wanted = stock.tensors(ours), stock.tensors(expected)
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert stock.config(ours) == stock.config(expected)
    assert not (ours / MODEL_FILE).exists()
    names = {file.name for file in ours.iterdir()}
    assert names == {file.name for file in expected.iterdir()}


def test_convert_dequantizes(tmp_path, monkeypatch, source, coded, same_bits):
    for model, to in ((source, "expected"), (coded, "ours")):
        stock.run(
            monkeypatch, "convert", "--hf-path", model, "--mlx-path",
            tmp_path / to, "-d", TRUST,
        )  # fmt: skip
    assert_same(tmp_path / "ours", tmp_path / "expected", same_bits)
    model, _ = utils.load_model(tmp_path / "ours")
    assert not any(isinstance(m, EntropyCoded) for m in model.modules())


def test_fuse_dequantizes(tmp_path, monkeypatch, source, coded, same_bits):
    adapter = stock.write_adapter(tmp_path / "adapter", source)
    for model, to in ((source, "expected"), (coded, "ours")):
        stock.run(
            monkeypatch, "fuse", "--model", model, "--adapter-path", adapter,
            "--save-path", tmp_path / to, "--dequantize", TRUST,
        )  # fmt: skip
    assert_same(tmp_path / "ours", tmp_path / "expected", same_bits)


def test_dequantizing_keeps_floats(tmp_path, monkeypatch, same_bits):
    source = stock.write(tmp_path / "source", quantization=None)
    mlx_entropy.convert(source, tmp_path / "coded")
    for model, to in (("source", "expected"), ("coded", "ours")):
        stock.run(
            monkeypatch, "convert", "--hf-path", tmp_path / model,
            "--mlx-path", tmp_path / to, "-d", TRUST,
        )  # fmt: skip
    assert_same(tmp_path / "ours", tmp_path / "expected", same_bits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantization", [stock.QUANTIZED, None], ids=str)
def test_dequantizing_casts(
    tmp_path, monkeypatch, same_bits, dtype, quantization
):
    source = stock.write(tmp_path / "source", quantization=quantization)
    mlx_entropy.convert(source, tmp_path / "coded")
    for model, to in (("source", "expected"), ("coded", "ours")):
        stock.run(
            monkeypatch, "convert", "--hf-path", tmp_path / model,
            "--mlx-path", tmp_path / to, "-d", "--dtype", dtype, TRUST,
        )  # fmt: skip
    assert_same(tmp_path / "ours", tmp_path / "expected", same_bits)
    assert stock.tensors(tmp_path / "ours")["lm_head.weight"].dtype == getattr(
        mx, dtype
    )
    with pytest.raises(ValueError, match="cannot be cast to") as caught:
        stock.run(
            monkeypatch, "convert", "--hf-path", tmp_path / "coded",
            "--mlx-path", tmp_path / "out", "--dtype", dtype, TRUST,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_convert_copies(tmp_path, monkeypatch, coded, same_bits):
    """Without an option it stays coded, and loads."""
    stock.run(
        monkeypatch, "convert", "--hf-path", coded, "--mlx-path",
        tmp_path / "copy", TRUST,
    )  # fmt: skip
    assert CONFIG_KEY in stock.config(tmp_path / "copy")
    assert has_checksums(tmp_path / "copy")
    logits = [
        mlx_lm.load(str(path), trust_remote_code=True)[0](stock.TOKENS)
        for path in (coded, tmp_path / "copy")
    ]
    assert same_bits(*logits)


def test_convert_does_not_quantize(tmp_path, monkeypatch, coded):
    with pytest.raises(ValueError, match="mlx-entropy restore") as caught:
        stock.run(
            monkeypatch, "convert", "--hf-path", coded, "--mlx-path",
            tmp_path / "out", "-q", TRUST,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [(), ("--dequantize",)], ids=str)
def test_fuse_over_converted_models(tmp_path, monkeypatch, flags):
    """Checksums of what was there before do not stay; itself is refused."""
    source = stock.write(tmp_path / "source")
    adapter = stock.write_adapter(tmp_path / "adapter", source)
    for name in ("coded", "earlier"):
        mlx_entropy.convert(source, tmp_path / name)
    before = tmp_path / "coded" / "model.safetensors"
    content = before.read_bytes()

    def fuse(to):
        stock.run(
            monkeypatch, "fuse", "--model", tmp_path / "coded",
            "--adapter-path", adapter, "--save-path", to, TRUST, *flags,
        )  # fmt: skip

    with pytest.raises(ValueError, match="over itself"):
        fuse(tmp_path / "coded")
    assert before.read_bytes() == content
    fuse(tmp_path / "earlier")
    expected, found = (
        model(stock.TOKENS)
        for model in (
            mlx_entropy.load(tmp_path / "coded", adapter_path=str(adapter))[0],
            mlx_lm.load(str(tmp_path / "earlier"), trust_remote_code=True)[0],
        )
    )
    # Fused weights are rounded to 4 bits again.
    assert mx.linalg.norm(found - expected) <= 0.3 * mx.linalg.norm(expected)


def test_layers_coded_in_memory(tmp_path, same_bits):
    """mlx-lm's tools know them, too; a model of them has no format."""
    source = stock.write(tmp_path / "source")
    model, tokenizer, config = mlx_lm.load(str(source), return_config=True)
    mlx_entropy.entropy_quantize(model)
    with pytest.raises(ValueError, match="mlx-entropy convert") as caught:
        utils.save(tmp_path / "out", str(source), model, tokenizer, config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="cannot quantize"):
        utils.quantize_model(model, config, 64, 4)
    with pytest.raises(ValueError, match="DoRA"):
        tuner.linear_to_lora_layers(
            model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0}, use_dora=True
        )
    found = utils.dequantize_model(model)
    expected = utils.dequantize_model(utils.load_model(source)[0])
    assert same_bits(found.lm_head.weight, expected.lm_head.weight)


def gguf(monkeypatch, model, adapter, to, *flags):
    stock.run(
        monkeypatch, "fuse", "--model", model, "--adapter-path", adapter,
        "--save-path", to, "--export-gguf", TRUST, *flags,
    )  # fmt: skip
    return (to / "ggml-model-f16.gguf").read_bytes()


def test_fuse_exports_gguf(tmp_path, monkeypatch):
    source = stock.write(tmp_path / "source")
    mlx_entropy.convert(source, tmp_path / "coded")
    adapter = stock.write_adapter(tmp_path / "adapter", source)
    files = [
        gguf(
            monkeypatch,
            tmp_path / model,
            adapter,
            tmp_path / f"{model}-gguf",
            "--dequantize",
        )
        for model in ("source", "coded")
    ]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="add --dequantize") as caught:
        gguf(monkeypatch, tmp_path / "coded", adapter, tmp_path / "gguf")
    assert "\n" not in str(caught.value)
