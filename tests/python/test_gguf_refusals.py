"""Damaged, hostile and unsupported GGUF files: one line, no crash."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from helpers import gguf_writer as ggml
from helpers.sources import refusal, write_gguf
from mlx_entropy.sources import SourceError, open_source


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
    refusals = []
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
            refusals.append(str(error))
    assert len(refusals) > 150
    assert not any("\n" in message for message in refusals)


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
