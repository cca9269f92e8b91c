"""The benchmarks' reports as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .table import format_table

COMMON = ("ms", "Gweights/s", "spread", "samples", "threads")

Format = Callable[[dict[str, Any]], str]


def format_report(
    report: dict[str, Any], others: Mapping[str, Format] | None = None
) -> str:
    """The tables of a report, and below them what ran.

    `others` are formats for benchmarks that the package does not have.
    """
    formats = {"load": _load, "generate": _generate, **(others or {})}
    return f"{formats[report['benchmark']](report)}\n{_machine(report)}"


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return (
        f"target {machine['target']}, {machine['threads']} threads on "
        f"{machine['cpus']} CPUs ({machine['platform']}), "
        f"mlx {machine['mlx']}, mlx-lm {machine['mlx_lm']}, "
        f"mlx-entropy {machine['mlx_entropy']}"
    )


def common(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{1e3 * row['seconds']:.3f}",
        f"{row['weights_per_second'] / 1e9:.2f}",
        f"{100 * row['spread']:.0f} %",
        str(row["repetitions"]),
        str(row["threads"] or "-"),
    )


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


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
            f"coded / stock MLX: {times(report['ratio'])} the speed; "
            "coded weights are validated, stock ones are not"
        )
    return "\n".join(lines)


def _mega(nbytes: float | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:.1f}"


def _generate(report: dict[str, Any]) -> str:
    header = (
        "model", "MB", "tokens/s", "prompt tokens/s", *COMMON[1:],
    )  # fmt: skip
    rows = [
        (
            row["name"],
            f"{row['nbytes'] / 1e6:.2f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['prompt_tokens_per_second']:.2f}",
            *common(row)[1:],
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
            f"coded / stock MLX: {times(report['ratio'])} the speed, "
            f"{times(report['prompt_ratio'])} for the prompt",
            *agreement_lines(report["agreement"]),
        )
    )


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
