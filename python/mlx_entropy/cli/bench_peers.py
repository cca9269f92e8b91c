"""`mlx-entropy bench` with peers: sweep, model, and synthetic models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import add_json, add_quiet, add_verb, positive_int

_SWEEP = """\
Multiply by matrices of real models' shapes, which come from memory and not
from a cache: entropy-coded, with stock MLX, with llama.cpp's types of about
the same size, and dense with numpy. Prints what each product moves, its share
of the bandwidth measured in the same run, and how much faster ours is.
"""

_SWEEP_EXAMPLES = """\
  mlx-entropy bench sweep
  mlx-entropy bench sweep --shapes 8b --bits 4,2 --row-scaled 2.6,3.2
  mlx-entropy bench sweep --shapes 135m,1b,8b,70b --products all \\
      --batch 1..4096 --bits 4,3,2 --threads 1,2 \\
      --json sweep.json --plot sweep.png
  mlx-entropy bench sweep --target avx2       # llama.cpp without AVX-512, too

scripts/build_llama_cpp.sh builds llama.cpp.
"""

_MODEL = """\
Generate with a converted model and read a long prompt, in turns with
llama.cpp's llama-bench on a GGUF file and with as many threads.
"""

_MODEL_EXAMPLES = """\
  mlx-entropy bench synthetic 1b --gguf 1b.gguf
  mlx-entropy bench synthetic 1b --out 1b-stock
  mlx-entropy convert 1b-stock 1b-ec
  mlx-entropy bench model 1b-ec --gguf 1b.gguf --llama-cpp build/llama.cpp
"""

_SYNTHETIC = """\
Write a model of a real model's shape with Gaussian weights: an MLX directory
for mlx-entropy convert, a GGUF file for llama.cpp, or both. Nothing is
downloaded. The text that such a model writes is noise.
"""

_SYNTHETIC_EXAMPLES = """\
  mlx-entropy bench synthetic 1b --out 1b-stock --gguf 1b.gguf
  mlx-entropy bench synthetic 8b --bits 3 --out 8b-stock
  mlx-entropy bench synthetic 8b --gguf 8b-q2.gguf --gguf-type q2_k
  mlx-entropy bench synthetic 70b --layers 4 --out part-of-70b
"""

_PEERS = ("mlx", "llama.cpp", "numpy")
_PRODUCTS = ("attention", "keys", "up", "down")
_SHAPES = ("135m", "1b", "8b", "70b")
# Those of BLOCK_TYPES in bench.synthetic_gguf, which takes long to import.
_GGUF_TYPES = (
    "q4_0", "q4_1", "q8_0", "q2_k", "q3_k", "q4_k", "q6_k", "iq2_s",
)  # fmt: skip


def configure(kinds: Any) -> None:
    _configure_sweep(kinds)
    _configure_model(kinds)
    _configure_synthetic(kinds)


def _list_of(
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


def _configure_sweep(kinds: Any) -> None:
    parser = add_verb(
        kinds, "sweep", "products beside all peers", _SWEEP, _SWEEP_EXAMPLES
    )
    add = parser.add_argument
    add(
        "--shapes",
        type=_list_of(str.lower, _SHAPES),
        default=("1b", "8b"),
        metavar="LIST",
        help=f"of {','.join(_SHAPES)}, or all (default: 1b,8b)",
    )
    add(
        "--products",
        type=_list_of(str, _PRODUCTS),
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
        type=_list_of(int, (2, 3, 4, 5, 6, 8)),
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
        type=_list_of(float),
        default=(),
        metavar="LIST",
        help="also matrices with one step a row that take so many bits coded",
    )
    add(
        "--threads",
        type=_list_of(positive_int),
        metavar="LIST",
        help="of our kernels and llama.cpp's (default: all cores)",
    )
    add("--target", help="target of our kernels, e.g. avx2 (see doctor)")
    add(
        "--peers",
        type=_list_of(str, _PEERS),
        metavar="LIST",
        help=f"of {','.join(_PEERS)}, all or none (default: those here)",
    )
    _add_llama(parser)
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
    add("--json", metavar="FILE", help="write the report; - for stdout")
    add("--plot", metavar="FILE", help="write a roofline, as PNG, SVG or PDF")
    add_quiet(parser)


def _configure_model(kinds: Any) -> None:
    parser = add_verb(
        kinds, "model", "a model beside llama.cpp", _MODEL, _MODEL_EXAMPLES
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="converted directory")
    add("--gguf", metavar="FILE", help="what llama.cpp runs")
    add("--against", metavar="STOCK", help="MLX directory to run as well")
    _add_llama(parser)
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


def _configure_synthetic(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "synthetic",
        "write a model of random weights",
        _SYNTHETIC,
        _SYNTHETIC_EXAMPLES,
    )
    add = parser.add_argument
    add("shape", choices=_SHAPES, help="of SmolLM2-135M or of Llama 3")
    add("--out", metavar="DIR", help="MLX directory to write")
    add("--gguf", metavar="FILE", help="GGUF file to write")
    add(
        "--bits",
        type=int,
        choices=(2, 3, 4, 5, 6, 8),
        default=4,
        help="of the MLX directory (default: 4)",
    )
    add(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="of the MLX directory (default: 64)",
    )
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="type of the activations (default: float32)",
    )
    add(
        "--gguf-type",
        choices=_GGUF_TYPES,
        help="default: q4_k, or q4_0 where the shape does not fit its blocks",
    )
    add(
        "--layers",
        type=positive_int,
        metavar="N",
        help="fewer layers than the real model has",
    )
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add_quiet(parser)


def _add_llama(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llama-cpp",
        metavar="DIR",
        help="what scripts/build_llama_cpp.sh built (default: build/llama.cpp)",
    )


def run_sweep(args: argparse.Namespace) -> int:
    from .. import _ext
    from ..bench.shapes import SHAPES
    from ..bench.sweep import SweepOptions, bench_sweep
    from ..bench.weights import weight_kinds
    from .bench_tables import format_report
    from .progress import step_bar

    peers, llama = _peers(args)
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
        from ..bench.roofline import plot_sweep

        plot_sweep(report, args.plot)
    return 0


def _peers(args: argparse.Namespace) -> tuple[tuple[str, ...], Any]:
    """Those to run, and llama.cpp; ValueError if it was asked for by name
    and is not there."""
    from ..bench.llama_cpp import find_llama_cpp, missing_message

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


def run_model(args: argparse.Namespace) -> int:
    from ..bench.llama_cpp import find_llama_cpp, missing_message
    from ..bench.whole_model import bench_model
    from .bench_tables import format_report

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
        notify=None if args.json else _say,
    )
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(format_report(report))
    return 0


def run_synthetic(args: argparse.Namespace) -> int:
    from ..bench.shapes import SHAPES
    from ..bench.synthetic import write_model
    from ..bench.synthetic_gguf import write_gguf

    if args.out is None and args.gguf is None:
        raise ValueError("nothing to write: give --out, --gguf or both")
    shape = SHAPES[args.shape]
    common = {
        "layers": args.layers,
        "seed": args.seed,
        "notify": None if args.quiet else _say,
    }
    if args.out is not None:
        folder = write_model(
            shape,
            args.out,
            bits=args.bits,
            group_size=args.group_size,
            dtype=args.dtype,
            **common,
        )
        print(f"{folder}: the shape of {shape.like}, {args.bits} bits")
    if args.gguf is not None:
        file = write_gguf(shape, args.gguf, kind=args.gguf_type, **common)
        size = file.stat().st_size / 1e9
        print(f"{file}: the shape of {shape.like}, {size:.2f} GB")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
