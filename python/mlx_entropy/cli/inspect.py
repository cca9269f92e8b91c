"""`mlx-entropy inspect`: measured bits a weight of a converted model."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .arguments import add_json, add_quiet, add_verb
from .progress import progress_bar
from .table import format_table, megabytes

if TYPE_CHECKING:
    from ..inspection import InspectedTensor, ModelReport, Totals

_EXAMPLES = """\
  mlx-entropy inspect ./model-ec
  mlx-entropy inspect ./model-ec --json
"""

_DESCRIPTION = """\
Show what a converted model stores for each tensor: bytes, bits a weight with
everything counted, the entropy of the codes, why a tensor stayed raw, and
which codec (with its bits a weight) loading chooses for it on this machine.
"""

_HEADER = (
    "tensor", "why raw", "shape", "stored as", "codec",
    "MB", "bits/weight", "entropy", "in memory",
)  # fmt: skip


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "inspect",
        "show the measured size of each tensor",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    add_quiet(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..inspection import inspect

    with progress_bar("measuring", args.quiet or args.json) as progress:
        report = inspect(args.model, progress=progress)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(_format(report))
    return 0


def _format(report: ModelReport) -> str:
    from ..inspection import memory_line
    from ..sources.base import left_out_lines

    rows = [_row(tensor) for tensor in report.tensors]
    for name in ("linear", "embedding", "switch", "total"):
        totals = getattr(report, name)
        if totals.tensors or name != "switch":
            rows.append(_totals_row(name, totals))
    return "\n".join(
        (
            format_table(_HEADER, rows, left=2),
            "",
            f"{report.model}: {megabytes(report.file_bytes)} in weight files",
            memory_line(report.memory_forms),
            *left_out_lines(report.left_out),
        )
    )


def _row(tensor: InspectedTensor) -> tuple[str, ...]:
    scheme = tensor.dtype
    if tensor.group_size:
        scheme = f"{tensor.scheme} {tensor.bits}/{tensor.group_size}"
    return (
        tensor.name,
        tensor.reason or "",
        "x".join(str(extent) for extent in tensor.shape),
        scheme,
        tensor.codec,
        f"{tensor.coded_bytes / 1e6:.3f}",
        f"{tensor.bits_per_weight:.3f}",
        _entropy(tensor.entropy_bits),
        _in_memory(tensor),
    )


def _totals_row(name: str, totals: Totals) -> tuple[str, ...]:
    return (
        f"{name} ({totals.tensors})",
        "",
        f"{totals.weights / 1e6:.2f} M",
        "",
        "",
        f"{totals.coded_bytes / 1e6:.3f}",
        f"{totals.bits_per_weight:.3f}",
        _entropy(totals.entropy_bits),
        "",
    )


def _in_memory(tensor: InspectedTensor) -> str:
    if tensor.memory_codec is None:
        return "-"
    return f"{tensor.memory_codec} {tensor.memory_bits_per_weight:.3f}"


def _entropy(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.3f}"
