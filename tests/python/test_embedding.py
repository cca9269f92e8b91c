"""EntropyCodedEmbedding against the stock embeddings."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from helpers.layers import BITS, COARSE, DTYPES, GROUPS, dtype_id, integers
from mlx_entropy import EntropyCodedEmbedding

ROWS, DIMS = 300, 128
# One unit in the last place of a scale times code plus bias.
ROUNDING = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}


def embedding(dtype=mx.float32):
    layer = nn.Embedding(ROWS, DIMS)
    layer.weight = (mx.random.normal((ROWS, DIMS)) * 0.1).astype(dtype)
    return layer


def quantized(bits=4, group_size=64, dtype=mx.float32):
    return nn.QuantizedEmbedding.from_embedding(
        embedding(dtype), group_size, bits
    )


def indices(*shape):
    return mx.random.randint(0, ROWS, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_affine_rows(bits, group_size, dtype, relative_error, same_bits):
    stock = quantized(bits, group_size, dtype)
    layer = EntropyCodedEmbedding.from_quantized(stock)
    rows = indices(2, 5)
    vectors = layer(rows)
    assert vectors.dtype == layer.dtype == dtype
    assert relative_error(vectors, stock(rows)) <= ROUNDING[dtype]
    back = layer.decode()
    assert type(back) is nn.QuantizedEmbedding
    assert (back.bits, back.group_size) == (bits, group_size)
    for name in ("weight", "scales", "biases"):
        assert same_bits(back[name], stock[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_float_rows_are_bit_identical(dtype, same_bits):
    stock = embedding(dtype)
    layer = EntropyCodedEmbedding.from_embedding(stock)
    everything = mx.arange(ROWS)
    assert layer(everything).dtype == layer.dtype == dtype
    assert same_bits(layer(everything), stock.weight)
    back = layer.decode()
    assert type(back) is nn.Embedding
    assert same_bits(back.weight, stock.weight)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 4), (400,)])
def test_index_shapes(shape, same_bits):
    stock = embedding()
    layer = EntropyCodedEmbedding.from_embedding(stock)
    rows = indices(*shape)
    assert layer(rows).shape == (*shape, DIMS)
    assert same_bits(layer(rows), stock(rows))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_indices(shape):
    layer = EntropyCodedEmbedding.from_embedding(embedding())
    vectors = layer(mx.zeros(shape, mx.int32))
    mx.eval(vectors)
    assert vectors.shape == (*shape, DIMS)


def test_index_types_and_order(same_bits):
    stock = embedding()
    layer = EntropyCodedEmbedding.from_embedding(stock)
    rows = mx.array([ROWS - 1, 0, 5, 5, ROWS - 1, 4])
    for dtype in (mx.int32, mx.uint32, mx.int64, mx.uint64, mx.int16):
        assert same_bits(layer(rows.astype(dtype)), stock(rows))
    assert same_bits(layer(rows[::-2]), stock(rows[::-2]))
    small = rows[1:4].astype(mx.uint8)
    assert same_bits(layer(small), stock(small))


def test_negative_indices_count_from_the_end(same_bits):
    stock = embedding()
    layer = EntropyCodedEmbedding.from_embedding(stock)
    rows = mx.array([-1, 0, -ROWS])
    assert same_bits(layer(rows), stock(rows))


FAR = {
    mx.int32: [ROWS, -ROWS - 1, 2**31 - 1, -(2**31)],
    mx.uint32: [2**32 - 1],
    mx.int64: [2**32, 2**63 - 1, -(2**63)],
    mx.uint64: [2**64 - 1, 2**63],
}


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(
    ("dtype", "index"),
    [(dtype, index) for dtype, indices in FAR.items() for index in indices],
)
def test_index_out_of_range_gives_zeros(quantize, dtype, index, same_bits):
    """As stock MLX does where it survives, and nothing is thrown in eval."""
    table = quantized() if quantize else embedding()
    layer = (
        EntropyCodedEmbedding.from_quantized(table)
        if quantize
        else (EntropyCodedEmbedding.from_embedding(table))
    )
    vectors = layer(integers([5, index, 7], dtype))
    assert same_bits(vectors[0], layer(mx.array(5)))
    assert not vectors[1].any().item()
    assert same_bits(vectors[2], layer(mx.array(7)))
    assert not layer(integers([index], dtype)).any().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("lossless", [False, True])
def test_as_linear(lossless, dtype, relative_error):
    if lossless:
        stock = embedding(dtype)
        layer = EntropyCodedEmbedding.from_embedding(stock)
    else:
        stock = quantized(dtype=dtype)
        layer = EntropyCodedEmbedding.from_quantized(stock)
    x = mx.random.normal((2, 3, DIMS)).astype(dtype)
    y = layer.as_linear(x)
    assert (y.shape, y.dtype) == ((2, 3, ROWS), dtype)
    assert relative_error(y, stock.as_linear(x)) <= COARSE[dtype]


def test_from_embedding_with_bits_is_mx_quantize(same_bits):
    stock = embedding(mx.float16)
    layer = EntropyCodedEmbedding.from_embedding(stock, bits=5, group_size=32)
    expected = nn.QuantizedEmbedding.from_embedding(stock, 32, 5)
    back = layer.decode()
    for name in ("weight", "scales", "biases"):
        assert same_bits(back[name], expected[name])
    assert layer.dtype == mx.float16


def test_raw_arrays(same_bits):
    stock = quantized(dtype=mx.bfloat16)
    layer = EntropyCodedEmbedding.from_quantized(
        weight=stock.weight, scales=stock.scales, biases=stock.biases
    )
    assert layer.dtype == mx.bfloat16
    assert same_bits(layer.decode().biases, stock.biases)
    dense = embedding()
    layer = EntropyCodedEmbedding.from_embedding(weight=dense.weight)
    assert same_bits(layer(mx.arange(ROWS)), dense.weight)


def test_save_and_load(tmp_path, same_bits):
    layer = EntropyCodedEmbedding.from_quantized(quantized(dtype=mx.float16))
    file = str(tmp_path / "layer.safetensors")
    layer.save_weights(file)
    loaded = EntropyCodedEmbedding(ROWS, DIMS, layer.coded_bytes, mx.float16)
    loaded.load_weights(file)
    rows = indices(4)
    assert same_bits(loaded(rows), layer(rows))


def test_parameters_are_frozen():
    layer = EntropyCodedEmbedding.from_quantized(quantized())
    mx.eval(layer.parameters())
    assert layer.parameters().keys() == {"coded"}
    assert layer.trainable_parameters() == {}
    assert not hasattr(layer, "bits")
    assert not hasattr(layer, "to_quantized")


def test_gradient_of_tied_head(relative_error):
    stock = quantized()
    layer = EntropyCodedEmbedding.from_quantized(stock)
    x = mx.random.normal((3, DIMS))

    def gradient(layer):
        return mx.grad(lambda x: (layer.as_linear(x) ** 2).sum())(x)

    assert relative_error(gradient(layer), gradient(stock)) <= 1e-3


def test_compile(same_bits):
    layer = EntropyCodedEmbedding.from_quantized(quantized())
    lookup = mx.compile(lambda rows: layer(rows))
    for count in (1, 4, 1):
        rows = indices(count)
        assert same_bits(lookup(rows), layer(rows))


def test_repr_and_sizes():
    stock = quantized()
    layer = EntropyCodedEmbedding.from_quantized(stock)
    arrays = (stock.weight, stock.scales, stock.biases)
    assert layer.source_bytes == sum(array.nbytes for array in arrays)
    assert layer.coded_bytes == layer.info.nbytes
    assert repr(layer) == (
        f"EntropyCodedEmbedding({ROWS}, {DIMS}, dtype={mx.float32}, "
        f"bits_per_weight={layer.bits_per_weight:.3f})"
    )


def test_errors():
    with pytest.raises(ValueError, match="mxfp4"):
        EntropyCodedEmbedding.from_quantized(
            embedding().to_quantized(32, mode="mxfp4")
        )
    with pytest.raises(ValueError, match="Embedding, got QuantizedEmbedding"):
        EntropyCodedEmbedding.from_embedding(quantized())
    with pytest.raises(ValueError, match="QuantizedEmbedding, got Embedding"):
        EntropyCodedEmbedding.from_quantized(embedding())
    with pytest.raises(ValueError, match="either a layer or its arrays"):
        EntropyCodedEmbedding.from_embedding()
    with pytest.raises(ValueError, match="group size 128"):
        EntropyCodedEmbedding.from_embedding(
            weight=mx.zeros((4, 96)), bits=4, group_size=128
        )
