"""Mixtures of experts: the coded layer, and a model from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear

import mlx_entropy
from helpers.layers import integers
from helpers.tiny import write_tokenizer
from mlx_entropy import EntropyCodedSwitchLinear, _ext, entropy_quantize

EXPERTS, ROWS, COLUMNS = 4, 96, 128


def switch(bits: int | None, bias: bool = False) -> nn.Module:
    layer = SwitchLinear(COLUMNS, ROWS, EXPERTS, bias=bias)
    if bias:
        layer.bias = mx.random.normal((EXPERTS, ROWS))
    return layer if bits is None else layer.to_quantized(64, bits)


def coded(layer: nn.Module) -> EntropyCodedSwitchLinear:
    if "scales" in layer:
        return EntropyCodedSwitchLinear.from_quantized(layer)
    return EntropyCodedSwitchLinear.from_switch(layer)


@pytest.mark.parametrize("target", _ext.targets())
@pytest.mark.parametrize("bits", [None, 2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_products(target: str, bits: int | None, bias: bool) -> None:
    layer = switch(bits, bias)
    before = _ext.target()
    _ext.set_target(target)
    try:
        for x_shape, indices_shape in [
            ((2, 5, 1, 1, COLUMNS), (2, 5, 3)),
            ((7, 1, COLUMNS), (7,)),
            ((40, 3, COLUMNS), (40,)),
            ((0, 1, COLUMNS), (0,)),
        ]:
            x = mx.random.normal(x_shape)
            indices = mx.random.randint(0, EXPERTS, indices_shape)
            y = coded(layer)(x, indices)
            expected = layer(x, indices)
            assert y.shape == expected.shape
            assert mx.allclose(y, expected, rtol=1e-4, atol=1e-4)
    finally:
        _ext.set_target(before)


def test_sorted_or_not() -> None:
    layer = switch(4)
    indices = mx.array([0, 0, 2, 3, 3, 3])
    x = mx.random.normal((6, 1, COLUMNS))
    plain = coded(layer)(x, indices)
    assert mx.array_equal(plain, coded(layer)(x, indices, sorted_indices=True))


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_indices_count_modulo_the_experts(bits: int | None, bias: bool) -> None:
    """As in stock MLX, and where that would read elsewhere in memory."""
    layer = switch(bits, bias)
    mine = coded(layer)
    x = mx.random.normal((1, 1, COLUMNS))
    every = mine(x, mx.arange(EXPERTS))
    for dtype, index in [
        (mx.int32, EXPERTS),
        (mx.int32, 7),
        (mx.int32, -1),
        (mx.int32, -EXPERTS),
        (mx.int32, -EXPERTS - 1),
        (mx.int32, -(2**31)),
        (mx.uint32, 2**32 - 1),
        (mx.int64, 2**63 - 1),
        (mx.uint64, 2**64 - 1),
        (mx.int8, -3),
        (mx.uint8, 255),
    ]:
        y = mine(x, integers([index], dtype))
        assert mx.array_equal(y[0], every[index % EXPERTS])
    if not bias:  # Stock's bias is read elsewhere.
        y = layer(x, mx.array([EXPERTS + 1]))
        assert mx.allclose(y[0], every[1], rtol=1e-4, atol=1e-4)


def test_weight_and_parameters() -> None:
    layer = switch(4)
    mine = coded(layer)
    assert [name for name, _ in tree_flatten(mine.parameters())] == ["coded"]
    assert mine.weight.shape == (EXPERTS, ROWS, COLUMNS)
    expected = mx.dequantize(
        layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits
    )
    assert mx.array_equal(mine.weight, expected)


def test_only_the_experts_used_are_read() -> None:
    """Every expert starts a tile of its own."""
    info = coded(switch(4)).info
    assert ROWS % info.tile_rows == 0


def test_errors() -> None:
    layer = coded(switch(4))
    x = mx.zeros((1, 1, COLUMNS))
    with pytest.raises(ValueError, match="expected x of shape"):
        layer(mx.zeros((1, 1, 64)), mx.array([0]))
    with pytest.raises(ValueError, match="integers"):
        layer(x, mx.array([0.5]))
    with pytest.raises(ValueError, match="steps of 64"):
        EntropyCodedSwitchLinear.from_switch(SwitchLinear(33, 3, 2, bias=False))
    quantized = SwitchLinear(64, 32, 2, bias=False).to_quantized(
        32, 4, mode="mxfp4"
    )
    with pytest.raises(ValueError, match="mxfp4"):
        EntropyCodedSwitchLinear.from_quantized(quantized)


def test_matrix_without_blocks() -> None:
    """Tiles that experts share cannot be decoded expert by expert."""
    weight = mx.random.normal((EXPERTS * ROWS, COLUMNS))
    whole = _ext.encode_float(weight, tile_rows=160)
    x = mx.zeros((1, 1, COLUMNS))
    product = _ext.entropy_coded_gather_matmul(x, whole, mx.array([0]), ROWS)
    with pytest.raises((ValueError, RuntimeError), match="blocks of 96 rows"):
        mx.eval(product)


@pytest.mark.parametrize("quantized", [False, True])
def test_entropy_quantize(quantized: bool) -> None:
    model = SwitchGLU(64, 128, EXPERTS)
    if quantized:
        nn.quantize(model, 64, 4)
    x = mx.random.normal((2, 40, 64))
    indices = mx.random.randint(0, EXPERTS, (2, 40, 2))
    expected = model(x, indices)
    report = entropy_quantize(model)
    assert not report.raw
    assert len(report) == 3
    assert mx.allclose(model(x, indices), expected, rtol=1e-4, atol=1e-4)


def mixture(folder: Path, bits: int | None) -> None:
    """A tiny Mixtral directory, its experts stored one by one."""
    config: dict[str, Any] = {
        "model_type": "mixtral",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": EXPERTS,
    }
    model = mixtral.Model(mixtral.ModelArgs.from_dict(config))
    if bits is not None:
        nn.quantize(model, 64, bits)
        config["quantization"] = {"group_size": 64, "bits": bits}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    write_tokenizer(folder)


@pytest.mark.parametrize("bits", [None, 4])
def test_model(tmp_path: Path, bits: int | None) -> None:
    from mlx_lm.utils import load_model

    source, destination = tmp_path / "source", tmp_path / "coded"
    mixture(source, bits)
    mlx_entropy.convert(source, destination)
    report = mlx_entropy.inspect(destination)
    assert report.switch.tensors == 6
    rows = [row for row in report.tensors if row.kind == "switch"]
    assert all(row.codec == "rans16" for row in rows)
    assert {row.shape for row in rows} == {(4, 128, 64), (4, 64, 128)}
    assert mlx_entropy.verify(destination, source).identical

    stock, _ = load_model(source)
    mine, _ = mlx_entropy.load(destination)
    kinds = {type(module) for _, module in mine.named_modules()}
    assert EntropyCodedSwitchLinear in kinds
    for length in (1, 40):
        tokens = mx.random.randint(0, 128, (1, length))
        expected = stock(tokens)
        error = mx.linalg.norm(mine(tokens) - expected)
        assert error <= 1e-4 * mx.linalg.norm(expected)
