"""What EntropyCodedLinear refuses, and how it says so."""

import mlx.core as mx
import pytest

from helpers.layers import (
    IN,
    OUT,
    linear,
    quantized,
)
from mlx_entropy import EntropyCodedLinear


def test_other_modes():
    for mode, group_size in [("mxfp4", 32), ("nvfp4", 16), ("mxfp8", 32)]:
        layer = linear().to_quantized(group_size, mode=mode)
        with pytest.raises(ValueError, match=mode):
            EntropyCodedLinear.from_quantized(layer)


def test_wrong_layers():
    with pytest.raises(ValueError, match="QuantizedLinear, got Linear"):
        EntropyCodedLinear.from_quantized(linear())
    with pytest.raises(ValueError, match="Linear, got QuantizedLinear"):
        EntropyCodedLinear.from_linear(quantized())


def test_either_layer_or_arrays():
    stock = quantized()
    with pytest.raises(ValueError, match="either a layer or its arrays"):
        EntropyCodedLinear.from_quantized()
    with pytest.raises(ValueError, match="either a layer or its arrays"):
        EntropyCodedLinear.from_quantized(stock, scales=stock.scales)
    with pytest.raises(ValueError, match="either a layer or its arrays"):
        EntropyCodedLinear.from_linear()
    with pytest.raises(ValueError, match="biases are needed"):
        EntropyCodedLinear.from_quantized(
            weight=stock.weight, scales=stock.scales
        )
    with pytest.raises(ValueError, match="weight is needed"):
        EntropyCodedLinear.from_linear(bias=mx.zeros((3,)))


def test_quantization():
    with pytest.raises(ValueError, match=r"bits must be .* got 7"):
        EntropyCodedLinear.from_linear(linear(), bits=7)
    with pytest.raises(ValueError, match=r"group_size must be .* got 16"):
        EntropyCodedLinear.from_linear(linear(), bits=4, group_size=16)
    with pytest.raises(ValueError, match=r"group size 64.*\(8, 96\)"):
        EntropyCodedLinear.from_linear(linear(8, 96), bits=4)


def test_weights():
    with pytest.raises(ValueError, match=r"\(2, 4, 64\)"):
        EntropyCodedLinear.from_linear(weight=mx.zeros((2, 4, 64)))
    with pytest.raises(ValueError, match=r"\(0, 64\)"):
        EntropyCodedLinear.from_linear(weight=mx.zeros((0, 64)))
    with pytest.raises(ValueError, match="int32"):
        EntropyCodedLinear.from_linear(weight=mx.zeros((4, 64), mx.int32))
    with pytest.raises(ValueError, match=r"uint32.*float32"):
        EntropyCodedLinear.from_quantized(
            weight=mx.zeros((4, 8)),
            scales=mx.zeros((4, 1)),
            biases=mx.zeros((4, 1)),
        )


def test_arrays_that_do_not_fit():
    stock = quantized()
    arrays = {name: stock[name] for name in ("weight", "scales", "biases")}
    with pytest.raises(ValueError, match=r"8 bits needs .*\(49, 3\)"):
        EntropyCodedLinear.from_quantized(**arrays, bits=8)
    with pytest.raises(ValueError, match=r"4 bits needs .*\(49, 12\)"):
        EntropyCodedLinear.from_quantized(**arrays, group_size=32)
    with pytest.raises(ValueError, match=r"\(49, 6\) and \(48, 6\)"):
        EntropyCodedLinear.from_quantized(
            **arrays | {"biases": stock.biases[:-1]}
        )
    with pytest.raises(ValueError, match=r"bias of shape \(49,\)"):
        EntropyCodedLinear.from_quantized(**arrays, bias=mx.zeros((48,)))


def test_x_of_wrong_shape_or_type():
    layer = EntropyCodedLinear.from_quantized(quantized())
    with pytest.raises(ValueError, match=r"\[..., 384\], got \(2, 448\)"):
        layer(mx.zeros((2, IN + 64)))
    with pytest.raises(ValueError, match="got int32"):
        layer(mx.zeros((2, IN), mx.int32))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        layer(mx.array(1.0))


def test_placeholder_holds_nothing():
    with pytest.raises(ValueError, match="invalid coded matrix"):
        EntropyCodedLinear(IN, OUT, 64).info  # noqa: B018
