"""A whole model beside llama.cpp: generation and a long prompt, in turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_entropy import _ext
from mlx_entropy.bench.generate import Generation
from mlx_entropy.bench.load import count_weights
from mlx_entropy.bench.report import CODED, STOCK, Report, Result, make_report
from mlx_entropy.bench.timing import Timing, settings
from mlx_entropy.loading import load

from .llama_cpp import NAME, LlamaCpp, run_llama_bench
from .noise import Noise

# The first call of a layer validates it.
_WARM_UP_TOKENS = 2


class _Samples:
    """Tokens a second of one contender, a figure a round."""

    def __init__(self, name: str, nbytes: int, weights: int, threads: int):
        self.name = name
        self.nbytes = nbytes
        self.weights = weights
        self.threads = threads
        self.generation: list[float] = []
        self.prompt: list[float] = []

    def to_dict(self) -> Report:
        timing = Timing(tuple(1 / speed for speed in self.generation), 1)
        prompt = Timing(tuple(1 / speed for speed in self.prompt), 1)
        result = Result(
            self.name, timing, self.weights, self.nbytes, self.threads
        )
        return {
            **result.to_dict(),
            "tokens_per_second": 1 / timing.seconds,
            "prompt_tokens_per_second": 1 / prompt.seconds,
            "prompt_spread": prompt.spread,
        }


def bench_model(
    model: str | os.PathLike[str],
    *,
    llama: LlamaCpp | None = None,
    gguf: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    prompt_tokens: int = 512,
    max_tokens: int = 32,
    threads: int | None = None,
    target: str | None = None,
    repeat: int = 3,
    notify: Callable[[str], None] | None = None,
) -> Report:
    """Tokens a second of a converted model, of `gguf` in llama.cpp with as
    many threads, and of the stock form `against` if it is given.

    As llama-bench does it: tokens are random, generation starts from an empty
    context, and a prompt is timed alone. ValueError if a model does not load.
    """
    if max_tokens < 2:
        raise ValueError("at least 2 tokens are needed to time one")
    models: dict[str, nn.Module] = {CODED: load(Path(model))[0]}
    if against is not None:
        from mlx_lm import load as load_stock

        models[STOCK] = load_stock(str(against))[0]
    noise = Noise()
    with settings(threads, target):
        used = _ext.num_threads()
        found = {
            name: _samples_of(name, each, used) for name, each in models.items()
        }
        for number in range(1, repeat + 1):
            for name, each in models.items():
                _measure(each, found[name], prompt_tokens, max_tokens)
                _tell(notify, number, repeat, found[name])
            if llama is not None and gguf is not None:
                _measure_llama(
                    llama, gguf, found, used, prompt_tokens, max_tokens
                )
                _tell(notify, number, repeat, found[NAME])
        results = [samples.to_dict() for samples in found.values()]
        about = {
            "model": str(model),
            "gguf": None if gguf is None else str(gguf),
            "llama_cpp": None if llama is None else llama.version,
            "prompt_tokens": prompt_tokens,
            "max_tokens": max_tokens,
            "others_cpu_share": noise.share(),
            "ratios": _ratios(results),
        }
        return make_report("model", about, results)


def _samples_of(name: str, model: nn.Module, threads: int) -> _Samples:
    parameters: Any = tree_flatten(model.parameters())
    nbytes = sum(array.nbytes for _, array in parameters)
    weights = count_weights(model, multiplied=True)
    Generation(model, _tokens(model, 1), _WARM_UP_TOKENS).advance(
        _WARM_UP_TOKENS
    )
    return _Samples(name, nbytes, weights, threads if name == CODED else 0)


def _tokens(model: Any, count: int) -> list[int]:
    size = int(model.args.vocab_size)
    return [int(i) for i in np.random.default_rng(0).integers(0, size, count)]


def _measure(
    model: nn.Module, samples: _Samples, prompt_tokens: int, max_tokens: int
) -> None:
    generation = Generation(model, _tokens(model, 1), max_tokens)
    generation.advance(max_tokens)
    samples.generation.append(1 / generation.token_seconds[-1])
    prompt = Generation(model, _tokens(model, prompt_tokens), 2)
    prompt.advance(2)
    samples.prompt.append(prompt_tokens / prompt.prompt_seconds)
    mx.clear_cache()


def _measure_llama(
    llama: LlamaCpp,
    gguf: str | os.PathLike[str],
    found: dict[str, _Samples],
    threads: int,
    prompt_tokens: int,
    max_tokens: int,
) -> None:
    speeds = run_llama_bench(
        llama,
        gguf,
        threads=threads,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
    )
    if NAME not in found:
        weights = found[CODED].weights
        found[NAME] = _Samples(NAME, speeds.model_bytes, weights, threads)
    if speeds.generation is None or speeds.prompt is None:
        raise ValueError("llama-bench left a test out")
    found[NAME].generation.append(speeds.generation)
    found[NAME].prompt.append(speeds.prompt)


def _tell(
    notify: Callable[[str], None] | None,
    number: int,
    repeat: int,
    samples: _Samples,
) -> None:
    if notify is not None:
        notify(
            f"round {number} of {repeat}, {samples.name}: "
            f"{samples.generation[-1]:.2f} tokens/s, "
            f"prompt {samples.prompt[-1]:.1f} tokens/s"
        )


def _ratios(results: list[Report]) -> Report:
    """How much faster ours is than each peer."""
    ours = results[0]
    return {
        peer["name"]: {
            key: ours[key] / peer[key]
            for key in ("tokens_per_second", "prompt_tokens_per_second")
        }
        for peer in results[1:]
    }
