"""Tokenizers rebuilt from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import gguf_writer as ggml
from helpers.sources import refusal, write_gguf
from mlx_entropy.sources import SourceError, open_source


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
