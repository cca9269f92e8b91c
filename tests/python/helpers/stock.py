"""Stock directories of tiny models, and mlx-lm's programs to run on them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.tuner.utils import linear_to_lora_layers

from helpers.tiny import write_tokenizer

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIED = LLAMA | {"tie_word_embeddings": True}
MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
}
MODELS = {"llama": LLAMA, "tied": TIED, "moe": MOE}
QUANTIZED = {"group_size": 64, "bits": 4}
TOKENS = mx.array([[5, 100, 3, 17, 17, 40, 41], [1, 2, 3, 4, 99, 7, 8]])


def write(
    folder: Path,
    config: Mapping[str, Any] = LLAMA,
    quantization: Mapping[str, Any] | None = QUANTIZED,
    dtype: mx.Dtype = mx.float32,
) -> Path:
    """A random model as mlx-lm saves it, with a tokenizer."""
    config = dict(config)
    model_class, args_class = utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(dtype)
    if quantization:
        nn.quantize(model, **quantization)
        config["quantization"] = dict(quantization)
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_adapter(
    folder: Path,
    source: Path,
    keys: list[str] | None = None,
    kind: str = "lora",
) -> Path:
    """A random adapter for all layers of a stock model."""
    model, _ = utils.load_model(source)
    model.freeze()
    settings: dict[str, Any] = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    if keys:
        settings["keys"] = keys
    linear_to_lora_layers(model, 2, settings, use_dora=kind == "dora")
    weights: Any = tree_flatten(model.trainable_parameters())
    assert weights
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "adapters.safetensors"),
        {
            # Fresh ones are zero, and would change nothing.
            name: 0.1 * mx.random.normal(array.shape)
            for name, array in weights
        },
    )
    about = {
        "fine_tune_type": kind,
        "num_layers": 2,
        "lora_parameters": settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: Any) -> None:
    """One of mlx-lm's programs, e.g. "fuse", in this process."""
    line = [f"mlx_lm.{program}", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", line)
    importlib.import_module(f"mlx_lm.{program}").main()


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in folder.glob("model*.safetensors"):
        arrays: Any = mx.load(str(file))
        found.update(arrays)
    return found


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content
