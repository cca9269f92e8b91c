"""Options that several benchmarks have."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mlx_entropy.cli.arguments import positive_int

# Those of SHAPES in benchmarks.shapes, which takes long to import.
SHAPE_NAMES = ("135m", "1b", "8b", "70b")


def add_shape(parser: argparse.ArgumentParser) -> None:
    for name, default in (("rows", 4096), ("cols", 4096)):
        parser.add_argument(
            f"--{name}",
            type=positive_int,
            default=default,
            metavar="N",
            help=f"{name} of the matrix (default: {default})",
        )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(2, 3, 4, 5, 6, 8),
        default=4,
        help="bits of a code (default: 4)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="weights that share a scale (default: 64)",
    )


def print_report(report: dict[str, Any], as_json: bool) -> int:
    """The report on stdout; returns the exit status."""
    from .tables import format_report

    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print(format_report(report))
    return 0


def add_llama(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llama-cpp",
        metavar="DIR",
        help="what scripts/build_llama_cpp.sh built (default: build/llama.cpp)",
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
