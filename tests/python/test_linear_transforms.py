"""EntropyCodedLinear under gradients, vmap and compile."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from helpers.layers import (
    IN,
    OUT,
    linear,
    quantized,
)
from mlx_entropy import EntropyCodedLinear


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
