"""EntropyCodedLinear against the stock layers and a float64 product."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from helpers.layers import (
    BITS,
    COARSE,
    DTYPES,
    GROUPS,
    IN,
    OUT,
    dtype_id,
    linear,
    quantized,
)
from mlx_entropy import EntropyCodedLinear


def same_layer(a, b, same_bits):
    return a.keys() == b.keys() and all(
        same_bits(value, b[name])
        for name, value in a.items()
        if isinstance(value, mx.array)
    )


@pytest.fixture
def weight64(float64):
    """The weights that a stock layer stands for, exact in float64."""

    def dense(layer):
        if isinstance(layer, nn.Linear):
            return float64(layer.weight)
        ones = mx.ones(layer.scales.shape)
        codes = mx.dequantize(
            layer.weight, ones, 0 * ones, layer.group_size, layer.bits
        )
        scales, biases = (
            np.repeat(float64(side), layer.group_size, axis=1)
            for side in (layer.scales, layer.biases)
        )
        return float64(codes) * scales + biases

    return dense


@pytest.fixture
def check(weight64, float64, relative_error):
    """Assert that a product is as exact as its type can tell.

    Results are rounded to their type, where a small error may turn a value
    the other way; `limit` is what comes on top, about twice what is measured.
    """

    def check(y, x, stock, limit=None):
        if limit is None:
            limit = 3e-6 if isinstance(stock, nn.Linear) else 5e-5
        exact = float64(x) @ weight64(stock).T
        if "bias" in stock:
            exact += float64(stock.bias)
        rounding = relative_error(
            mx.array(exact.astype(np.float32)).astype(y.dtype), exact
        )
        assert relative_error(y, exact) <= limit + 2 * rounding

    return check


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
class TestAffine:
    def test_product(self, bits, group_size, dtype, check, relative_error):
        stock = quantized(bits, group_size, dtype)
        layer = EntropyCodedLinear.from_quantized(stock)
        x = mx.random.normal((3, IN)).astype(dtype)
        y = layer(x)
        assert y.dtype == dtype
        check(y, x, stock)
        assert relative_error(y, stock(x)) <= COARSE[dtype]

    def test_decode_is_bit_identical(self, bits, group_size, dtype, same_bits):
        stock = quantized(bits, group_size, dtype, bias=True)
        back = EntropyCodedLinear.from_quantized(stock).decode()
        assert type(back) is nn.QuantizedLinear
        assert (back.bits, back.group_size) == (bits, group_size)
        assert back.mode == "affine"
        assert same_layer(back, stock, same_bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
class TestFloat:
    def test_product(self, dtype, check):
        stock = linear(dtype=dtype, bias=True)
        layer = EntropyCodedLinear.from_linear(stock)
        x = mx.random.normal((5, IN)).astype(dtype)
        y = layer(x)
        assert y.dtype == dtype
        check(y, x, stock)

    def test_decode_is_bit_identical(self, dtype, same_bits):
        stock = linear(dtype=dtype, bias=True)
        back = EntropyCodedLinear.from_linear(stock).decode()
        assert type(back) is nn.Linear
        assert same_layer(back, stock, same_bits)

    def test_odd_shapes(self, dtype, check):
        for rows, cols in [(1, 1), (1, 7), (7, 1), (33, 172), (3, 1000)]:
            stock = linear(rows, cols, dtype)
            layer = EntropyCodedLinear.from_linear(stock)
            x = mx.random.normal((2, cols)).astype(dtype)
            check(layer(x), x, stock)


@pytest.mark.parametrize(
    "shape", [(IN,), (1, IN), (2, 3, IN), (1, 2, 1, 3, IN), (70, IN)]
)
def test_leading_shapes(shape, check):
    stock = quantized(bias=True)
    x = mx.random.normal(shape)
    y = EntropyCodedLinear.from_quantized(stock)(x)
    assert y.shape == (*shape[:-1], OUT)
    check(y, x, stock)


@pytest.mark.parametrize("shape", [(0, IN), (2, 0, IN)])
def test_empty_batch(shape):
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    y = layer(mx.zeros(shape))
    mx.eval(y)
    assert y.shape == (*shape[:-1], OUT)


def test_non_contiguous_x(check):
    stock = quantized()
    layer = EntropyCodedLinear.from_quantized(stock)
    for x in (
        mx.random.normal((IN, 4)).T,
        mx.random.normal((4, 2 * IN))[:, ::2],
        mx.random.normal((8, IN))[::-2],
        mx.broadcast_to(mx.random.normal((1, IN)), (4, IN)),
        mx.random.normal((4, IN + 8))[:, 8:],
    ):
        check(layer(x), x, stock)


@pytest.mark.parametrize("rows", [1, 2, 31, 33, 257])
def test_row_counts(rows, check):
    stock = quantized(rows=rows)
    x = mx.random.normal((2, IN))
    # One or two sums may be small by chance.
    limit = 2e-4 if rows < 3 else None
    check(EntropyCodedLinear.from_quantized(stock)(x), x, stock, limit)


@pytest.mark.parametrize("group_size", GROUPS)
def test_one_group_a_row(group_size, check):
    stock = quantized(group_size=group_size, cols=group_size)
    x = mx.random.normal((2, group_size))
    check(EntropyCodedLinear.from_quantized(stock)(x), x, stock)


def test_constant_weights(check):
    stock = linear()
    stock.weight = mx.full((OUT, IN), 0.5)
    x = mx.random.normal((2, IN)) + 1
    check(EntropyCodedLinear.from_linear(stock)(x), x, stock)
    check(EntropyCodedLinear.from_linear(stock, bits=4)(x), x, stock)


def test_zero_weights():
    layer = EntropyCodedLinear.from_linear(weight=mx.zeros((OUT, IN)), bits=4)
    assert mx.array_equal(layer(mx.ones((2, IN))), mx.zeros((2, OUT)))


def test_zero_x():
    layer = EntropyCodedLinear.from_quantized(quantized())
    assert mx.array_equal(layer(mx.zeros((2, IN))), mx.zeros((2, OUT)))


def test_large_x(check):
    stock = quantized()
    x = mx.random.normal((2, IN)) * 1e20
    check(EntropyCodedLinear.from_quantized(stock)(x), x, stock)


def test_from_linear_with_bits_is_mx_quantize(same_bits):
    stock = linear(bias=True)
    layer = EntropyCodedLinear.from_linear(stock, bits=3, group_size=32)
    expected = nn.QuantizedLinear.from_linear(stock, 32, 3)
    assert same_layer(layer.decode(), expected, same_bits)


def test_raw_arrays(same_bits):
    stock = quantized(3, 32, mx.float16, bias=True)
    layer = EntropyCodedLinear.from_quantized(
        weight=stock.weight,
        scales=stock.scales,
        biases=stock.biases,
        bias=stock.bias,
        group_size=32,
        bits=3,
    )
    assert same_layer(layer.decode(), stock, same_bits)
    dense = linear(bias=True)
    layer = EntropyCodedLinear.from_linear(weight=dense.weight, bias=dense.bias)
    assert same_layer(layer.decode(), dense, same_bits)


def test_parameters_are_coded_and_bias_and_frozen():
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    mx.eval(layer.parameters())
    assert layer.parameters().keys() == {"coded", "bias"}
    assert layer.trainable_parameters() == {}
    assert (layer.coded.dtype, layer.coded.ndim) == (mx.uint8, 1)
    assert not hasattr(layer, "bits")
    assert not hasattr(layer, "to_quantized")


def test_set_dtype_keeps_the_code(same_bits):
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    coded = layer.coded
    layer.set_dtype(mx.bfloat16)
    assert same_bits(layer.coded, coded)
    assert layer.bias.dtype == mx.bfloat16


def test_nn_quantize_skips_it():
    model = nn.Sequential(EntropyCodedLinear.from_linear(linear()))
    layer = model.layers[0]
    nn.quantize(model)
    assert model.layers[0] is layer


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_save_and_load(tmp_path, suffix, same_bits):
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    file = str(tmp_path / f"layer.{suffix}")
    layer.save_weights(file)
    size = layer.coded_bytes
    loaded = EntropyCodedLinear(IN, OUT, size, bias=True)
    loaded.load_weights(file)
    x = mx.random.normal((2, IN))
    assert same_bits(loaded(x), layer(x))
    with pytest.raises(ValueError, match="coded"):
        EntropyCodedLinear(IN, OUT, size + 1, bias=True).load_weights(file)
    with pytest.raises(ValueError, match="bias"):
        EntropyCodedLinear(IN, OUT, size).load_weights(file)


def test_sizes():
    stock = quantized(rows=512, cols=512, dtype=mx.float16)
    layer = EntropyCodedLinear.from_quantized(stock)
    arrays = (stock.weight, stock.scales, stock.biases)
    assert layer.source_bytes == sum(array.nbytes for array in arrays)
    assert layer.coded_bytes == layer.coded.nbytes == layer.info.nbytes
    assert layer.coded_bytes < layer.source_bytes
    assert layer.bits_per_weight == 8 * layer.coded_bytes / 512**2
    dense = EntropyCodedLinear.from_linear(linear(512, 512, mx.bfloat16))
    assert dense.source_bytes == 2 * 512**2
    assert dense.coded_bytes < dense.source_bytes


def test_info():
    info = EntropyCodedLinear.from_quantized(quantized(3, 32, mx.float16)).info
    assert (info.scheme, info.bits, info.group_size) == ("affine", 3, 32)
    assert (info.rows, info.cols, info.dtype) == (OUT, IN, mx.float16)
    info = EntropyCodedLinear.from_linear(linear(dtype=mx.bfloat16)).info
    assert (info.scheme, info.group_size) == ("float", 0)
    assert info.dtype == mx.bfloat16


def test_repr():
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    rate = f"{layer.bits_per_weight:.3f}"
    assert repr(layer) == (
        f"EntropyCodedLinear(input_dims={IN}, output_dims={OUT}, bias=True, "
        f"bits_per_weight={rate})"
    )
    assert "bias=False" in repr(EntropyCodedLinear(IN, OUT, 10))
