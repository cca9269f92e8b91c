"""Tiny llama models in MLX's directory layout, and changes to make to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from helpers.sources import contents

HIDDEN = 256
INTERMEDIATE = 512
VOCABULARY = 512
LAYERS = 2

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

Quantization = Mapping[str, Any]


def affine(bits: int, group_size: int = 64) -> dict[str, Any]:
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


def write_model(
    folder: Path,
    *,
    dtype: mx.Dtype = mx.bfloat16,
    quantization: Quantization | None = None,
    overrides: Mapping[str, Quantization | bool] | None = None,
    noise: tuple[str, ...] = (),
) -> Path:
    """A llama model with random weights, quantized like mlx-lm does.

    `overrides` are the config's entries for single modules; False keeps one
    as floats. Tensors of the modules in `noise` are uniform random bits, which
    nothing can code smaller.
    """
    folder.mkdir(parents=True)
    config = dict(CONFIG)
    overrides = dict(overrides or {})
    if quantization is not None:
        config["quantization"] = {**quantization, **overrides}
        config["quantization_config"] = config["quantization"]
    tensors: dict[str, mx.array] = {}
    for index, (path, shape) in enumerate(_shapes().items()):
        key = mx.random.key(index)
        if len(shape) == 1:
            array = mx.random.normal(shape, key=key) * 0.1 + 1
            tensors[path] = array.astype(dtype)
            continue
        weight = (mx.random.normal(shape, key=key) * 0.02).astype(dtype)
        own = overrides.get(path, quantization)
        layer = _layer(path, weight, own or None)
        if path in noise:
            layer = {name: _noise(name, part) for name, part in layer.items()}
        tensors.update(layer)
    mx.save_safetensors(
        str(folder / "model.safetensors"), tensors, {"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


def _shapes() -> dict[str, tuple[int, ...]]:
    """Matrices by module path; vectors by parameter name."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCABULARY, HIDDEN)
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows, cols in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN // 2, HIDDEN),
            ("self_attn.v_proj", HIDDEN // 2, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ):
            shapes[prefix + name] = (rows, cols)
            if "self_attn" in name:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head"] = (VOCABULARY, HIDDEN)
    return shapes


def _layer(
    path: str, weight: mx.array, quantization: Quantization | None
) -> dict[str, mx.array]:
    if quantization is None:
        return {f"{path}.weight": weight}
    names = ("weight", "scales", "biases")
    parts = mx.quantize(weight, **quantization)
    return {f"{path}.{n}": part for n, part in zip(names, parts, strict=False)}


def _noise(name: str, array: mx.array) -> mx.array:
    raw = np.random.default_rng(list(name.encode())).bytes(array.nbytes)
    flat = mx.array(np.frombuffer(raw, np.uint8))
    return flat.view(array.dtype).reshape(array.shape)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a letter, to generate text with."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: i + 3 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder` by its relative name."""
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents(folder).items()
    }


def flip_byte(folder: Path, name: str, offset: int) -> None:
    """Change one byte of the tensor `name` in a model directory."""
    for file in folder.glob("model*.safetensors"):
        content = bytearray(file.read_bytes())
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        if name in header:
            start, stop = header[name]["data_offsets"]
            assert 0 <= offset < stop - start
            content[8 + length + start + offset] ^= 0x10
            file.write_bytes(content)
            return
    raise KeyError(name)
