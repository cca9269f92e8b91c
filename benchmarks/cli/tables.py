"""The reports of these benchmarks as text."""

from __future__ import annotations

from typing import Any

from mlx_entropy.cli import bench_tables
from mlx_entropy.cli.bench_tables import COMMON, common, times
from mlx_entropy.cli.table import format_table

from . import peer_tables


def format_report(report: dict[str, Any]) -> str:
    """The tables of a report, and below them what ran."""
    return bench_tables.format_report(
        report,
        {
            "gemv": _gemv,
            "gemv sweep": _sweep,
            "encode": _encode,
            "dispatch": _dispatch,
            "sweep": peer_tables.sweep,
            "model": peer_tables.model,
        },
    )


def _gemv(report: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            f"{row['nbytes'] / 1e6:.2f}",
            *common(row),
            f"{row['relative_error']:.1e}",
        )
        for row in report["results"]
    ]
    return "\n".join(
        (
            f"{report['rows']}x{report['cols']}, {report['bits']} bits, "
            f"group size {report['group_size']}, {report['dtype']}, "
            f"batch {report['batch']}",
            f"coded {report['coded_bits_per_weight']:.3f} bits a weight, "
            f"stored by MLX in {report['stored_bits_per_weight']:.3f}",
            "",
            format_table(("product", "MB", *COMMON, "error"), rows),
            "",
            f"coded / stock MLX: {times(report['ratio'])} the speed",
        )
    )


def _sweep(report: dict[str, Any]) -> str:
    header = (
        "bits", "activations", "batch", "bits/weight", "stored",
        "coded ms", "stock ms", "ratio", "Gweights/s", "spread", "samples",
    )  # fmt: skip
    rows = []
    for case in report["cases"]:
        ours, peer = case["results"][:2]
        rows.append(
            (
                str(case["bits"]),
                case["dtype"],
                str(case["batch"]),
                f"{case['coded_bits_per_weight']:.3f}",
                f"{case['stored_bits_per_weight']:.3f}",
                f"{1e3 * ours['seconds']:.3f}",
                f"{1e3 * peer['seconds']:.3f}",
                times(case["ratio"]),
                f"{ours['weights_per_second'] / 1e9:.2f}",
                f"{100 * ours['spread']:.0f} %",
                str(ours["repetitions"]),
            )
        )
    case = report["cases"][0]
    return "\n".join(
        (
            f"{case['rows']}x{case['cols']}, group size {case['group_size']}",
            "",
            format_table(header, rows, left=2),
            "",
        )
    )


def _encode(report: dict[str, Any]) -> str:
    header = ("weights", "operation", "coder", "bits/weight", *COMMON, "ratio")
    rows = [
        (
            row["weights_of"],
            row["operation"],
            row["name"],
            f"{8 * row['nbytes'] / report['weights']:.3f}",
            *common(row),
            times(row["ratio"]),
        )
        for row in report["results"]
    ]
    sizes = {
        row["weights_of"]: f"{row['weights_of']}: "
        f"{row['source_bits_per_weight']:.3f} -> "
        f"{row['bits_per_weight']:.3f} bits a weight; the entropy of its "
        f"parts is {row['entropy_bits']:.3f}"
        for row in report["results"]
    }
    return "\n".join(
        (
            f"{report['rows']}x{report['cols']} Gaussian weights",
            "",
            format_table(header, rows, left=3),
            "",
            *sizes.values(),
        )
    )


def _dispatch(report: dict[str, Any]) -> str:
    keys = ("empty_seconds", "handover_seconds", "asleep_seconds")
    rows = [
        (str(row["threads"]), *(f"{1e6 * row[key]:.2f}" for key in keys))
        for row in report["results"]
    ]
    header = ("threads", "empty, us", "all take part, us", "after sleep, us")
    return "\n".join((format_table(header, rows), ""))
