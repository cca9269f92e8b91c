"""Reports with peers as text."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from mlx_entropy.cli.table import format_table

from ..noise import NOISY


def sweep(report: dict[str, Any]) -> str:
    """A table for each matrix, and what the memory gives."""
    ours = report["ours"]
    header = (
        "product", "batch", "threads", "bits/weight", "ms", "spread",
        "MB moved", "GB/s", "of DRAM", "Gweights/s",
        *(f"{name} is" for name in ours),
    )  # fmt: skip
    parts = []

    def matrix(row: dict[str, Any]) -> str:
        return (
            f"{row['shape']} {row['product']}, {row['rows']}x{row['cols']}, "
            f"{row['weights_are']}"
        )

    for title, rows in groupby(report["results"], matrix):
        lines = [_product(row, ours) for row in rows]
        parts += [title, "", format_table(header, lines), ""]
    for threads, rate in report["bandwidth"].items():
        parts.append(
            f"memory read with {threads} threads: {rate / 1e9:.1f} GB/s"
        )
    peak = report["peak_flops"] / 1e9
    parts.append(f"numpy float32, large product: {peak:.0f} G operations/s")
    parts.append(f"peer: {report['llama_cpp'] or 'llama.cpp was not run'}")
    parts += report["notes"] + _noise(report)
    return "\n".join(parts)


def _product(row: dict[str, Any], ours: list[str]) -> tuple[str, ...]:
    name = row["name"]
    if row["layout"] == "repack":
        name += " (repacked)"
    return (
        name,
        str(row["batch"]),
        str(row["setting_threads"]),
        f"{row['bits_per_weight']:.3f}",
        f"{1e3 * row['seconds']:.3f}",
        f"{100 * row['spread']:.0f} %",
        f"{row['bytes_moved'] / 1e6:.2f}",
        f"{row['bytes_per_second'] / 1e9:.2f}",
        f"{100 * row['bandwidth_share']:.0f} %",
        f"{row['weights_per_second'] / 1e9:.2f}",
        *(
            "-" if row["name"] == each else f"{row['ratios'][each]:.2f}x"
            for each in ours
        ),
    )


def model(report: dict[str, Any]) -> str:
    """Tokens a second of each contender."""
    header = ("model", "MB", "tokens/s", "spread", "prompt tokens/s", "spread")
    rows = [
        (
            row["name"],
            f"{row['nbytes'] / 1e6:.1f}",
            f"{row['tokens_per_second']:.2f}",
            f"{100 * row['spread']:.0f} %",
            f"{row['prompt_tokens_per_second']:.1f}",
            f"{100 * row['prompt_spread']:.0f} %",
        )
        for row in report["results"]
    ]
    lines = [
        f"{report['max_tokens']} tokens, and a prompt of "
        f"{report['prompt_tokens']}; medians of "
        f"{report['results'][0]['repetitions']} rounds",
        "",
        format_table(header, rows),
        "",
    ]
    for name, ratios in report["ratios"].items():
        lines.append(
            f"coded / {name}: {ratios['tokens_per_second']:.2f}x the speed, "
            f"{ratios['prompt_tokens_per_second']:.2f}x for the prompt"
        )
    if report["llama_cpp"]:
        lines.append(f"peer: {report['llama_cpp']}, on {report['gguf']}")
    return "\n".join(lines + _noise(report))


def _noise(report: dict[str, Any]) -> list[str]:
    share = report["others_cpu_share"]
    if share is None:
        return []
    line = f"others used {100 * share:.0f} % of the machine's CPU time"
    if share > NOISY:
        line += "; measure again when it is idle: WAITING THREADS DISTORT THIS"
    return [line]
