"""`gemv`: one product with a quantized matrix."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_entropy.cli.arguments import (
    add_json,
    add_kernel_options,
    add_repetitions,
    add_verb,
    kernel_options,
    notify,
    positive_int,
)

from .options import add_shape, print_report

_GEMV = """\
Multiply by one matrix of Gaussian weights: entropy-coded, with stock MLX's
quantized_matmul on the same codes, and dense with numpy for information.
"""


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "gemv",
        "one product with a quantized matrix",
        _GEMV,
        "  python -m benchmarks gemv --bits 3 --dtype bfloat16\n"
        "  python -m benchmarks gemv --sweep --threads 1\n",
    )
    add_shape(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="type of the activations (default: float32)",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        default=1,
        metavar="N",
        help="rows of activations (default: 1)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="bits 2, 3, 4 x float32, bfloat16 x batch 1, 8, 64",
    )
    add_kernel_options(parser)
    add_repetitions(parser, 20, 5.0)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..gemv import GemvCase, bench_gemv, bench_gemv_sweep

    case = GemvCase(
        args.rows,
        args.cols,
        args.bits,
        args.group_size,
        args.dtype,
        args.batch,
    )
    options = kernel_options(args)
    if args.sweep:
        report = bench_gemv_sweep(case, **options, notify=notify(args))
    else:
        report = bench_gemv(case, **options)
    return print_report(report, args.json)
