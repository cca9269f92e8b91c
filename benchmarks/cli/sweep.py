"""`sweep`: products beside all peers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_entropy.cli.arguments import add_quiet, add_verb, positive_int

from .options import SHAPE_NAMES, add_llama

_SWEEP = """\
Multiply by matrices of real models' shapes, which come from memory and not
from a cache: entropy-coded, with stock MLX, with llama.cpp's types of about
the same size, and dense with numpy. Prints what each product moves, its share
of the bandwidth measured in the same run, and how much faster ours is.
"""

_SWEEP_EXAMPLES = """\
  python -m benchmarks sweep
  python -m benchmarks sweep --shapes 8b --bits 4,2 --row-scaled 2.6,3.2
  python -m benchmarks sweep --shapes 135m,1b,8b,70b --products all \\
      --batch 1..4096 --bits 4,3,2 --threads 1,2 \\
      --json sweep.json --plot sweep.png
  python -m benchmarks sweep --target avx2   # llama.cpp without AVX-512, too

scripts/build_llama_cpp.sh builds llama.cpp.
"""

_PEERS = ("mlx", "llama.cpp", "numpy")
_PRODUCTS = ("attention", "keys", "up", "down")


def list_of(
    convert: Callable[[str], Any], known: tuple[Any, ...] | None = None
) -> Callable[[str], tuple[Any, ...]]:
    """A parser of comma-separated values; "all" where they are `known`."""

    def parse(text: str) -> tuple[Any, ...]:
        if known is not None and text in ("all", "none"):
            return known if text == "all" else ()
        try:
            values = tuple(convert(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"cannot read {text!r}") from None
        for value in values:
            if known is not None and value not in known:
                raise argparse.ArgumentTypeError(
                    f"{value!r} is none of {', '.join(map(str, known))}"
                )
        return values

    return parse


def batches(text: str) -> tuple[int, ...]:
    """Batches of e.g. "1,9,16..64": 1, 9, 16, 32, 64."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("..")
        value = positive_int(first)
        stop = positive_int(last) if last else value
        if stop < value or part.endswith(".."):
            raise argparse.ArgumentTypeError(f"{part!r} is no range like 1..64")
        while value <= stop:
            found.add(value)
            value *= 2
    return tuple(sorted(found))


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds, "sweep", "products beside all peers", _SWEEP, _SWEEP_EXAMPLES
    )
    add = parser.add_argument
    add(
        "--shapes",
        type=list_of(str.lower, SHAPE_NAMES),
        default=("1b", "8b"),
        metavar="LIST",
        help=f"of {','.join(SHAPE_NAMES)}, or all (default: 1b,8b)",
    )
    add(
        "--products",
        type=list_of(str, _PRODUCTS),
        default=("up",),
        metavar="LIST",
        help=f"of {','.join(_PRODUCTS)}, or all (default: up)",
    )
    add(
        "--batch",
        type=batches,
        default=(1, 4, 16, 64),
        metavar="LIST",
        help="rows of activations; 1..64 doubles (default: 1,4,16,64)",
    )
    add(
        "--bits",
        type=list_of(int, (2, 3, 4, 5, 6, 8)),
        default=(4, 2),
        metavar="LIST",
        help="bits of MLX's quantization (default: 4,2)",
    )
    add(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="weights that share a scale (default: 64)",
    )
    add(
        "--row-scaled",
        type=list_of(float),
        default=(),
        metavar="LIST",
        help="also matrices with one step a row that take so many bits coded",
    )
    add(
        "--threads",
        type=list_of(positive_int),
        metavar="LIST",
        help="of our kernels and llama.cpp's (default: all cores)",
    )
    add("--target", help="target of our kernels, e.g. avx2 (see doctor)")
    add(
        "--peers",
        type=list_of(str, _PEERS),
        metavar="LIST",
        help=f"of {','.join(_PEERS)}, all or none (default: those here)",
    )
    add_llama(parser)
    add(
        "--repeat",
        type=positive_int,
        default=15,
        metavar="N",
        help="rounds at most (default: 15)",
    )
    for name, default, what in (
        ("budget", 1.5, "stop repeating a measurement after so many seconds"),
        ("limit", 2.0, "leave out products that take a contender longer"),
    ):
        add(
            f"--{name}",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"{what} (default: {default:g})",
        )
    add(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the report, or print it on stdout if there is no FILE",
    )
    add("--plot", metavar="FILE", help="write a roofline, as PNG, SVG or PDF")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    from mlx_entropy import _ext
    from mlx_entropy.cli.progress import step_bar

    from ..shapes import SHAPES
    from ..sweep import SweepOptions, bench_sweep
    from ..weights import weight_kinds
    from .tables import format_report

    peers, llama = find_peers(args)
    options = SweepOptions(
        tuple(SHAPES[name] for name in args.shapes),
        args.products,
        tuple(weight_kinds(args.bits, args.group_size, args.row_scaled)),
        args.batch,
        args.threads or (_ext.num_threads(),),
        peers,
        llama,
        args.target,
        args.repeat,
        args.budget,
        args.limit,
    )
    with step_bar("sweep", args.quiet) as notify:
        report = bench_sweep(options, notify=notify)
    if args.json == "-":
        print(json.dumps(report, indent=2))
    else:
        print(format_report(report))
        if args.json:
            text = json.dumps(report, indent=2)
            Path(args.json).write_text(text, encoding="utf-8")
    if args.plot:
        from ..roofline import plot_sweep

        plot_sweep(report, args.plot)
    return 0


def find_peers(args: argparse.Namespace) -> tuple[tuple[str, ...], Any]:
    """Those to run, and llama.cpp; ValueError if it was asked for by name
    and is not there."""
    from ..llama_cpp import find_llama_cpp, missing_message

    peers = _PEERS if args.peers is None else args.peers
    if "llama.cpp" not in peers:
        return peers, None
    llama = find_llama_cpp(args.llama_cpp, args.target)
    if llama is None:
        message = missing_message(args.llama_cpp, args.target)
        if args.peers is not None or args.llama_cpp is not None:
            raise ValueError(message)
        print(f"without llama.cpp: {message}", file=sys.stderr)
    return peers, llama
