"""`mlx-entropy bench`: load and generate, beside stock MLX."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .arguments import (
    add_json,
    add_kernel_options,
    add_repetitions,
    add_trust,
    add_verb,
    at_least_two,
    notify,
)

_EXAMPLES = """\
  mlx-entropy bench load ./model-ec --against ./model
  mlx-entropy bench generate ./model-ec --against ./model
"""

_DESCRIPTION = """\
Measure a converted model beside its stock form, which is timed in turns with
ours. Figures are medians; the spread is the range of the middle half of the
samples, in medians. Products, whole models beside llama.cpp and more are
measured from a checkout: python -m benchmarks --help.
"""

_LOAD = """\
Load the weights of a model in a new process: seconds until all are in memory
and validated, bytes read and peak memory.
"""

_GENERATE = """\
Generate greedily with a coded model and with its stock form in turns: tokens
a second, and whether the two say the same.
"""

_PROMPT = "Write a short story about a lighthouse keeper."


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "bench",
        "measure a model beside its stock form",
        _DESCRIPTION,
        _EXAMPLES,
    )
    kinds = parser.add_subparsers(
        dest="benchmark", metavar="BENCHMARK", required=True
    )
    _configure_load(kinds)
    _configure_generate(kinds)


def _configure_load(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "load",
        "seconds and memory to load a model",
        _LOAD,
        "  mlx-entropy bench load ./model-ec --against ./model\n",
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    parser.add_argument(
        "--against", metavar="SRC", help="MLX directory to load as well"
    )
    add_repetitions(parser, 3, None)
    add_trust(parser)
    add_json(parser)


def _configure_generate(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "generate",
        "tokens a second of a model, and agreement",
        _GENERATE,
        "  mlx-entropy bench generate ./model-ec --against ./model\n",
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    parser.add_argument(
        "--against",
        metavar="STOCK",
        required=True,
        help="MLX directory with the same weights",
    )
    parser.add_argument(
        "--prompt", default=_PROMPT, help=f"default: {_PROMPT!r}"
    )
    parser.add_argument(
        "--max-tokens",
        type=at_least_two,
        default=100,
        metavar="N",
        help="tokens to generate, 2 at least (default: 100)",
    )
    add_kernel_options(parser)
    add_repetitions(parser, 3, None)
    add_trust(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from . import bench_tables

    measure = {"load": _load, "generate": _generate}
    report = measure[args.benchmark](args)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(bench_tables.format_report(report))
    return 0


def _load(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.load import bench_load

    return bench_load(
        args.model,
        args.against,
        repeat=args.repeat,
        notify=notify(args),
        trust_remote_code=args.trust_remote_code,
    )


def _generate(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.generate import bench_generate

    return bench_generate(
        args.model,
        args.against,
        args.prompt,
        args.max_tokens,
        threads=args.threads,
        target=args.target,
        repeat=args.repeat,
        notify=notify(args),
        trust_remote_code=args.trust_remote_code,
    )
