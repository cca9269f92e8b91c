"""EntropyCodedSwitchLinear under gradients, vmap and compile."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear

from mlx_entropy import EntropyCodedSwitchLinear, _ext, entropy_quantize

EXPERTS, ROWS, COLUMNS = 4, 96, 128
SHAPES = [
    ((2, 5, 1, 1, COLUMNS), (2, 5, 3)),
    ((7, 1, COLUMNS), (7,)),
    ((30, 3, COLUMNS), (30,)),
]


@pytest.fixture(params=[None, 2, 4, 8])
def layers(request):
    """A stock layer with biases, and the coded one."""
    stock = SwitchLinear(COLUMNS, ROWS, EXPERTS, bias=True)
    stock.bias = mx.random.normal((EXPERTS, ROWS))
    if request.param is None:
        return stock, EntropyCodedSwitchLinear.from_switch(stock)
    stock = stock.to_quantized(64, request.param)
    return stock, EntropyCodedSwitchLinear.from_quantized(stock)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_gradient(layers, shapes, relative_error):
    x = mx.random.normal(shapes[0])
    indices = mx.random.randint(0, EXPERTS, shapes[1])

    def gradient(layer):
        return mx.grad(lambda x: (layer(x, indices) ** 2).sum())(x)

    stock, coded = layers
    found = gradient(coded)
    assert found.shape == x.shape
    assert relative_error(found, gradient(stock)) <= 1e-4


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_gradient_has_the_type_of_x(layers, dtype, relative_error):
    _, coded = layers
    x = mx.random.normal((7, 1, COLUMNS)).astype(dtype)
    indices = mx.array([0, 3, 3, 1, 0, 2, 1])

    def gradient(x):
        return mx.grad(lambda x: coded(x, indices).sum())(x)

    found = gradient(x)
    assert found.dtype == dtype
    assert relative_error(found, gradient(x.astype(mx.float32))) <= 1e-2


@pytest.mark.parametrize("codec", ["rans", "tree", "flat"])
@pytest.mark.parametrize("target", _ext.targets())
def test_gradient_of_every_codec(layers, codec, target, relative_error):
    _, coded = layers
    x = mx.random.normal((9, 1, COLUMNS))
    indices = mx.random.randint(0, EXPERTS, (9,))
    before = _ext.target()
    _ext.set_target(target)
    try:
        coded.coded = _ext.transcode(coded.coded, codec)
        weights = [
            mx.grad(lambda x, layer=layer: (layer(x, indices) ** 2).sum())(x)
            for layer in layers
        ]
        mx.eval(weights)
    finally:
        _ext.set_target(before)
    assert relative_error(weights[1], weights[0]) <= 1e-4


def test_second_derivative(layers, relative_error):
    """The gradient of a gradient multiplies with the weights once more."""
    x = mx.random.normal((5, 1, COLUMNS))
    direction = mx.random.normal((5, 1, COLUMNS))
    indices = mx.array([1, 0, 3, 3, 2])

    def second(layer):
        def loss(x):
            return (layer(x, indices) ** 2).sum()

        return mx.grad(lambda x: (mx.grad(loss)(x) * direction).sum())(x)

    stock, coded = layers
    assert relative_error(second(coded), second(stock)) <= 1e-4


def test_jvp(layers, relative_error):
    _, coded = layers
    x, tangent = mx.random.normal((2, 7, 1, COLUMNS))
    indices = mx.random.randint(0, EXPERTS, (7,))
    _, (found,) = mx.jvp(lambda x: coded(x, indices), [x], [tangent])
    difference = coded(tangent, indices) - coded(mx.zeros_like(x), indices)
    assert relative_error(found, difference) <= 1e-4


@pytest.mark.parametrize(
    ("axes", "x_shape", "indices_shape"),
    [
        ((0, 0), (3, 7, 1, COLUMNS), (3, 7)),
        ((2, 1), (7, 1, 3, COLUMNS), (7, 3)),
        ((0, None), (3, 7, 1, COLUMNS), (7,)),
        ((None, 1), (7, 1, COLUMNS), (7, 3)),
    ],
    ids=str,
)
def test_vmap(layers, axes, x_shape, indices_shape, relative_error):
    _, coded = layers
    x = mx.random.normal(x_shape)
    indices = mx.random.randint(0, EXPERTS, indices_shape)

    def part(array, axis, i):
        return array if axis is None else mx.take(array, i, axis)

    expected = mx.stack(
        [
            coded(part(x, axes[0], i), part(indices, axes[1], i))
            for i in range(3)
        ]
    )
    assert relative_error(mx.vmap(coded, axes)(x, indices), expected) <= 1e-5


def test_gradient_under_vmap(layers, relative_error):
    _, coded = layers
    x = mx.random.normal((6, 2, 1, COLUMNS))
    indices = mx.random.randint(0, EXPERTS, (6, 2))

    def gradient(x, indices):
        return mx.grad(lambda x: (coded(x, indices) ** 2).sum())(x)

    found = mx.vmap(gradient)(x, indices)
    assert relative_error(found, gradient(x, indices)) <= 1e-5


def test_compile(layers, relative_error):
    _, coded = layers
    mx.eval(coded.parameters())
    step = mx.compile(lambda x, i: coded(2 * x, i))
    for rows in (1, 3, 1):
        x = mx.random.normal((rows, 1, COLUMNS))
        indices = mx.random.randint(0, EXPERTS, (rows,))
        assert relative_error(step(x, indices), coded(2 * x, indices)) <= 1e-5


def test_gradient_through_a_mixture(relative_error):
    model = SwitchGLU(64, 128, EXPERTS)
    x = mx.random.normal((2, 40, 64))
    indices = mx.random.randint(0, EXPERTS, (2, 40, 2))

    def gradient():
        return mx.grad(lambda x: (model(x, indices) ** 2).sum())(x)

    expected = gradient()
    mx.eval(expected)
    assert not entropy_quantize(model).raw
    assert relative_error(gradient(), expected) <= 1e-4


def test_coded_weights_and_indices_have_no_derivative():
    stock = SwitchLinear(COLUMNS, ROWS, EXPERTS, bias=False)
    coded = EntropyCodedSwitchLinear.from_switch(stock)
    x = mx.random.normal((2, 1, COLUMNS))
    indices = mx.array([0.0, 1.0])

    def product(indices):
        return coded(x, indices.astype(mx.int32)).sum()

    with pytest.raises(ValueError, match="no derivative in the indices"):
        mx.grad(product)(indices)
    with pytest.raises(ValueError, match="vmap over the coded weights"):
        mx.vmap(
            lambda bytes: _ext.entropy_coded_gather_matmul(
                x, bytes, mx.array([0, 1]), ROWS
            )
        )(mx.stack([coded.coded, coded.coded]))
