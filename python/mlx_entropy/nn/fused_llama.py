"""Run all decoder layers of a llama-like model as one operation.

mlx-lm's model makes about twenty array operations a layer, each of which MLX
runs on one thread of the CPU. Here is the class that `fuse` gives a model's
stack of layers, which calls `_ext.FusedLlama` instead. Modules, parameters
and caches stay as they are, so loading, saving, adapters and prompt caches
work as before; what the operation does not cover takes mlx-lm's own path.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import is_
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import Llama3RoPE

from .. import _ext
from .fusing import STACKS
from .linear import EntropyCodedLinear

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


class FusedLayers:
    """What `fuse` puts before mlx-lm's class of a stack of layers."""

    stock: ClassVar[type[nn.Module]]

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Tokens ``[batch, n]`` to hidden states ``[batch, n, hidden]``.

        Computed in float32, in the dtype of the embeddings outside.
        """
        stack: Any = self
        plan = self._current_plan()
        if plan is None or not plan.covers(inputs, cache, input_embeddings):
            hidden: mx.array = self.stock.__call__(
                stack, inputs, cache, input_embeddings
            )
            return hidden
        if input_embeddings is None:
            input_embeddings = stack.embed_tokens(inputs)
        if _is_traced(input_embeddings, cache):
            # The operation has no derivative and takes no batch.
            hidden = self.stock.__call__(stack, inputs, cache, input_embeddings)
            return hidden
        if input_embeddings.dtype != plan.dtype:
            # Two different types of floats always promote to this.
            input_embeddings = input_embeddings.astype(mx.float32)
        return plan.run(input_embeddings, cache)

    def _current_plan(self) -> _Plan | None:
        stack: Any = self
        if stack.training or mx.default_device().type != mx.DeviceType.cpu:
            return None
        memo: _Memo | None = stack.__dict__.get("_fused")
        if memo is None:
            memo = stack._fused = _Memo()
        if not memo.is_of(stack):
            memo.remember(stack)
        return memo.plan


@functools.cache
def fused_class(stock: type[nn.Module]) -> type[nn.Module]:
    """The class of a stack in `STACKS` that runs it as one operation."""
    return type(stock.__name__, (FusedLayers, stock), {"stock": stock})


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
        parts += [(layer, name) for name in layer]
        for name in ("self_attn", "mlp"):
            parts += [(layer[name], key) for key in layer.get(name, ())]
    for owner, name in list(parts):
        module = owner[name]
        if isinstance(module, EntropyCodedLinear):
            parts += [(module, "coded")]
        if isinstance(module, (EntropyCodedLinear, nn.RMSNorm)):
            parts += [
                (module, key) for key in ("bias", "weight") if key in module
            ]
    return parts


class _Plan:
    """A native decoder, and when and how to call it."""

    def __init__(
        self, decoder: _ext.FusedLlama, layers: int, dtype: mx.Dtype
    ) -> None:
        self._decoder = decoder
        self._layers = layers
        self.dtype = dtype

    @classmethod
    def of(cls, stack: nn.Module) -> _Plan | None:
        """The plan of a stack of layers, None if it cannot be fused."""
        layers = stack["layers"]
        attentions = [layer.get("self_attn") for layer in layers]
        if getattr(stack, "pipeline_size", 1) != 1 or not all(
            map(_is_plain, layers)
        ):
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
        head_norms = [
            attention[name]
            for attention in attentions
            for name in ("q_norm", "k_norm")
            if name in attention
        ]
        every_norm = norms + head_norms
        rope = _frequencies(attentions[0].rope)
        if (
            rope is None
            or any(type(norm) is not nn.RMSNorm for norm in every_norm)
            or len({norm.eps for norm in every_norm}) > 1
            or len(set(map(_settings, attentions))) > 1
        ):
            return None
        biases = [module.get("bias") for module in projections]
        vectors = [norm.weight for norm in every_norm]
        dtypes = {v.dtype for v in [*vectors, *biases] if v is not None}
        if len(dtypes) > 1:
            return None
        first = attentions[0]
        inverse_frequencies, scale, traditional = rope
        decoder = _ext.FusedLlama(
            [module["coded"] for module in projections],
            biases,
            vectors[: len(norms)],
            vectors[len(norms) :],
            inverse_frequencies,
            heads=first.n_heads,
            kv_heads=first.n_kv_heads,
            head_dim=first.q_proj.output_dims // first.n_heads,
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


def _is_traced(x: mx.array, cache: Sequence[Any] | None) -> bool:
    arrays = [x]
    for layer in cache or ():
        if layer.keys is not None:
            arrays += [layer.keys, layer.values]
    return _ext.is_traced(arrays)


def _is_plain(layer: nn.Module) -> bool:
    """A layer as mlx-lm makes it, with coded projections and nothing else."""
    if not _is(layer, "TransformerBlock") or getattr(
        layer, "use_sliding", False
    ):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if not _is(attention, "Attention") or not _is(mlp, "MLP"):
        return False
    return all(
        type(module) is EntropyCodedLinear
        for module in (
            *(attention[name] for name in _ATTENTION),
            *(mlp[name] for name in _MLP),
        )
    )


def _is(module: nn.Module, name: str) -> bool:
    # Exact types: a subclass may compute something else.
    kind = type(module)
    return kind.__module__ in STACKS and kind.__name__ == name


def _settings(attention: nn.Module) -> tuple[object, ...]:
    """What all layers must have in common."""
    rope = attention.rope
    return (
        attention.n_heads,
        attention.n_kv_heads,
        attention.scale,
        "q_norm" in attention,
        type(rope),
        getattr(rope, "dims", None),
        getattr(rope, "traditional", None),
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
