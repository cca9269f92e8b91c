"""`mlx-entropy restore`: give back the model that was converted."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .arguments import add_json, add_quiet, add_verb, byte_size
from .progress import progress_bar

_EXAMPLES = """\
  mlx-entropy restore ./model-ec ./model
  mlx-entropy restore ./model-ec ./model --json
"""

_DESCRIPTION = """\
Write the model that was converted, with every bit of its tensors, as a
directory that stock mlx-lm loads, quantizes, fuses and exports. One layer is
in memory at a time. DST must be new or empty: nothing is replaced. After an
interruption the same command continues.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "restore",
        "give back the model that was converted",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    parser.add_argument(
        "destination", metavar="DST", help="directory to create"
    )
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        metavar="SIZE",
        help="bytes of MODEL a file, e.g. 512MB (default: 1GiB)",
    )
    add_quiet(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..conversion import DEFAULT_SHARD_BYTES
    from ..restoration import restore

    with progress_bar("restoring", args.quiet or args.json) as progress:
        report = restore(
            args.model,
            args.destination,
            shard_bytes=args.shard_size or DEFAULT_SHARD_BYTES,
            progress=progress,
        )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    print(report.summary())
    for warning in report.warnings:
        print(f"mlx-entropy: warning: {warning}", file=sys.stderr)
    return 0
