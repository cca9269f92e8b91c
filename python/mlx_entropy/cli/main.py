"""The `mlx-entropy` command: one file a verb, one line an error."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from .._version import version
from ..files import DISK_FULL
from .doctor import THREADS_VARIABLE
from .signals import Terminated, signals_raise

_VERBS = (
    "convert",
    "inspect",
    "verify",
    "restore",
    "seal",
    "generate",
    "run",
    "bench",
    "doctor",
)

# Works, and is wanted most, where the native module does not load.
_WITHOUT_KERNELS = ("doctor",)

# Errors whose message is for the user; others are defects of ours. MLX says
# everything with RuntimeError.
_EXPECTED = (ValueError, OSError, ImportError, RuntimeError)

_EXAMPLES = """\
Examples:
  mlx-entropy convert ./model-4bit ./model-4bit-ec
  mlx-entropy verify ./model-4bit-ec --against ./model-4bit
  mlx-entropy generate ./model-4bit-ec --prompt "Once upon a time"
"""


@dataclass(frozen=True)
class Program:
    """A command with verbs, which are modules of the package `package`."""

    name: str
    description: str
    examples: str
    package: str
    verbs: tuple[str, ...]


_PROGRAM = Program(
    "mlx-entropy",
    "Entropy-coded weights for MLX language models.",
    _EXAMPLES,
    __name__.rpartition(".")[0],
    _VERBS,
)


def main(argv: Sequence[str] | None = None, program: Program = _PROGRAM) -> int:
    """Run one command; returns its exit status and raises nothing.

    0 success, 1 error or a check that failed, 2 wrong usage, 130 Ctrl-C,
    143 SIGTERM. With --json an error is the object {"error": ...} on stdout.
    """
    _prepare_streams()
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(verb=None, debug=False, json="--json" in argv)
    try:
        with signals_raise():
            status = _run(argv, args, program)
            # Here rather than at exit, where nobody handles a broken pipe.
            sys.stdout.flush()
            return status
    except (KeyboardInterrupt, Terminated) as stop:
        return _stopped(args, stop)
    except _UsageError as error:
        return _misused(args, error)
    except BrokenPipeError:  # The reader has gone, e.g. `| head`.
        _drop_output()
        return 1
    except Exception as error:
        _drop_output()
        return _failed(args, error)


def _drop_output() -> None:
    """Have stdout take what it cannot write: Python flushes it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    """Make stdin, stdout and stderr exist and take any text."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Gets the lowest free number, which is this one. Otherwise a
            # model file would, and be written to by whatever prints.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An encoding may lack a letter that a model writes.
            stream.reconfigure(errors="replace")


def _run(
    argv: Sequence[str], args: argparse.Namespace, program: Program
) -> int:
    """Fill `args` and run the verb; errors are raised."""
    verbs = _verbs(program)
    try:
        _parser(program, verbs).parse_args(argv, args)
    except SystemExit as stop:  # argparse has printed help or the version.
        return stop.code if isinstance(stop.code, int) else 2
    _check_text(args)
    if args.verb not in _WITHOUT_KERNELS:
        _check_kernels()
    status: int = verbs[args.verb].run(args)
    return status


def _check_text(args: argparse.Namespace) -> None:
    """ValueError for a prompt that a tokenizer would choke on.

    Python keeps bytes that it cannot decode as surrogates.
    """
    try:
        (getattr(args, "prompt", None) or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            "the prompt is not UTF-8; the locale (LC_ALL) may be wrong"
        ) from None


def _check_kernels() -> None:
    """ImportError or ValueError unless kernels run as the user asked.

    The native module ignores a target that it does not have, and a number of
    threads that is none.
    """
    from .. import _ext

    forced = os.environ.get("MLX_ENTROPY_TARGET")
    available = _ext.targets()
    if forced and forced not in available:
        raise ValueError(
            f"MLX_ENTROPY_TARGET={forced} cannot run here; "
            f"this machine has {', '.join(available)}"
        )
    threads = os.environ.get(THREADS_VARIABLE)
    if threads and _ext.threads_source() not in (
        THREADS_VARIABLE,
        "set_num_threads",
    ):
        raise ValueError(
            f"{THREADS_VARIABLE}={threads} is not a number from 1 to 4096"
        )


def _verbs(program: Program) -> dict[str, ModuleType]:
    return {
        verb: importlib.import_module(f"{program.package}.{verb}")
        for verb in program.verbs
    }


class _UsageError(Exception):
    """Wrong arguments, for the verb of the parser."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    """Raises its errors; verbs' parsers become such ones, too."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(self, message)


def _parser(
    program: Program, verbs: dict[str, ModuleType]
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program.name,
        description=program.description,
        epilog=program.examples,
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


def _stopped(args: argparse.Namespace, stop: BaseException) -> int:
    if args.debug:
        traceback.print_exc()
    number, what = signal.SIGINT.value, "interrupted"
    if isinstance(stop, Terminated):
        number, what = stop.number, f"stopped by {stop}"
    _print_error(args, f"{what}{_continues(args)}")
    return 128 + number


def _misused(args: argparse.Namespace, error: _UsageError) -> int:
    if _wants_json(args):
        _print_error(args, f"{error} ({error.parser.prog} --help)")
    else:
        error.parser.print_usage(sys.stderr)
        print(f"{error.parser.prog}: error: {error}", file=sys.stderr)
    return 2


def _failed(args: argparse.Namespace, error: Exception) -> int:
    if args.debug:
        traceback.print_exc()
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if error.filename is not None:
            message += f": {error.filename}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        message += _continues(args)
    if isinstance(error, ImportError):
        message += " (mlx-entropy doctor says more)"
    if not isinstance(error, _EXPECTED):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    _print_error(args, message or type(error).__name__)
    return 1


def _continues(args: argparse.Namespace) -> str:
    if args.verb not in ("convert", "restore"):
        return ""
    return "; the same command continues where it stopped"


def _print_error(args: argparse.Namespace, message: str) -> None:
    line = " ".join(message.split())
    if _wants_json(args):
        try:
            print(json.dumps({"error": line}, indent=2), flush=True)
            return
        except OSError:
            _drop_output()
    print(f"mlx-entropy: error: {line}", file=sys.stderr)


def _wants_json(args: argparse.Namespace) -> bool:
    """Whether stdout is for JSON: `bench sweep` may write it to a file."""
    return getattr(args, "json", None) in (True, "-")
