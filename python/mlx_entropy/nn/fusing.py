"""Choose who computes a model's decoder layers: one operation, or mlx-lm."""

from __future__ import annotations

import os
from typing import Any

import mlx.nn as nn

# mlx-lm's stacks of layers that compute the same, but for biases and norms of
# the heads: module and class.
STACKS = {
    "mlx_lm.models.llama": "LlamaModel",
    "mlx_lm.models.qwen2": "Qwen2Model",
    "mlx_lm.models.qwen3": "Qwen3Model",
}


def fuse(model: nn.Module) -> bool:
    """Let a llama-like model of mlx-lm run its layers as one operation.

    The operation is used where it applies: every projection is an
    `EntropyCodedLinear`, the model is in evaluation mode on the CPU, the batch
    is 1, and caches, if any, are mlx-lm's plain ``KVCache``. Everything else,
    such as LoRA, quantized caches, batches, or a function that MLX
    differentiates, vectorizes or compiles, is computed as before.

    Args:
        model (nn.Module): What `mlx_lm.load` returns. Changed in place.

    Returns:
        Whether the model is mlx-lm's llama (which mistral is, too), qwen2 or
        qwen3. False as well with ``MLX_ENTROPY_FUSED=0`` in the environment.
    """
    if os.environ.get("MLX_ENTROPY_FUSED") == "0":
        return False
    stack: Any = model.get("model")
    kind: Any = type(stack)
    if STACKS.get(kind.__module__) == kind.__name__:
        # Imports mlx-lm, which whoever has its model has done already.
        from .fused_llama import fused_class

        stack.__class__ = kind = fused_class(kind)
    return hasattr(kind, "stock")


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`; changes nothing on a model that is not fused."""
    stack: Any = model.get("model")
    stock = getattr(type(stack), "stock", None)
    if stock is not None:
        stack.__class__ = stock
