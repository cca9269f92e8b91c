"""Interleaved timings: each peer meets the same noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .. import _ext

# A sample shorter than this counts the clock and the wake-up of threads.
_MIN_SAMPLE_SECONDS = 5e-3


@dataclass(frozen=True)
class Timing:
    """Seconds a call: one figure a sample, each over `calls` calls."""

    samples: tuple[float, ...]
    calls: int

    @property
    def seconds(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Range of the middle half of the samples, in medians."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, method="inclusive")
        return (high - low) / self.seconds

    def to_dict(self) -> dict[str, float | int]:
        return {
            "seconds": self.seconds,
            "fastest": min(self.samples),
            "slowest": max(self.samples),
            "spread": self.spread,
            "repetitions": len(self.samples),
            "calls_a_repetition": self.calls,
        }


def interleave(
    runs: Mapping[str, Callable[[], object]],
    repeat: int = 20,
    budget: float = 5.0,
) -> dict[str, Timing]:
    """Time the runs in turns, A B A B, after warming each up.

    There are up to `repeat` rounds, fewer when they would take more than
    `budget` seconds, and one at least. A run must do its work before it
    returns: with MLX, call `mx.eval`.
    """
    calls = {name: _calls(run, budget) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(1, repeat + 1):
        for name, run in runs.items():
            samples[name].append(_sample(run, calls[name]))
        elapsed = time.perf_counter() - started
        if elapsed * (done + 1) / done > budget:
            break
    return {
        name: Timing(tuple(taken), calls[name])
        for name, taken in samples.items()
    }


def _calls(run: Callable[[], object], budget: float) -> int:
    """Warm up; returns how many calls make a sample."""
    # The first call may page memory in, validate or compile.
    once = _sample(run, 1)
    if once > budget / 4:
        return 1
    return max(1, round(_MIN_SAMPLE_SECONDS / _sample(run, 1)))


def _sample(run: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


@contextmanager
def settings(
    threads: int | None = None, target: str | None = None
) -> Iterator[None]:
    """Our kernels' threads and target for a while; None leaves them.

    ValueError for a target that this machine cannot run.
    """
    before = _ext.num_threads(), _ext.target()
    try:
        if target is not None:
            _ext.set_target(target)
        if threads is not None:
            _ext.set_num_threads(threads)
        yield
    finally:
        _ext.set_num_threads(before[0])
        _ext.set_target(before[1])
