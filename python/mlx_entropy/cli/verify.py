"""`mlx-entropy verify`: prove that a conversion lost nothing."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .arguments import add_json, add_quiet, add_trust, add_verb
from .progress import progress_bar
from .table import megabytes

if TYPE_CHECKING:
    from ..verification import VerifyReport

# The wrong source differs in every tensor.
_MOST_LINES = 20

_EXAMPLES = """\
  mlx-entropy verify ./model-ec --against ./model
  mlx-entropy verify ./model-ec --against ./model --json
"""

_DESCRIPTION = """\
Decode every tensor of a converted model and compare it bit for bit with the
source's files. Exits with 0 only if all are identical, with 1 otherwise. Lists
tensors of the files that the conversion left out, which must be those that the
model names.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "verify",
        "compare a converted model with its source, bit for bit",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    parser.add_argument(
        "--against",
        metavar="SRC",
        required=True,
        help="the model that was converted",
    )
    add_quiet(parser)
    add_trust(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..verification import verify

    with progress_bar("verifying", args.quiet or args.json) as progress:
        report = verify(
            args.model,
            args.against,
            progress=progress,
            trust_remote_code=args.trust_remote_code,
        )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    elif report.identical:
        _print_identical(report)
    else:
        _print_mismatches(report)
    return 0 if report.identical else 1


def _print_identical(report: VerifyReport) -> None:
    from ..sources.base import left_out_lines

    kept = report.tensors - len(report.left_out)
    nbytes = report.nbytes - sum(each.nbytes for each in report.left_out)
    print(f"identical: {kept} tensors, {megabytes(nbytes)}")
    for line in left_out_lines(report.left_out):
        print(line)


def _print_mismatches(report: VerifyReport) -> None:
    for found in report.mismatches[:_MOST_LINES]:
        print(f"{found.name}: {found.problem}")
    count = len(report.mismatches)
    if count > _MOST_LINES:
        print(f"and {count - _MOST_LINES} more, which --json lists")
    print(f"NOT identical: {count} problem{'s' if count > 1 else ''}")
