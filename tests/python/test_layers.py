"""EntropyCodedLinear against the stock layers and a float64 product."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_entropy import EntropyCodedLinear

BITS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
IN, OUT = 384, 49


def dtype_id(value):
    return str(value).split(".")[-1]


def linear(rows=OUT, cols=IN, dtype=mx.float32, bias=False):
    layer = nn.Linear(cols, rows, bias=bias)
    layer.weight = (mx.random.normal((rows, cols)) * 0.05).astype(dtype)
    if bias:
        layer.bias = mx.random.normal((rows,)).astype(dtype)
    return layer


def quantized(bits=4, group_size=64, dtype=mx.float32, bias=False, **shape):
    layer = linear(dtype=dtype, bias=bias, **shape)
    return nn.QuantizedLinear.from_linear(layer, group_size, bits)


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
    """Assert that a product is as exact as its type can tell."""

    def check(y, x, stock):
        exact = float64(x) @ weight64(stock).T
        if "bias" in stock:
            exact += float64(stock.bias)
        rounding = relative_error(
            mx.array(exact.astype(np.float32)).astype(y.dtype), exact
        )
        assert relative_error(y, exact) <= 1e-3 + rounding

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
        # Stock accumulates in the type of x: its own error adds to ours.
        coarse = {mx.float32: 1e-3, mx.float16: 1e-2, mx.bfloat16: 5e-2}
        assert relative_error(y, stock(x)) <= coarse[dtype]

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
    check(EntropyCodedLinear.from_quantized(stock)(x), x, stock)


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


def test_outlier_x(check):
    stock = quantized()
    x = mx.random.normal((2, IN))
    x[:, 5] = 3000.0
    check(EntropyCodedLinear.from_quantized(stock)(x), x, stock)


@pytest.mark.parametrize("bad", [mx.nan, mx.inf])
def test_non_finite_x_is_not_hidden(bad):
    layer = EntropyCodedLinear.from_quantized(quantized())
    x = mx.random.normal((2, IN))
    x[0, 3] = bad
    y = layer(x)
    assert not mx.isfinite(y[0]).any().item()
    assert mx.isfinite(y[1]).all().item()


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


@pytest.mark.parametrize("lossless", [False, True])
def test_gradient(lossless, relative_error):
    if lossless:
        stock = linear(bias=True)
        layer = EntropyCodedLinear.from_linear(stock)
    else:
        stock = quantized(bias=True)
        layer = EntropyCodedLinear.from_quantized(stock)
    x = mx.random.normal((2, 3, IN))
    target = mx.random.normal((2, 3, OUT))

    def loss(layer):
        return mx.grad(lambda x: ((layer(x) - target) ** 2).sum())

    assert relative_error(loss(layer)(x), loss(stock)(x)) <= 1e-3


def test_jvp(relative_error):
    stock = quantized()
    layer = EntropyCodedLinear.from_quantized(stock)
    x, tangent = mx.random.normal((2, 3, IN))
    _, (ours,) = mx.jvp(layer, [x], [tangent])
    assert relative_error(ours, stock(tangent)) <= 1e-3


def test_vmap(relative_error):
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    x = mx.random.normal((4, 5, IN))
    expected = layer(x)
    assert relative_error(mx.vmap(layer)(x), expected) <= 1e-5
    inner = mx.vmap(layer, in_axes=1, out_axes=1)(x)
    assert relative_error(inner, expected) <= 1e-5
    twice = mx.vmap(mx.vmap(layer))(x)
    assert relative_error(twice, expected) <= 1e-5


def test_gradient_under_vmap(relative_error):
    stock = linear()  # quantized_matmul has no vmap
    layer = EntropyCodedLinear.from_linear(stock)
    x = mx.random.normal((4, IN))

    def gradient(layer):
        return mx.vmap(mx.grad(lambda x: (layer(x) ** 2).sum()))(x)

    assert relative_error(gradient(layer), gradient(stock)) <= 1e-3


@pytest.mark.parametrize("shapeless", [False, True])
def test_compile(shapeless, relative_error):
    layer = EntropyCodedLinear.from_quantized(quantized(bias=True))
    mx.eval(layer.parameters())

    @lambda f: mx.compile(f, shapeless=shapeless)
    def f(x):
        return nn.silu(layer(2 * x))

    for rows in (1, 3, 1):
        x = mx.random.normal((rows, IN))
        assert relative_error(f(x), nn.silu(layer(2 * x))) <= 1e-5


def test_lazy_chain(relative_error):
    stock = [quantized(rows=IN, bias=True) for _ in range(4)]
    ours = [EntropyCodedLinear.from_quantized(layer) for layer in stock]
    x = mx.random.normal((2, IN))
    y, expected = x, x
    for layer, reference in zip(ours, stock, strict=True):
        y, expected = layer(y), reference(expected)
    assert relative_error(y, expected) <= 2e-3


class TestErrors:
    def test_other_modes(self):
        for mode, group_size in [("mxfp4", 32), ("nvfp4", 16), ("mxfp8", 32)]:
            layer = linear().to_quantized(group_size, mode=mode)
            with pytest.raises(ValueError, match=mode):
                EntropyCodedLinear.from_quantized(layer)

    def test_wrong_layers(self):
        with pytest.raises(ValueError, match="QuantizedLinear, got Linear"):
            EntropyCodedLinear.from_quantized(linear())
        with pytest.raises(ValueError, match="Linear, got QuantizedLinear"):
            EntropyCodedLinear.from_linear(quantized())

    def test_either_layer_or_arrays(self):
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

    def test_quantization(self):
        with pytest.raises(ValueError, match=r"bits must be .* got 7"):
            EntropyCodedLinear.from_linear(linear(), bits=7)
        with pytest.raises(ValueError, match=r"group_size must be .* got 16"):
            EntropyCodedLinear.from_linear(linear(), bits=4, group_size=16)
        with pytest.raises(ValueError, match=r"group size 64.*\(8, 96\)"):
            EntropyCodedLinear.from_linear(linear(8, 96), bits=4)

    def test_weights(self):
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

    def test_arrays_that_do_not_fit(self):
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

    def test_x_of_wrong_shape_or_type(self):
        layer = EntropyCodedLinear.from_quantized(quantized())
        with pytest.raises(ValueError, match=r"\[..., 384\], got \(2, 448\)"):
            layer(mx.zeros((2, IN + 64)))
        with pytest.raises(ValueError, match="got int32"):
            layer(mx.zeros((2, IN), mx.int32))
        with pytest.raises(ValueError, match=r"got shape \(\)"):
            layer(mx.array(1.0))

    def test_placeholder_holds_nothing(self):
        with pytest.raises(ValueError, match="invalid coded matrix"):
            EntropyCodedLinear(IN, OUT, 64).info  # noqa: B018
