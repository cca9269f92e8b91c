"""`dispatch`: what it takes to hand work to the threads."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_entropy.cli.arguments import (
    add_json,
    add_repetitions,
    add_threads,
    add_verb,
)

from .options import print_report

_DISPATCH = """\
Hand work to the threads: microseconds until an empty region is done, until
every thread has taken a task, and the first when the threads had gone to sleep.
"""


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "dispatch",
        "microseconds to hand work to the threads",
        _DISPATCH,
        "  python -m benchmarks dispatch --threads 4\n",
    )
    add_threads(parser)
    add_repetitions(parser, 50, None)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..dispatch import bench_dispatch

    report = bench_dispatch(args.threads, repeat=args.repeat)
    return print_report(report, args.json)
