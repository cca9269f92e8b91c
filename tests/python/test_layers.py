"""The table of layers: every row is used by everyone who needs it."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_entropy import entropy_quantize
from mlx_entropy.coding import code_module
from mlx_entropy.nn.layers import KINDS, kind_named, kind_of, quantization_of
from mlx_entropy.sources.base import Module

STOCK = {
    "linear": lambda: nn.Linear(64, 128, bias=False),
    "embedding": lambda: nn.Embedding(128, 64),
    "switch": lambda: SwitchLinear(64, 256, 4, bias=False),
}


def stock_layer(name: str, quantized: bool) -> nn.Module:
    layer = STOCK[name]()
    layer.weight = 0.05 * mx.random.normal(layer.weight.shape)
    return layer.to_quantized(64, 4) if quantized else layer


def test_every_row_has_a_stock_layer():
    assert {kind.name for kind in KINDS} == STOCK.keys()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", sorted(STOCK))
def test_a_row(name, quantized, same_bits):
    """The model in memory and the converted one get the same bytes."""
    layer = stock_layer(name, quantized)
    kind = kind_of(layer)
    assert kind is kind_named(name)
    quantization = quantization_of(layer)
    assert (quantization is not None) == quantized
    tensors = {key: layer[key] for key in layer.parameters()}
    stored, record = code_module(Module("at", name, tensors, quantization))
    assert record.coded
    model = nn.Module()
    model.at = layer
    report = entropy_quantize(model, fused=False)
    assert report.raw == {}
    assert same_bits(model.at.coded, stored["coded"])
    assert record.rows[0].source_bytes == report["at"][1]
    # What loads the bytes again is a placeholder of that shape and type.
    float_layer = STOCK[name]()
    empty = kind.placeholder(float_layer, model.at.coded.size, mx.float32)
    assert type(empty) is type(model.at)
    assert empty.shape == model.at.shape
    assert type(model.at.decode()) is type(layer)


@pytest.mark.parametrize("name", sorted(STOCK))
def test_the_same_reasons_everywhere(name):
    def special(layer):
        layer.__class__ = type("Special", (type(layer),), {})

    def integers(layer):
        layer.weight = layer.weight.astype(mx.int32)

    def empty(layer):
        layer.weight = layer.weight[:0]

    for change in (special, integers, empty):
        layer = stock_layer(name, False)
        change(layer)
        kind = kind_of(layer)
        module = Module(
            "at",
            "other" if kind is None else kind.name,
            {"weight": layer.weight},
        )
        model = nn.Module()
        model.at = layer
        _, record = code_module(module)
        report = entropy_quantize(model)
        assert report.raw == {"at": record.rows[0].reason}
