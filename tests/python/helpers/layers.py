"""Stock layers to code, with normal weights."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

BITS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
# What stock MLX itself may be off by, which accumulates in the type of x, or in
# float32 ours, which rounds activations to 16 bits.
COARSE = {mx.float32: 5e-5, mx.float16: 7e-3, mx.bfloat16: 5e-2}
IN, OUT = 384, 49


def integers(values, dtype):
    """An array of Python integers of any size that the type has."""
    return mx.array(np.array(values, dtype=dtype_id(dtype)))


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
