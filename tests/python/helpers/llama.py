"""mlx-lm's llama at tiny size: in memory, and as stock or coded directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.models import llama

import mlx_entropy
from mlx_entropy.model_format import (
    CONFIG_KEY,
    FORMAT_VERSION,
    MODEL_FILE,
    MODEL_FILE_SOURCE,
)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
TOKENS = mx.array([[5, 299, 0, 17, 17], [1, 2, 3, 4, 250]])


def build(
    quantization: Mapping[str, Any] | None = None,
    dtype: mx.Dtype = mx.float32,
    **changes: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights, and its config."""
    config = CONFIG | changes
    model = llama.Model(llama.ModelArgs.from_dict(config))
    randomize(model, dtype)
    if quantization:
        nn.quantize(model, **quantization)
        config["quantization"] = dict(quantization)
    mx.eval(model.parameters())
    return model, config


def randomize(model: nn.Module, dtype: mx.Dtype) -> None:
    """Normal weights: uniform ones, which layers start with, do not shrink."""

    def value(old: mx.array) -> mx.array:
        new = 0.05 * mx.random.normal(old.shape) if old.ndim == 2 else old
        return new.astype(dtype)

    model.apply(value)


def save(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    """As stock mlx-lm saves it."""
    folder.mkdir(exist_ok=True)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    utils.save_config(dict(config), folder / "config.json")
    return folder


def save_coded(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    predicate: Callable[[str, nn.Module], bool] | None = None,
    model_file: str | None = MODEL_FILE_SOURCE,
) -> Path:
    """Code the model's layers in place and save it as `convert` would."""
    report = mlx_entropy.entropy_quantize(model, predicate)
    config = config | {CONFIG_KEY: {"format_version": FORMAT_VERSION}}
    if not report.raw:
        config.pop("quantization", None)
    folder.mkdir(exist_ok=True)
    if model_file is not None:
        config["model_file"] = MODEL_FILE
        (folder / MODEL_FILE).write_text(model_file)
    (folder / "config.json").write_text(json.dumps(config))
    save_weights(folder, dict(tree_flatten(model.parameters())))
    return folder


def weights_of(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))


def save_weights(folder: Path, weights: dict[str, mx.array]) -> None:
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def load_registered(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    mlx_entropy.register()
    return utils.load_model(folder)


def load_model_file(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    return utils.load_model(folder, trust_remote_code=True)


# Both ways of mlx-lm to a converted model.
ROUTES = [load_registered, load_model_file]
