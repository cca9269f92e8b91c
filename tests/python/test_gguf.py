"""GGUF sources: names, exact values, and the same model in stock mlx-lm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from helpers import gguf_writer as ggml
from helpers import llama
from helpers.sources import write_gguf, write_stock
from mlx_entropy.sources import SourceError, open_source
from mlx_entropy.sources.base import Module


def dequantized(module: Module) -> np.ndarray:
    """float32 values by MLX's definition: code * scale + bias."""
    tensors = {
        name: array if name == "weight" else array.astype(mx.float32)
        for name, array in module.tensors.items()
    }
    values = mx.dequantize(
        tensors["weight"],
        tensors["scales"],
        tensors["biases"],
        **module.quantization,
    )
    return np.array(values)


def test_gguf_modules_have_the_names_mlx_lm_expects(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path, ggml.tiny_llama(tied=False)))
    names = [layout.path for layout in source.layout()]
    layer = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
        "input_layernorm",
        "post_attention_layernorm",
    ]
    assert names == [
        "model.embed_tokens",
        *(f"model.layers.{i}.{name}" for i in range(2) for name in layer),
        "model.norm",
        "lm_head",
    ]
    kinds = {module.path: module.kind for module in source.modules()}
    assert kinds["model.embed_tokens"] == "embedding"
    assert kinds["model.layers.1.mlp.up_proj"] == "linear"
    assert kinds["model.norm"] == "other"
    assert kinds["lm_head"] == "linear"


def test_gguf_layout_matches_the_modules(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path, ggml.tiny_llama()))
    found = [(module.path, module.nbytes) for module in source.modules()]
    assert found == [(each.path, each.nbytes) for each in source.layout()]
    skipped = frozenset(path for path, _ in found[1:])
    assert [m.path for m in source.modules(skip=skipped)] == [found[0][0]]


@pytest.mark.parametrize("kind", [ggml.Q4_0, ggml.Q4_1, ggml.Q8_0])
def test_gguf_values_are_those_of_the_blocks(tmp_path: Path, kind: int) -> None:
    writer = ggml.tiny_llama(kind, kind)
    for module in open_source(write_gguf(tmp_path, writer)).modules():
        if module.path != "model.layers.1.mlp.down_proj":
            continue
        _, shape, data = writer.tensors["blk.1.ffn_down.weight"]
        expected = ggml.dequantize(data, shape, kind)
        # float16 scales times small integers are exact in float32; adding
        # the bias rounds once.
        assert module.tensors["scales"].dtype == mx.float16
        np.testing.assert_allclose(dequantized(module), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [ggml.Q4_0, ggml.Q4_1, ggml.Q8_0])
def test_gguf_arrays_are_those_of_mlx(tmp_path: Path, kind: int) -> None:
    file = write_gguf(tmp_path, ggml.tiny_llama(kind, ggml.F16))
    stock = mx.load(str(file))
    modules = {module.path: module for module in open_source(file).modules()}
    for name in ("weight", "scales", "biases"):
        ours = modules["model.layers.0.self_attn.k_proj"].tensors[name]
        theirs = stock[f"blk.0.attn_k.{name}"]
        assert ours.dtype == theirs.dtype
        assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (ggml.F32, mx.float32),
        (ggml.F16, mx.float16),
        (ggml.BF16, mx.bfloat16),
    ],
)
def test_gguf_plain_types_keep_their_bits(
    tmp_path: Path, kind: int, dtype: mx.Dtype
) -> None:
    writer = ggml.tiny_llama(kind, kind)
    source = open_source(write_gguf(tmp_path, writer))
    assert "quantization" not in source.config
    for module in source.modules():
        if module.path == "model.layers.0.mlp.gate_proj":
            weight = module.tensors["weight"]
            stored = writer.tensors["blk.0.ffn_gate.weight"][2]
            assert module.kind == "linear"
            assert module.quantization is None
            assert weight.dtype == dtype
            assert weight.shape == (96, 64)
            assert np.array(weight.view(mx.uint8)).tobytes() == stored


def test_gguf_config(tmp_path: Path) -> None:
    config = open_source(write_gguf(tmp_path, ggml.tiny_llama())).config
    expected = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": ggml.VOCABULARY,
        "rope_theta": 10000.0,
        "rope_traditional": True,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert expected.items() <= config.items()
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
    }
    json.dumps(config)


def test_gguf_alignment_is_honoured(tmp_path: Path) -> None:
    plain = open_source(write_gguf(tmp_path, ggml.tiny_llama()))
    expected = [m.tensors["weight"] for m in plain.modules()]
    wide = open_source(write_gguf(tmp_path, ggml.tiny_llama(alignment=256)))
    for module, weight in zip(wide.modules(), expected, strict=True):
        assert mx.array_equal(module.tensors["weight"], weight)


def test_gguf_with_biases(tmp_path: Path) -> None:
    writer = ggml.tiny_llama()
    for layer in range(ggml.LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            rows = writer.tensors[f"blk.{layer}.{name}.weight"][1][0]
            bias = np.full(rows, 0.5)
            writer.values(f"blk.{layer}.{name}.bias", bias, ggml.F32)
    source = open_source(write_gguf(tmp_path, writer))
    assert source.config["attention_bias"] is True
    assert source.config["mlp_bias"] is False
    modules = {module.path: module for module in source.modules()}
    query = modules["model.layers.1.self_attn.q_proj"]
    assert set(query.tensors) == {"weight", "scales", "biases", "bias"}
    assert query.tensors["bias"].tolist() == [0.5] * 64


def test_gguf_fingerprint_follows_the_content(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, ggml.tiny_llama())
    first = open_source(file).fingerprint
    assert open_source(file).fingerprint == first
    os.utime(file, ns=(0, 0))
    assert open_source(file).fingerprint != first


def test_gguf_reads_one_module_at_a_time(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path, ggml.tiny_llama(ggml.F32)))
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    largest = max(layout.nbytes for layout in source.layout())
    for module in source.modules():
        mx.eval(module.tensors)
        held = mx.get_active_memory() - before
        assert held <= module.nbytes + 4096
        assert module.nbytes <= largest
        del module


def test_gguf_that_changes_while_open_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, ggml.tiny_llama())
    modules = open_source(file).modules()
    next(modules)
    os.utime(file, ns=(0, 0))
    with pytest.raises(SourceError, match="changed"):
        next(modules)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter stores q and k: RoPE pairs adjacent."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def as_gguf(model: nn.Module) -> ggml.GgufWriter:
    """A reference model as llama.cpp's converter would write it, in F32."""
    from mlx_lm.gguf import translate_weight_names

    writer = ggml.tiny_llama(ggml.F32, ggml.F32)
    writer.tensors.clear()
    for name, array in tree_flatten(model.parameters()):
        values = np.array(array)
        if name.endswith("q_proj.weight"):
            values = interleaved(values, ggml.HEADS)
        if name.endswith("k_proj.weight"):
            values = interleaved(values, ggml.KV_HEADS)
        writer.values(translate_weight_names(name), values, ggml.F32)
    return writer


# mlx-lm's llama with Hugging Face's row order, as large as the writer's.
GGUF_SIZE = {
    "hidden_size": ggml.HIDDEN,
    "num_hidden_layers": ggml.LAYERS,
    "intermediate_size": ggml.INTERMEDIATE,
    "num_attention_heads": ggml.HEADS,
    "num_key_value_heads": ggml.KV_HEADS,
    "vocab_size": ggml.VOCABULARY,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("scaling", ["none", "linear", "llama3"])
def test_gguf_model_gives_the_original_logits(
    tmp_path: Path, scaling: str
) -> None:
    from mlx_lm import load

    changes: dict[str, object] = {}
    if scaling == "linear":
        changes = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    if scaling == "llama3":
        changes = {"rope_scaling": LLAMA3, "rope_theta": 500000.0}
    model, _ = llama.build(**GGUF_SIZE, **changes)
    writer = as_gguf(model)
    if scaling == "linear":
        writer.set("llama.rope.scaling.type", "linear")
        writer.set("llama.rope.scaling.factor", 4.0)
    if scaling == "llama3":
        periods = np.array(model.layers[0].self_attn.rope._freqs)
        plain = 500000.0 ** (np.arange(0, 16, 2) / 16)
        writer.values("rope_freqs.weight", periods / plain, ggml.F32)
        writer.set("llama.rope.freq_base", 500000.0)
    source = open_source(write_gguf(tmp_path, writer))
    assert source.config.get("rope_scaling") == changes.get("rope_scaling")
    loaded, _ = load(str(write_stock(source, tmp_path / "model")))
    tokens = mx.array([[5, 9, 200, 31, 7, 64]])
    assert mx.allclose(loaded(tokens), model(tokens), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [ggml.Q4_0, ggml.Q4_1, ggml.Q8_0, ggml.F16])
def test_gguf_unchanged_loads_in_stock_mlx_lm(
    tmp_path: Path, kind: int, tied: bool
) -> None:
    from mlx_lm import load

    writer = ggml.tiny_llama(kind, tied=tied)
    source = open_source(write_gguf(tmp_path, writer))
    model, tokenizer = load(str(write_stock(source, tmp_path / "model")))
    assert tokenizer.eos_token_ids == {2}
    logits = model(mx.array([tokenizer.encode("hello world")]))
    assert logits.shape[-1] == ggml.VOCABULARY
    assert mx.all(mx.isfinite(logits))
