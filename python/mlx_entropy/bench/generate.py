"""Greedy generation by a coded model and by stock MLX, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import _ext
from ..loading import load
from .load import count_weights
from .report import Report, Result, make_report
from .timing import Timing, settings

CODED, STOCK = "coded", "stock MLX"

# Below this, the two likeliest tokens are so close that rounding may decide:
# their probabilities differ by less than a tenth.
NEAR_TIE = 0.1

_CHUNK = 64


@dataclass(frozen=True)
class Run:
    """One generation: seconds to the first token, and of each later one."""

    tokens: list[int]
    prompt_seconds: float
    token_seconds: float


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
) -> Report:
    """Generate `max_tokens` tokens with both models and compare them.

    Generation goes on behind an end-of-text token, so all runs are equally
    long. ValueError if a model does not load or `max_tokens` is below 2.
    """
    if max_tokens < 2:
        raise ValueError("at least 2 tokens are needed to time one")
    from mlx_lm import load as load_stock

    coded, tokenizer = load(Path(model))
    stock = load_stock(str(against))[0]
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
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer.encode(prompt))
    message = [{"role": "user", "content": prompt}]
    return list(
        tokenizer.apply_chat_template(message, add_generation_prompt=True)
    )


def _alternate(
    models: dict[str, nn.Module],
    prompt: list[int],
    max_tokens: int,
    repeat: int,
    notify: Callable[[str], None] | None,
) -> dict[str, list[Run]]:
    for model in models.values():
        _generate(model, prompt, 4)  # Warm up.
    runs: dict[str, list[Run]] = {name: [] for name in models}
    for number in range(1, repeat + 1):
        for name, model in models.items():
            run = _generate(model, prompt, max_tokens)
            runs[name].append(run)
            if notify is not None:
                notify(
                    f"generating with {name}, run {number} of {repeat}: "
                    f"{1 / run.token_seconds:.1f} tokens/s"
                )
    return runs


def _generate(model: nn.Module, prompt: list[int], max_tokens: int) -> Run:
    from mlx_lm.generate import generate_step

    tokens, times = [], [time.perf_counter()]
    steps = generate_step(mx.array(prompt), model, max_tokens=max_tokens)
    for token, _ in steps:
        tokens.append(int(token))
        times.append(time.perf_counter())
    return Run(
        tokens, times[1] - times[0], (times[-1] - times[1]) / (len(tokens) - 1)
    )


def _result(
    name: str, model: nn.Module, runs: list[Run], prompt_tokens: int
) -> Report:
    timing = Timing(
        tuple(run.token_seconds for run in runs), len(runs[0].tokens) - 1
    )
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
