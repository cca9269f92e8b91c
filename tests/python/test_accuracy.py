"""Products with outliers, and with what is not finite, on every target."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from helpers.layers import IN, OUT, quantized
from mlx_entropy import EntropyCodedLinear, EntropyCodedSwitchLinear, _ext

PROMISE = 1e-3
COLUMN = 77
PEAKS = [10.0**power for power in range(1, 7)]
targets = pytest.mark.parametrize("target", _ext.targets(), indirect=True)
codecs = pytest.mark.parametrize("codec", ["rans", "tree", "flat"])


@pytest.fixture
def target(request):
    before = _ext.target()
    _ext.set_target(request.param)
    yield request.param
    _ext.set_target(before)


def with_light_column(bits=4, group_size=64):
    """Weights of almost nothing where x is going to be large."""
    weight = mx.random.normal((OUT, IN)) * 0.02
    weight[:, COLUMN] *= 1e-3
    layer = nn.Linear(IN, OUT, bias=False)
    layer.weight = weight
    return nn.QuantizedLinear.from_linear(layer, group_size, bits)


def dense(stock, float64):
    return float64(
        mx.dequantize(
            stock.weight,
            stock.scales,
            stock.biases,
            stock.group_size,
            stock.bits,
        )
    )


@targets
@codecs
@pytest.mark.parametrize("batch", [1, 2, 9, 70])
def test_one_outlier(target, codec, batch, float64, relative_error):
    stock = with_light_column()
    layer = EntropyCodedLinear.from_quantized(stock)
    layer.coded = _ext.transcode(layer.coded, codec)
    weight = dense(stock, float64)
    for peak in PEAKS:
        x = mx.random.normal((batch, IN))
        x[:, COLUMN] = peak
        error = relative_error(layer(x), float64(x) @ weight.T)
        assert error <= 0.3 * PROMISE, peak


@targets
def test_several_outliers(target, float64, relative_error):
    stock = with_light_column(8, 32)
    layer = EntropyCodedLinear.from_quantized(stock)
    x = mx.random.normal((3, IN))
    x[:, COLUMN] = mx.array([1e6, -300.0, 4.0])
    x[0, COLUMN + 1] = -1e5
    x[2, ::50] = 5000.0
    exact = float64(x) @ dense(stock, float64).T
    assert relative_error(layer(x), exact) <= 0.3 * PROMISE


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_outliers_in_half_precision(dtype, float64, relative_error):
    stock = with_light_column()
    layer = EntropyCodedLinear.from_quantized(stock)
    x = mx.random.normal((3, IN)).astype(dtype)
    x[:, COLUMN] = 6e4
    exact = float64(x) @ dense(stock, float64).T
    rounding = relative_error(mx.array(exact).astype(dtype), exact)
    assert relative_error(layer(x), exact) <= 0.3 * PROMISE + 2 * rounding


@targets
def test_outliers_of_experts(target, float64, relative_error):
    stock = SwitchLinear(IN, OUT, 3, bias=False)
    stock.weight = mx.random.normal((3, OUT, IN)) * 0.02
    stock.weight[:, :, COLUMN] *= 1e-3
    stock = stock.to_quantized(64, 4)
    layer = EntropyCodedSwitchLinear.from_quantized(stock)
    experts = mx.array([2, 0, 2, 1, 2])
    weight = dense(stock, float64)
    for peak in PEAKS:
        x = mx.random.normal((5, 1, IN))
        x[::2, :, COLUMN] = peak
        exact = np.einsum("bi,boi->bo", float64(x)[:, 0], weight[experts])
        error = relative_error(layer(x, experts)[:, 0], exact)
        assert error <= 0.3 * PROMISE, peak


@targets
@pytest.mark.parametrize("side", ["scales", "biases"])
@pytest.mark.parametrize("value", [mx.inf, -mx.inf, mx.nan])
@pytest.mark.parametrize("batch", [1, 5])
def test_infinite_scales_and_biases_are_as_in_stock(target, side, value, batch):
    stock = quantized()
    stock[side][3, 1] = value
    stock[side][5, :] = value
    layer = EntropyCodedLinear.from_quantized(stock)
    for x in (
        mx.random.normal((batch, IN)),
        mx.abs(mx.random.normal((batch, IN))),
        mx.zeros((batch, IN)),
    ):
        assert_same_kinds(layer(x), stock(x))


@targets
@pytest.mark.parametrize("batch", [1, 5])
def test_infinite_activations_are_as_in_stock(target, batch):
    stock = quantized()
    layer = EntropyCodedLinear.from_quantized(stock)
    x = mx.random.normal((batch, IN))
    for column, value in [(3, mx.inf), (4, -mx.inf), (200, 1e6), (4, mx.nan)]:
        x[0, column] = value
        assert_same_kinds(layer(x), stock(x))


def assert_same_kinds(y, expected):
    """NaN and infinities are in the same places, and the rest is close."""
    assert mx.allclose(y, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
