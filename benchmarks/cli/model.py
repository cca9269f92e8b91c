"""`model`: a model beside llama.cpp."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_entropy.cli.arguments import add_json, add_verb, positive_int

from .options import add_llama, print_report, say

_MODEL = """\
Generate with a converted model and read a long prompt, in turns with
llama.cpp's llama-bench on a GGUF file and with as many threads.
"""

_MODEL_EXAMPLES = """\
  python -m benchmarks synthetic 1b --gguf 1b.gguf
  python -m benchmarks synthetic 1b --out 1b-stock
  mlx-entropy convert 1b-stock 1b-ec
  python -m benchmarks model 1b-ec --gguf 1b.gguf --llama-cpp build/llama.cpp
"""


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds, "model", "a model beside llama.cpp", _MODEL, _MODEL_EXAMPLES
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="converted directory")
    add("--gguf", metavar="FILE", help="what llama.cpp runs")
    add("--against", metavar="STOCK", help="MLX directory to run as well")
    add_llama(parser)
    for name, default in (("prompt-tokens", 512), ("max-tokens", 32)):
        add(
            f"--{name}",
            type=positive_int,
            default=default,
            metavar="N",
            help=f"default: {default}",
        )
    add(
        "--threads",
        type=positive_int,
        metavar="N",
        help="of our kernels and llama.cpp's (default: all cores)",
    )
    add("--target", help="target of our kernels, e.g. avx2 (see doctor)")
    add(
        "--repeat",
        type=positive_int,
        default=3,
        metavar="N",
        help="rounds (default: 3)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..llama_cpp import find_llama_cpp, missing_message
    from ..whole_model import bench_model

    llama = None
    if args.gguf is not None:
        llama = find_llama_cpp(args.llama_cpp, args.target)
        if llama is None:
            raise ValueError(missing_message(args.llama_cpp, args.target))
    report = bench_model(
        args.model,
        llama=llama,
        gguf=args.gguf,
        against=args.against,
        prompt_tokens=args.prompt_tokens,
        max_tokens=args.max_tokens,
        threads=args.threads,
        target=args.target,
        repeat=args.repeat,
        notify=None if args.json else say,
    )
    return print_report(report, args.json)
