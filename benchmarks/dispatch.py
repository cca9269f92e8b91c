"""What it costs to hand work to the threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from mlx_entropy import _ext
from mlx_entropy.bench.report import Report, make_report
from mlx_entropy.bench.timing import settings

_REGIONS = 200
# Longer than the threads spin.
_PAUSE_SECONDS = 2e-3


def bench_dispatch(threads: int | None = None, repeat: int = 50) -> Report:
    """Seconds of regions whose tasks do nothing, for 1 to `threads` threads.

    A product is one region, or a few. Figures are medians of `repeat` samples.
    """
    with settings(threads):
        counts = _counts(_ext.num_threads())
        results = [_measure(count, repeat) for count in counts]
        return make_report("dispatch", {}, results)


def _counts(most: int) -> list[int]:
    """1 to 4, then in doubles, and the last."""
    doubles = [4 * 2**power for power in range(1, most.bit_length())]
    return sorted({n for n in (1, 2, 3, 4, *doubles, most) if n <= most})


def _measure(threads: int, repeat: int) -> Report:
    def median(sample: Callable[[], float]) -> float:
        sample()
        return statistics.median(sample() for _ in range(repeat))

    def asleep() -> float:
        time.sleep(_PAUSE_SECONDS)
        return _ext.time_regions(1, handover=False)

    with settings(threads):
        return {
            "threads": threads,
            "empty_seconds": median(
                lambda: _ext.time_regions(_REGIONS, handover=False)
            ),
            "handover_seconds": median(
                lambda: _ext.time_regions(_REGIONS, handover=True)
            ),
            "asleep_seconds": median(asleep),
            "repetitions": repeat,
        }
