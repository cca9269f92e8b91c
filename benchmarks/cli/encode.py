"""`encode`: speed and size of coding and decoding."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_entropy.cli.arguments import (
    add_json,
    add_kernel_options,
    add_repetitions,
    add_verb,
    kernel_options,
)

from .options import add_shape, print_report

_ENCODE = """\
Code and decode Gaussian weights: quantized, bfloat16 and float16, with one
thread and with all. The peer is zlib at its fastest level.
"""


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "encode",
        "speed and size of coding and decoding",
        _ENCODE,
        "  python -m benchmarks encode --bits 3\n",
    )
    add_shape(parser)
    add_kernel_options(parser)
    add_repetitions(parser, 10, 5.0)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..encode import bench_encode

    report = bench_encode(
        args.rows,
        args.cols,
        args.bits,
        args.group_size,
        **kernel_options(args),
    )
    return print_report(report, args.json)
