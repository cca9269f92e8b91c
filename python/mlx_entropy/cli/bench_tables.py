"""The benchmarks' reports as text."""

from __future__ import annotations

from typing import Any

from . import bench_peer_tables
from .table import format_table

_COMMON = ("ms", "Gweights/s", "spread", "samples", "threads")


def format_report(report: dict[str, Any]) -> str:
    """The tables of a report, and below them what ran."""
    formats = {
        "gemv": _gemv,
        "gemv sweep": _sweep,
        "encode": _encode,
        "load": _load,
        "generate": _generate,
        "dispatch": _dispatch,
        "sweep": bench_peer_tables.sweep,
        "model": bench_peer_tables.model,
    }
    return f"{formats[report['benchmark']](report)}\n{_machine(report)}"


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return (
        f"target {machine['target']}, {machine['threads']} threads on "
        f"{machine['cpus']} CPUs ({machine['platform']}), "
        f"mlx {machine['mlx']}, mlx-lm {machine['mlx_lm']}, "
        f"mlx-entropy {machine['mlx_entropy']}"
    )


def _common(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{1e3 * row['seconds']:.3f}",
        f"{row['weights_per_second'] / 1e9:.2f}",
        f"{100 * row['spread']:.0f} %",
        str(row["repetitions"]),
        str(row["threads"] or "-"),
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def _gemv(report: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            f"{row['nbytes'] / 1e6:.2f}",
            *_common(row),
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
            format_table(("product", "MB", *_COMMON, "error"), rows),
            "",
            f"coded / stock MLX: {_times(report['ratio'])} the speed",
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
                _times(case["ratio"]),
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
    header = ("weights", "operation", "coder", "bits/weight", *_COMMON, "ratio")
    rows = [
        (
            row["weights_of"],
            row["operation"],
            row["name"],
            f"{8 * row['nbytes'] / report['weights']:.3f}",
            *_common(row),
            _times(row["ratio"]),
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


def _load(report: dict[str, Any]) -> str:
    header = (
        "model", "files MB", "read MB", "seconds", "spread", "samples",
        "Mweights/s", "weights MB", "peak MB", "before MB",
    )  # fmt: skip
    rows = [
        (
            row["name"],
            _mega(row["nbytes"]),
            _mega(row.get("bytes_read")),
            f"{row['seconds']:.3f}",
            f"{100 * row['spread']:.0f} %",
            str(row["repetitions"]),
            f"{row['weights_per_second'] / 1e6:.0f}",
            _mega(row["active_bytes"]),
            _mega(row.get("peak_resident_bytes")),
            _mega(row.get("resident_before")),
        )
        for row in report["results"]
    ]
    lines = [format_table(header, rows), ""]
    if report["ratio"] is not None:
        lines.append(
            f"coded / stock MLX: {_times(report['ratio'])} the speed; "
            "coded weights are validated, stock ones are not"
        )
    return "\n".join(lines)


def _mega(nbytes: float | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:.1f}"


def _generate(report: dict[str, Any]) -> str:
    header = (
        "model", "MB", "tokens/s", "prompt tokens/s", *_COMMON[1:],
    )  # fmt: skip
    rows = [
        (
            row["name"],
            f"{row['nbytes'] / 1e6:.2f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['prompt_tokens_per_second']:.2f}",
            *_common(row)[1:],
        )
        for row in report["results"]
    ]
    return "\n".join(
        (
            f"{report['max_tokens']} tokens after a prompt of "
            f"{report['prompt_tokens']}",
            "",
            format_table(header, rows),
            "",
            f"coded / stock MLX: {_times(report['ratio'])} the speed, "
            f"{_times(report['prompt_ratio'])} for the prompt",
            *agreement_lines(report["agreement"]),
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


def agreement_lines(agreement: dict[str, Any]) -> list[str]:
    """Sentences about how far two generations agree."""
    count = agreement["tokens"]
    lines = [f"greedy tokens equal: {agreement['agreed']} of {count}"]
    found = agreement["first_difference"]
    if found is not None:
        tie = "a near tie" if found["near_tie"] else "NOT a near tie"
        lines.append(
            f"at token {found['position'] + 1} stock MLX prefers its own by "
            f"{found['gap']:.4f} in the logit ({tie}): probabilities "
            f"{found['stock_probability']:.4f} and "
            f"{found['coded_probability']:.4f}"
        )
    lines.append(
        f"reading the same text, the same choice at {agreement['same_choice']} "
        f"of {count} tokens, mean divergence {agreement['mean_kl']:.1e} nats"
    )
    return lines
