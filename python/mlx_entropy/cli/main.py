"""The `mlx-entropy` command: one file a verb, one line an error."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from .._version import version

_VERBS = (
    "convert",
    "inspect",
    "verify",
    "generate",
    "bench",
    "demo",
    "doctor",
)

# Works, and is wanted most, where the native module does not load.
_WITHOUT_KERNELS = ("doctor",)

# Errors whose message is for the user; others are defects of ours. MLX says
# everything with RuntimeError.
_EXPECTED = (ValueError, OSError, ImportError, RuntimeError)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_EXAMPLES = """\
Examples:
  mlx-entropy convert ./model-4bit ./model-4bit-ec
  mlx-entropy verify ./model-4bit-ec --against ./model-4bit
  mlx-entropy generate ./model-4bit-ec --prompt "Once upon a time"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status and raises nothing.

    0 success, 1 error or a check that failed, 2 wrong usage, 130 Ctrl-C.
    """
    _print_anything()
    verbs = _verbs()
    try:
        args = _parser(verbs).parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or the error.
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _run(verbs[args.verb], args)
    except KeyboardInterrupt:
        return _interrupted(args)
    except BrokenPipeError:
        # The reader has gone, e.g. `| head`. Python flushes stdout once
        # more at exit, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _failed(args, error)


def _run(verb: ModuleType, args: argparse.Namespace) -> int:
    if args.verb not in _WITHOUT_KERNELS:
        _check_kernels()
    status: int = verb.run(args)
    if sys.stdout is not None:
        # Here rather than at exit, where nobody handles a broken pipe.
        sys.stdout.flush()
    return status


def _print_anything() -> None:
    """Have text that the terminal's encoding lacks replaced, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_kernels() -> None:
    """ImportError or ValueError unless kernels run, on the target asked for.

    The native module ignores a target that it does not have.
    """
    from .. import _ext

    forced = os.environ.get("MLX_ENTROPY_TARGET")
    available = _ext.targets()
    if forced and forced not in available:
        raise ValueError(
            f"MLX_ENTROPY_TARGET={forced} cannot run here; "
            f"this machine has {', '.join(available)}"
        )


def _verbs() -> dict[str, ModuleType]:
    """The verbs of this build; some come with optional files."""
    package = __name__.rpartition(".")[0]
    return {
        verb: importlib.import_module(f"{package}.{verb}")
        for verb in _VERBS
        if importlib.util.find_spec(f"{package}.{verb}") is not None
    }


def _parser(verbs: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-entropy",
        description="Entropy-coded weights for MLX language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"mlx-entropy {version()}"
    )
    _add_debug(parser, False)
    subparsers = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True
    )
    for module in verbs.values():
        module.configure(subparsers)
    for verb in set(subparsers.choices.values()):
        # Suppressed, or its default would undo a flag before the verb.
        _add_debug(verb, argparse.SUPPRESS)
    return parser


def _add_debug(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--debug",
        action="store_true",
        default=default,
        help="show a traceback with an error",
    )


def _interrupted(args: argparse.Namespace) -> int:
    if args.debug:
        traceback.print_exc()
    _print_error(f"interrupted{_continues(args)}")
    return 130


def _failed(args: argparse.Namespace, error: Exception) -> int:
    if args.debug:
        traceback.print_exc()
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if error.filename is not None:
            message += f": {error.filename}"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        message += _continues(args)
    if isinstance(error, ImportError):
        message += " (mlx-entropy doctor says more)"
    if not isinstance(error, _EXPECTED):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    _print_error(message or type(error).__name__)
    return 1


def _continues(args: argparse.Namespace) -> str:
    if args.verb != "convert":
        return ""
    return "; the same command continues where it stopped"


def _print_error(message: str) -> None:
    line = " ".join(message.split())
    print(f"mlx-entropy: error: {line}", file=sys.stderr)
