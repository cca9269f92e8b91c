"""Greedy generation by a coded model and by stock MLX, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import _ext
from ..loading import load
from ..prompts import chat_tokens, has_template
from ..sources.hub import model_directory
from .load import count_weights
from .report import CODED, STOCK, Report, Result, make_report
from .timing import Timing, settings

# Below this, the two likeliest tokens are so close that rounding may decide:
# their probabilities differ by less than a tenth.
NEAR_TIE = 0.1

# Tokens that a model generates, and that it reads, at a time.
_TURN = 25
_CHUNK = 64

_SECONDS_BETWEEN_LINES = 10.0


class Generation:
    """One greedy generation, which can pause for another to go on."""

    def __init__(
        self, model: nn.Module, prompt: list[int], max_tokens: int
    ) -> None:
        from mlx_lm.generate import generate_step

        self._steps = generate_step(
            mx.array(prompt), model, max_tokens=max_tokens
        )
        self.tokens: list[int] = []
        self.prompt_seconds = 0.0
        self.token_seconds: list[float] = []
        """Seconds a token in each call of `advance`."""

    def advance(self, count: int) -> None:
        """Generate `count` tokens, 2 at least.

        The first one is not timed: mlx-lm computes a token ahead, so the
        last call has begun it, unless it is the very first one.
        """
        started = time.perf_counter()
        self._next()
        first = time.perf_counter()
        if not self.token_seconds:
            self.prompt_seconds = first - started
        for _ in range(count - 1):
            self._next()
        seconds = time.perf_counter() - first
        self.token_seconds.append(seconds / (count - 1))
        # The token ahead must not take time from another generation.
        mx.synchronize(_generation_stream())

    def _next(self) -> None:
        token, _ = next(self._steps)
        self.tokens.append(int(token))


def _generation_stream() -> Any:
    from mlx_lm.generate import generation_stream

    return generation_stream


def bench_generate(
    model: str | os.PathLike[str],
    against: str | os.PathLike[str],
    prompt: str,
    max_tokens: int = 100,
    *,
    threads: int | None = None,
    target: str | None = None,
    repeat: int = 3,
    notify: Callable[[str], None] | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Generate `max_tokens` tokens with both models and compare them.

    Generation goes on behind an end-of-text token, so all runs are equally
    long. ValueError if a model does not load or `max_tokens` is below 2.
    `trust_remote_code` lets Python code of the models and tokenizers run.
    """
    if max_tokens < 2:
        raise ValueError("at least 2 tokens are needed to time one")
    trust = trust_remote_code
    coded, tokenizer = load(model_directory(model), trust_remote_code=trust)
    # Stock models are loaded as by mlx-lm.
    stock = load(model_directory(against), trust_remote_code=trust)[0]
    models = {CODED: coded, STOCK: stock}
    tokens = encode_prompt(tokenizer, prompt)
    with settings(threads, target):
        runs = _alternate(models, tokens, max_tokens, repeat, notify)
        ids = {name: found[0].tokens for name, found in runs.items()}
        about = {
            "prompt": prompt,
            "prompt_tokens": len(tokens),
            "max_tokens": max_tokens,
            "agreement": agreement(
                tokens, ids[STOCK], ids[CODED], stock, coded
            ),
            "text": tokenizer.decode(ids[CODED]),
        }
        results = [
            _result(name, models[name], found, len(tokens))
            for name, found in runs.items()
        ]
        ours, peer = results
        return make_report(
            "generate",
            about,
            results,
            ratio=peer["seconds"] / ours["seconds"],
            prompt_ratio=ours["prompt_tokens_per_second"]
            / peer["prompt_tokens_per_second"],
        )


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, as a user's message to a chat model."""
    if not has_template(tokenizer):
        return list(tokenizer.encode(prompt))
    return chat_tokens(tokenizer, prompt)


def _alternate(
    models: dict[str, nn.Module],
    prompt: list[int],
    max_tokens: int,
    repeat: int,
    notify: Callable[[str], None] | None,
) -> dict[str, list[Generation]]:
    """Generations by model, which take turns every few tokens."""
    for model in models.values():
        Generation(model, prompt, 4).advance(4)  # Warm up.
    runs: dict[str, list[Generation]] = {name: [] for name in models}
    notified = time.monotonic()
    for number in range(1, repeat + 1):
        for name, model in models.items():
            runs[name].append(Generation(model, prompt, max_tokens))
        for count in _turns(max_tokens):
            for made in runs.values():
                made[-1].advance(count)
            done = len(made[-1].tokens)
            late = time.monotonic() - notified > _SECONDS_BETWEEN_LINES
            if notify is not None and (late or done == max_tokens):
                notified = time.monotonic()
                notify(
                    f"run {number} of {repeat}, {done} of {max_tokens} "
                    f"tokens: {_speeds(runs)}"
                )
    return runs


def _speeds(runs: dict[str, list[Generation]]) -> str:
    """Tokens a second of the last runs, for progress."""
    return ", ".join(
        f"{name} {1 / _timing(made[-1:]).seconds:.1f} tokens/s"
        for name, made in runs.items()
    )


def _turns(tokens: int) -> list[int]:
    """`tokens` in equal parts of about `_TURN`."""
    count = max(1, tokens // _TURN)
    return [
        tokens * (i + 1) // count - tokens * i // count for i in range(count)
    ]


def _timing(runs: list[Generation]) -> Timing:
    samples = tuple(each for run in runs for each in run.token_seconds)
    tokens = sum(len(run.tokens) for run in runs)
    return Timing(samples, round(tokens / len(samples)) - 1)


def _result(
    name: str, model: nn.Module, runs: list[Generation], prompt_tokens: int
) -> Report:
    timing = _timing(runs)
    prompt = Timing(tuple(run.prompt_seconds for run in runs), 1)
    parameters: Any = tree_flatten(model.parameters())
    result = Result(
        name,
        timing,
        count_weights(model, multiplied=True),
        sum(array.nbytes for _, array in parameters),
        _ext.num_threads() if name == CODED else 0,
    )
    return {
        **result.to_dict(),
        "tokens_per_second": 1 / timing.seconds,
        "prompt_tokens_per_second": prompt_tokens / prompt.seconds,
        "deterministic": all(run.tokens == runs[0].tokens for run in runs),
    }


def agreement(
    prompt: Sequence[int],
    stock_tokens: Sequence[int],
    coded_tokens: Sequence[int],
    stock: Any,
    coded: Any,
) -> Report:
    """How far two greedy generations agree, and what happens where not.

    "agreed" counts tokens before the first difference. There, "gap" is how
    much less likely, in logits, the stock model finds the coded model's token
    than its own. Behind a difference the texts have nothing in common, so
    both models also read the stock model's text: "same_choice" counts the
    positions at which both would go on with the same token, and "mean_kl" is
    the mean divergence of their distributions, in nats.
    """
    position = first_difference(stock_tokens, coded_tokens)
    same, divergence, difference = 0, 0.0, None
    chunks = zip(
        _read(stock, prompt, stock_tokens),
        _read(coded, prompt, stock_tokens),
        strict=True,
    )
    for (start, a), (_, b) in chunks:
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        divergence += _divergence(a, b)
        if position is not None and start <= position < start + len(a):
            difference = {
                "position": position,
                **compare_tokens(
                    a[position - start],
                    stock_tokens[position],
                    coded_tokens[position],
                ),
            }
    count = len(stock_tokens)
    return {
        "tokens": count,
        "agreed": count if position is None else position,
        "first_difference": difference,
        "same_choice": same,
        "mean_kl": divergence / count,
    }


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first difference of equally long lists, else None."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((i for i, (left, right) in pairs if left != right), None)


def compare_tokens(
    logits: mx.array, stock_token: int, coded_token: int
) -> Report:
    """What the stock model thinks of two candidates."""
    probabilities = mx.softmax(logits)
    gap = float(logits[stock_token] - logits[coded_token])
    return {
        "stock_token": stock_token,
        "coded_token": coded_token,
        "gap": gap,
        "near_tie": abs(gap) < NEAR_TIE,
        "stock_probability": float(probabilities[stock_token]),
        "coded_probability": float(probabilities[coded_token]),
    }


def _read(
    model: Any, prompt: Sequence[int], text: Sequence[int]
) -> Iterator[tuple[int, mx.array]]:
    """Logits ``[n, vocabulary]`` for each token of `text`, chunk by chunk."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if len(prompt) > 1:
        mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    given = [prompt[-1], *text[:-1]]
    for start in range(0, len(text), _CHUNK):
        logits = model(mx.array([given[start : start + _CHUNK]]), cache=cache)
        yield start, logits[0].astype(mx.float32)


def _divergence(a: mx.array, b: mx.array) -> float:
    """Sum over rows of the divergence of b from a, in nats.

    Rounding takes some rows a little below zero.
    """
    a = a - mx.logsumexp(a, axis=-1, keepdims=True)
    b = b - mx.logsumexp(b, axis=-1, keepdims=True)
    rows = (mx.exp(a) * (a - b)).sum(-1)
    return float(mx.maximum(rows, 0).sum())
