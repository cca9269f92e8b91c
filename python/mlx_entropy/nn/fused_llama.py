"""Run all decoder layers of a llama-family model as one operation.

mlx-lm's model makes about twenty array operations a layer, each of which MLX
runs on one thread of the CPU. `fuse` gives the model's stack of layers a class
that calls `_ext.LlamaDecoder` instead. Modules, parameters and caches stay as
they are, so loading, saving, adapters and prompt caches work as before; what
the operation does not cover takes mlx-lm's own path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import is_
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache
from mlx_lm.models.llama import MLP, Attention, LlamaModel, TransformerBlock
from mlx_lm.models.rope_utils import Llama3RoPE

from .. import _ext
from .linear import EntropyCodedLinear

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def fuse(model: nn.Module) -> bool:
    """Let a llama model of mlx-lm run its decoder layers as one operation.

    The operation is used where it applies: every projection is an
    `EntropyCodedLinear`, the model is in evaluation mode on the CPU, the batch
    is 1, and caches, if any, are plain `KVCache`s. Everything else, such as
    LoRA, quantized caches or batches, is computed as before.

    Args:
        model (nn.Module): What `mlx_lm.load` returns. Changed in place.

    Returns:
        Whether the model is of the llama family. False as well with
        ``MLX_ENTROPY_FUSED=0`` in the environment.
    """
    if os.environ.get("MLX_ENTROPY_FUSED") == "0":
        return False
    stack = model.get("model")
    if type(stack) is LlamaModel:
        stack.__class__ = FusedLlamaModel
    return type(stack) is FusedLlamaModel


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`; changes nothing on a model that is not fused."""
    stack = model.get("model")
    if type(stack) is FusedLlamaModel:
        stack.__class__ = LlamaModel  # type: ignore[assignment]


class FusedLlamaModel(LlamaModel):  # type: ignore[misc]
    """mlx-lm's `LlamaModel` with its layers in one operation.

    Instances are made by `fuse`.
    """

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Tokens ``[batch, n]`` to hidden states ``[batch, n, hidden]``.

        Computed in float32, in the dtype of the embeddings outside.
        """
        plan = self._current_plan()
        if plan is None or not plan.covers(inputs, cache, input_embeddings):
            hidden: mx.array = super().__call__(inputs, cache, input_embeddings)
            return hidden
        if input_embeddings is None:
            input_embeddings = self.embed_tokens(inputs)
        if input_embeddings.dtype != plan.dtype:
            # Two different types of floats always promote to this.
            input_embeddings = input_embeddings.astype(mx.float32)
        return plan.run(input_embeddings, cache)

    def _current_plan(self) -> _Plan | None:
        if self.training or mx.default_device().type != mx.DeviceType.cpu:
            return None
        memo: _Memo | None = self.__dict__.get("_fused")
        if memo is None:
            memo = self._fused = _Memo()
        if not memo.is_of(self):
            memo.remember(self)
        return memo.plan


class _Memo:
    """The plan of a model, for as long as the model keeps its modules."""

    def __init__(self) -> None:
        self.plan: _Plan | None = None
        self._layers: list[nn.Module] | None = None
        self._owners: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._parts: list[Any] = []

    def __deepcopy__(self, memo: object) -> _Memo:
        return _Memo()  # A copied model has modules of its own.

    def __reduce__(self) -> tuple[type[_Memo], tuple[()]]:
        return _Memo, ()

    def is_of(self, stack: nn.Module) -> bool:
        layers = stack["layers"]
        return (
            self._layers is not None
            and len(layers) == len(self._layers)
            and all(map(is_, layers, self._layers))
            and all(
                map(is_, map(dict.get, self._owners, self._keys), self._parts)
            )
        )

    def remember(self, stack: nn.Module) -> None:
        self._layers = list(stack["layers"])
        parts = list(_parts(stack))
        self._owners = [owner for owner, _ in parts]
        self._keys = [key for _, key in parts]
        self._parts = [owner.get(key) for owner, key in parts]
        self.plan = _Plan.of(stack)


def _parts(stack: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where everything is that a plan is made of, as owner and key."""
    parts = [(stack, "norm")]
    for layer in stack["layers"]:
        names = list(layer)
        parts += [(layer, name) for name in names]
        for name in names:
            module = layer[name]
            if isinstance(module, nn.Module):
                parts += [(module, key) for key in module]
    for owner, name in list(parts):
        module = owner[name]
        if isinstance(module, (EntropyCodedLinear, nn.RMSNorm)):
            parts += [(module, key) for key in ("coded", "bias", "weight")]
    return parts


class _Plan:
    """A native decoder, and when and how to call it."""

    def __init__(
        self, decoder: _ext.LlamaDecoder, layers: int, dtype: mx.Dtype
    ) -> None:
        self._decoder = decoder
        self._layers = layers
        self.dtype = dtype

    @classmethod
    def of(cls, stack: nn.Module) -> _Plan | None:
        """The plan of a stack of layers, None if it cannot be fused."""
        layers = stack["layers"]
        if not all(map(_is_plain, layers)):
            return None
        projections = [
            module
            for layer in layers
            for module in (
                *(layer.self_attn[name] for name in _ATTENTION),
                *(layer.mlp[name] for name in _MLP),
            )
        ]
        norms = [
            norm
            for layer in layers
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ] + [stack["norm"]]
        first = layers[0].self_attn
        rope = _frequencies(first.rope)
        biases = [module.get("bias") for module in projections]
        vectors = [norm.weight for norm in norms]
        dtypes = {v.dtype for v in [*vectors, *biases] if v is not None}
        if (
            rope is None
            or any(type(norm) is not nn.RMSNorm for norm in norms)
            or len({norm.eps for norm in norms}) > 1
            or len(dtypes) > 1
        ):
            return None
        # nn.RoPE cannot be compared, but what it was made from can.
        if len({_rope_key(layer.self_attn) for layer in layers}) > 1:
            return None
        inverse_frequencies, scale, traditional = rope
        decoder = _ext.LlamaDecoder(
            [module["coded"] for module in projections],
            biases,
            vectors,
            inverse_frequencies,
            heads=first.n_heads,
            kv_heads=first.n_kv_heads,
            head_dim=first.head_dim,
            eps=norms[0].eps,
            attention_scale=first.scale,
            rope_scale=scale,
            rope_traditional=traditional,
        )
        return cls(decoder, len(layers), dtypes.pop())

    def covers(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None,
        input_embeddings: mx.array | None,
    ) -> bool:
        shape = inputs.shape
        if input_embeddings is not None:
            shape = input_embeddings.shape[:-1]
        if len(shape) != 2 or shape[0] != 1 or shape[1] == 0:
            return False
        if cache is None:
            return True
        if len(cache) != self._layers:
            return False
        # Exact types: a subclass may store something else.
        if any(type(layer) is not KVCache for layer in cache):
            return False
        offset, empty = cache[0].offset, cache[0].keys is None
        return (not empty or offset == 0) and all(
            layer.offset == offset and (layer.keys is None) == empty
            for layer in cache
        )

    def run(self, x: mx.array, cache: Sequence[Any] | None) -> mx.array:
        """``x`` ``[1, n, hidden]`` to the same after the last norm.

        The cache is updated as by mlx-lm, in arrays of its shape and steps.
        """
        tokens = x.shape[1]
        if cache is None:
            return self._decoder(x, [], [], 0, tokens)[0]
        offset = cache[0].offset
        keys: list[mx.array] = []
        values: list[mx.array] = []
        capacity = 0
        if cache[0].keys is not None:
            keys = [layer.keys for layer in cache]
            values = [layer.values for layer in cache]
            capacity = keys[0].shape[2]
        stop = offset + tokens
        if stop > capacity:
            step = KVCache.step
            capacity = (stop + step - 1) // step * step
        hidden, keys, values = self._decoder(x, keys, values, offset, capacity)
        for layer, key, value in zip(cache, keys, values, strict=True):
            layer.keys = key
            layer.values = value
            layer.offset = stop
        return hidden


def _is_plain(layer: nn.Module) -> bool:
    """A layer as mlx-lm makes it, with coded projections and nothing else."""
    if type(layer) is not TransformerBlock or layer.use_sliding:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if type(attention) is not Attention or type(mlp) is not MLP:
        return False
    return all(
        type(module) is EntropyCodedLinear
        for module in (
            *(attention[name] for name in _ATTENTION),
            *(mlp[name] for name in _MLP),
        )
    )


def _rope_key(attention: nn.Module) -> tuple[object, ...]:
    rope = attention.rope
    shape = attention.n_heads, attention.n_kv_heads, attention.head_dim
    return (
        *shape,
        attention.scale,
        type(rope),
        rope.dims,
        rope.traditional,
        getattr(rope, "base", None),
        getattr(rope, "scale", None),
    )


def _frequencies(rope: nn.Module) -> tuple[mx.array, float, bool] | None:
    """Inverse frequencies, scale of positions, and whether pairs adjoin."""
    half = rope.dims // 2 if hasattr(rope, "dims") else 0
    if type(rope) is nn.RoPE:
        # In float32 and by the same steps as mx.fast.rope.
        exponents = mx.arange(0, -half, -1, dtype=mx.float32)
        rate = mx.log(mx.array(rope.base, mx.float32)) / half
        return mx.exp(exponents * rate), rope.scale, rope.traditional
    if type(rope) is Llama3RoPE:
        return mx.reciprocal(rope._freqs), 1.0, rope.traditional
    return None
