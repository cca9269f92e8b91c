"""What the benchmarks' reports have in common."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .. import _ext
from .._version import version
from .timing import Timing

Report = dict[str, Any]

# Names of the contenders that most benchmarks have.
CODED, STOCK = "coded", "stock MLX"


@dataclass(frozen=True)
class Result:
    """One contender: its bytes, and the weights that a call handles.

    `threads` is 0 where the contender's own library decides.
    """

    name: str
    timing: Timing
    weights: int
    nbytes: int
    threads: int = 0

    def to_dict(self) -> Report:
        return {
            "name": self.name,
            "nbytes": self.nbytes,
            "weights_per_second": self.weights / self.timing.seconds,
            "threads": self.threads or None,
            **self.timing.to_dict(),
        }


def make_report(
    benchmark: str, about: Report, results: list[Report], **ratios: float | None
) -> Report:
    """`ratios` are the peer's figure over ours, or None without a peer."""
    return {
        "benchmark": benchmark,
        "machine": machine(),
        **about,
        "results": results,
        **ratios,
    }


def machine() -> Report:
    """Target and threads in use now, and the versions that ran."""
    return {
        "target": _ext.target(),
        "threads": _ext.num_threads(),
        "cpus": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlx": metadata.version("mlx"),
        "mlx_lm": metadata.version("mlx-lm"),
        "mlx_entropy": version(),
    }
