"""A Hugging Face tokenizer from GGUF metadata (byte-level BPE)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .base import SourceError, quoted

# tokenizer.ggml.token_type
_CONTROL = 3
_USER_DEFINED = 4

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _PreTokenizer:
    """How text is cut before BPE.

    `single_digits` cuts around every digit; `split` is a regular expression,
    None for GPT-2's. `whole_words` takes a piece that is a token as it is,
    without merging; `bos` starts a text with the BOS token unless the file
    says otherwise.
    """

    single_digits: bool = False
    split: str | None = None
    whole_words: bool = False
    bos: bool = False


_PRE_TOKENIZERS = {
    "gpt-2": _PreTokenizer(),
    "smollm": _PreTokenizer(single_digits=True),
    "starcoder": _PreTokenizer(single_digits=True),
    "refact": _PreTokenizer(single_digits=True),
    "llama-bpe": _PreTokenizer(split=_LLAMA3_SPLIT, whole_words=True, bos=True),
}


class Tokens:
    """The tokenizer that a GGUF file describes.

    Raises SourceError at once for tokenizers that cannot be rebuilt exactly,
    so that nobody converts weights first. `path` is for messages.
    """

    def __init__(
        self, metadata: dict[str, Any], vocab_size: int, path: Path
    ) -> None:
        self._metadata = metadata
        self._path = path
        model = self._value("model")
        if model != "gpt2":
            self._refuse(
                f"tokenizer {quoted(str(model))} is not supported (only "
                "byte-level BPE, 'gpt2', is)"
            )
        pre = self._value("pre")
        if pre not in _PRE_TOKENIZERS:
            self._refuse(
                f"pre-tokenizer {quoted(str(pre))} is not supported (known: "
                f"{', '.join(_PRE_TOKENIZERS)})"
            )
        self._pre = _PRE_TOKENIZERS[pre]
        self._tokens = self._strings("tokens")
        self._merges = self._strings("merges")
        if len(self._tokens) > vocab_size:
            self._refuse(
                f"{len(self._tokens)} tokens for {vocab_size} embeddings"
            )
        if len(set(self._tokens)) != len(self._tokens):
            self._refuse("the same token appears twice")
        self._types = self._value("token_type")
        if self._types is None:
            self._types = np.ones(len(self._tokens), np.int32)
        fits = isinstance(self._types, np.ndarray)
        if not fits or len(self._types) != len(self._tokens):
            self._refuse("tokenizer.ggml.token_type does not fit the tokens")
        self._bos = self._token_id("bos")
        self._pad = self._token_id("padding")
        self._unknown = self._token_id("unknown")
        # All of them end a reply: <eos>, end of turn, end of message.
        ends = (self._token_id(key) for key in ("eos", "eot", "eom"))
        self._eos = list(dict.fromkeys(end for end in ends if end is not None))

    def ids(self) -> dict[str, int]:
        """config.json's bos_token_id and eos_token_id, where there are any."""
        ids = {}
        if self._bos is not None:
            ids["bos_token_id"] = self._bos
        if self._eos:
            ids["eos_token_id"] = self._eos[0]
        return ids

    def files(self, context_length: int) -> dict[str, bytes]:
        """File name -> content of the three tokenizer and generation files."""
        generation: dict[str, Any] = dict(self.ids())
        if self._eos:
            generation["eos_token_id"] = self._eos
        if self._pad is not None:
            generation["pad_token_id"] = self._pad
        config = _json(self._config(context_length))
        return {
            "tokenizer.json": self._tokenizer_json(),
            "tokenizer_config.json": config,
            "generation_config.json": _json(generation),
        }

    def _config(self, context_length: int) -> dict[str, Any]:
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self._adds("bos"),
            "add_eos_token": self._adds("eos"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_length,
        }
        special = {
            "bos_token": self._bos,
            "eos_token": self._eos[0] if self._eos else None,
            "pad_token": self._pad,
            "unk_token": self._unknown,
        }
        for name, token in special.items():
            if token is not None:
                config[name] = self._tokens[token]
        template = self._metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            config["chat_template"] = template
        return config

    def _tokenizer_json(self) -> bytes:
        from tokenizers import AddedToken, Tokenizer, decoders, models

        pairs = []
        for merge in self._merges:
            if merge.count(" ") != 1:
                self._refuse("a merge is not two tokens")
            left, _, right = merge.partition(" ")
            pairs.append((left, right))
        vocabulary = {token: i for i, token in enumerate(self._tokens)}
        try:
            tokenizer = Tokenizer(
                models.BPE(
                    vocab=vocabulary,
                    merges=pairs,
                    ignore_merges=self._pre.whole_words,
                )
            )
            tokenizer.pre_tokenizer = self._pre_tokenizer()
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.post_processor = self._post_processor()
        except Exception as error:  # The library raises nothing narrower.
            self._refuse(f"bad tokenizer: {quoted(str(error))}")
        for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
            tokenizer.add_tokens(
                [
                    AddedToken(token, special=special, normalized=False)
                    for token, type_ in zip(
                        self._tokens, self._types, strict=True
                    )
                    if type_ == kind and token
                ]
            )
        return tokenizer.to_str().encode()

    def _pre_tokenizer(self) -> Any:
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = []
        if self._pre.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self._pre.split is not None:
            pattern = Regex(self._pre.split)
            steps.append(pre_tokenizers.Split(pattern, behavior="isolated"))
        steps.append(
            pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=self._pre.split is None
            )
        )
        return pre_tokenizers.Sequence(steps)

    def _post_processor(self) -> Any:
        from tokenizers import processors

        first = self._ids_of("bos") if self._adds("bos") else []
        last = self._ids_of("eos") if self._adds("eos") else []
        if not first and not last:
            return processors.ByteLevel(trim_offsets=False)
        parts = [self._tokens[i] for i in first]
        parts.append("$A")
        parts += [self._tokens[i] for i in last]
        return processors.TemplateProcessing(
            single=parts,
            pair=parts + ["$B" if part == "$A" else part for part in parts],
            special_tokens=[(self._tokens[i], i) for i in {*first, *last}],
        )

    def _adds(self, which: str) -> bool:
        """Whether a text is given the "bos" or "eos" token."""
        default = self._pre.bos if which == "bos" else False
        wanted = self._value(f"add_{which}_token", default)
        return bool(wanted and self._ids_of(which))

    def _ids_of(self, which: str) -> list[int]:
        """The "bos" or "eos" token as a list of at most one."""
        if which == "eos":
            return self._eos[:1]
        return [] if self._bos is None else [self._bos]

    def _value(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _strings(self, key: str) -> list[str]:
        value = self._value(key)
        if not isinstance(value, list):
            self._refuse(f"metadata key tokenizer.ggml.{key} is missing")
        return value

    def _token_id(self, which: str) -> int | None:
        value = self._value(f"{which}_token_id")
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self._tokens):
            self._refuse(f"tokenizer.ggml.{which}_token_id is no token")
        return value

    def _refuse(self, reason: str) -> NoReturn:
        raise SourceError(f"{self._path}: {reason}")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
