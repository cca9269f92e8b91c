"""`mlx-entropy seal`: accept what was changed in a converted model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .arguments import add_json, add_verb

_EXAMPLES = """\
  mlx-entropy seal ./model-ec
  mlx-entropy seal ./model-ec --json
"""

_DESCRIPTION = """\
Write the checksums of a converted model again. Loading refuses a model in
which a byte has changed; after an edit on purpose, of config.json or of a chat
template for example, seal it. Lists what had changed: look whether that is
what you meant.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "seal",
        "accept what was changed in a converted model on purpose",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..checksums import seal

    report = seal(args.model)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    for change in report.changed:
        print(f"accepted: {change}")
    print(f"sealed: {report.tensors} tensors and {report.files} other files")
    return 0
