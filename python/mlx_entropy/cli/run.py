"""`mlx-entropy run`: mlx-lm's programs, which then load converted models."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from .arguments import add_verb
from .signals import signals_end

_PACKAGE = "mlx_lm"
_PROGRAMS = {
    "benchmark": "benchmark",
    "cache_prompt": "cache_prompt",
    "chat": "chat",
    "convert": "convert",
    "evaluate": "evaluate",
    "fuse": "fuse",
    "generate": "generate",
    "lora": "lora",
    "perplexity": "perplexity",
    "server": "server",
    "awq": "quant.awq",
    "dwq": "quant.dwq",
    "dynamic_quant": "quant.dynamic_quant",
    "gptq": "quant.gptq",
}
"""Those of mlx-lm that take a model, and their modules."""

_EXAMPLES = """\
  mlx-entropy run mlx_lm.generate --model ./model-ec --prompt "Once upon a time"
  mlx-entropy run mlx_lm.server --model ./model-ec --draft-model ./small-ec
  mlx-entropy run mlx_lm.lora --model ./model-ec --train --data ./data
  mlx-entropy run mlx_lm.server --help
"""

_DESCRIPTION = """\
Run one of mlx-lm's programs so that every model it takes may be a converted
one, with no --trust-remote-code: write `mlx-entropy run` before its command.
Draft models need this, since mlx-lm does not trust them whatever it is told.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "run",
        "run a program of mlx-lm on converted models",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument(
        "program",
        metavar="PROGRAM",
        type=_program,
        help=f"{_PACKAGE}.X or X: {', '.join(_PROGRAMS)}",
    )
    parser.add_argument(
        "arguments",
        metavar="...",
        nargs=argparse.REMAINDER,
        help="the program's own arguments; --help shows them",
    )


def _program(text: str) -> str:
    name = text.removeprefix(f"{_PACKAGE}.")
    if name not in _PROGRAMS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no program of mlx-lm that takes a model: "
            f"{', '.join(_PROGRAMS)}"
        )
    return name


def run(args: argparse.Namespace) -> int:
    from ..loading import register

    register()
    # Where mlx-lm's programs read their arguments.
    before = sys.argv
    sys.argv = [f"{_PACKAGE}.{args.program}", *args.arguments]
    try:
        program = importlib.import_module(
            f"{_PACKAGE}.{_PROGRAMS[args.program]}"
        )
        with signals_end():
            program.main()
    except SystemExit as stop:  # How argparse ends a program.
        if isinstance(stop.code, str):
            raise ValueError(stop.code) from stop
        return stop.code or 0
    finally:
        sys.argv = before
    return 0
