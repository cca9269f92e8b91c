"""`mlx-entropy bench`: measure against stock MLX on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from . import bench_peers
from .arguments import add_json, add_verb, positive_int

_EXAMPLES = """\
  mlx-entropy bench gemv --bits 3 --dtype bfloat16
  mlx-entropy bench gemv --sweep
  mlx-entropy bench encode --json
  mlx-entropy bench load ./model-ec --against ./model
  mlx-entropy bench generate ./model-ec --against ./model
  mlx-entropy bench sweep --shapes 8b --plot roofline.png
  mlx-entropy bench synthetic 1b --out ./1b --gguf 1b.gguf
  mlx-entropy bench model ./1b-ec --gguf 1b.gguf
  mlx-entropy bench dispatch
"""

_DESCRIPTION = """\
Measure speed and size beside a peer, which is timed in turns with ours.
Figures are medians; the spread is the range of the middle half of the
samples, in medians.
"""

_GEMV = """\
Multiply by one matrix of Gaussian weights: entropy-coded, with stock MLX's
quantized_matmul on the same codes, and dense with numpy for information.
"""

_ENCODE = """\
Code and decode Gaussian weights: quantized, bfloat16 and float16, with one
thread and with all. The peer is zlib at its fastest level.
"""

_LOAD = """\
Load the weights of a model in a new process: seconds until all are in memory
and validated, bytes read and peak memory.
"""

_GENERATE = """\
Generate greedily with a coded model and with its stock form in turns: tokens
a second, and whether the two say the same.
"""

_DISPATCH = """\
Hand work to the threads: microseconds until an empty region is done, until
every thread has taken a task, and the first when the threads had gone to sleep.
"""

_PROMPT = "Write a short story about a lighthouse keeper."


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "bench",
        "measure speed and size against peers",
        _DESCRIPTION,
        _EXAMPLES,
    )
    kinds = parser.add_subparsers(
        dest="benchmark", metavar="BENCHMARK", required=True
    )
    _configure_gemv(kinds)
    _configure_encode(kinds)
    _configure_load(kinds)
    _configure_generate(kinds)
    _configure_dispatch(kinds)
    bench_peers.configure(kinds)


def _configure_gemv(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "gemv",
        "one product with a quantized matrix",
        _GEMV,
        "  mlx-entropy bench gemv --bits 3 --dtype bfloat16\n"
        "  mlx-entropy bench gemv --sweep --threads 1\n",
    )
    _add_shape(parser)
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
    _add_kernel_options(parser)
    _add_repetitions(parser, 20, 5.0)
    add_json(parser)


def _configure_encode(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "encode",
        "speed and size of coding and decoding",
        _ENCODE,
        "  mlx-entropy bench encode --bits 3\n",
    )
    _add_shape(parser)
    _add_kernel_options(parser)
    _add_repetitions(parser, 10, 5.0)
    add_json(parser)


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
    _add_repetitions(parser, 3, None)
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
    _add_kernel_options(parser)
    _add_repetitions(parser, 3, None)
    add_json(parser)


def _configure_dispatch(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "dispatch",
        "microseconds to hand work to the threads",
        _DISPATCH,
        "  mlx-entropy bench dispatch --threads 4\n",
    )
    _add_threads(parser)
    _add_repetitions(parser, 50, None)
    add_json(parser)


def at_least_two(text: str) -> int:
    """Tokens to generate: one alone cannot be timed."""
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError("give 2 at least, to time them")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _add_shape(parser: argparse.ArgumentParser) -> None:
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


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads of our kernels (default: see doctor)",
    )


def _add_kernel_options(parser: argparse.ArgumentParser) -> None:
    _add_threads(parser)
    parser.add_argument(
        "--target", help="target of our kernels, e.g. avx2 (see doctor)"
    )


def _add_repetitions(
    parser: argparse.ArgumentParser, repeat: int, budget: float | None
) -> None:
    parser.add_argument(
        "--repeat",
        type=positive_int,
        default=repeat,
        metavar="N",
        help=f"repetitions at most (default: {repeat})",
    )
    if budget is not None:
        parser.add_argument(
            "--budget",
            type=_seconds,
            default=budget,
            metavar="SECONDS",
            help="stop repeating a measurement after so many seconds "
            f"(default: {budget:g})",
        )


def run(args: argparse.Namespace) -> int:
    from . import bench_tables

    with_peers = {
        "sweep": bench_peers.run_sweep,
        "model": bench_peers.run_model,
        "synthetic": bench_peers.run_synthetic,
    }
    if args.benchmark in with_peers:
        return with_peers[args.benchmark](args)
    measure = {
        "gemv": _gemv,
        "encode": _encode,
        "load": _load,
        "generate": _generate,
        "dispatch": _dispatch,
    }
    report = measure[args.benchmark](args)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(bench_tables.format_report(report))
    return 0


def _gemv(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.gemv import GemvCase, bench_gemv, bench_gemv_sweep

    case = GemvCase(
        args.rows,
        args.cols,
        args.bits,
        args.group_size,
        args.dtype,
        args.batch,
    )
    options = _kernel_options(args)
    if args.sweep:
        return bench_gemv_sweep(case, **options, notify=_notify(args))
    return bench_gemv(case, **options)


def _encode(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.encode import bench_encode

    return bench_encode(
        args.rows,
        args.cols,
        args.bits,
        args.group_size,
        **_kernel_options(args),
    )


def _load(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.load import bench_load

    return bench_load(
        args.model, args.against, repeat=args.repeat, notify=_notify(args)
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
        notify=_notify(args),
    )


def _dispatch(args: argparse.Namespace) -> dict[str, Any]:
    from ..bench.dispatch import bench_dispatch

    return bench_dispatch(args.threads, repeat=args.repeat)


def _kernel_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "target", "repeat", "budget")
    return {name: getattr(args, name) for name in names}


def _notify(args: argparse.Namespace) -> Any:
    """Progress on stderr; None where JSON is wanted."""
    if args.json:
        return None
    return lambda line: print(line, file=sys.stderr, flush=True)
