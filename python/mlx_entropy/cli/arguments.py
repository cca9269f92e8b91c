"""What the verbs' parsers have in common."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from ..model_format import CODECS

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def add_verb(
    subparsers: Any, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A parser for a verb, with an Examples section under its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="Examples:\n" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the model or its tokenizer comes with",
    )


def add_codec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codec",
        choices=CODECS,
        help="form of the weights in memory: rans is the smallest, tree and "
        "flat are faster to decode, auto picks for each matrix by measurement "
        "(default: MLX_ENTROPY_CODEC, else auto)",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="show no progress"
    )


def byte_size(text: str) -> int:
    """Bytes of e.g. "512MB" (10**6), "2GiB" (2**30) or "1000000"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.lower())
    if match is None or match[2] == "i":
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512MB")
    nbytes = int(float(match[1]) * {**_UNITS, **_BINARY}[match[2]])
    if nbytes < 1:
        raise argparse.ArgumentTypeError("a size must be positive")
    return nbytes


def positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        # argparse's own message would name this function.
        raise argparse.ArgumentTypeError(f"{text!r} is no integer") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def at_least_two(text: str) -> int:
    """Tokens to generate: one alone cannot be timed."""
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError("give 2 at least, to time them")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads of our kernels (default: see doctor)",
    )


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    parser.add_argument(
        "--target", help="target of our kernels, e.g. avx2 (see doctor)"
    )


def add_repetitions(
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
            type=seconds,
            default=budget,
            metavar="SECONDS",
            help="stop repeating a measurement after so many seconds "
            f"(default: {budget:g})",
        )


def kernel_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "target", "repeat", "budget")
    return {name: getattr(args, name) for name in names}


def notify(args: argparse.Namespace) -> Any:
    """Progress on stderr; None where JSON is wanted."""
    if args.json:
        return None
    return lambda line: print(line, file=sys.stderr, flush=True)
