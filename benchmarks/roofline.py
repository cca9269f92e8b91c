"""A sweep as a roofline: speed over operations a byte, under the limits."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from mlx_entropy.bench.report import CODED

_MARKERS = "osD^vPX*<>"


def plot_sweep(report: dict[str, Any], out: str | os.PathLike[str]) -> Path:
    """Draw a report of `bench_sweep`; one panel for each number of threads.

    Every point is a product: the further right, the larger its batch. The
    sloped line is the measured bandwidth, the flat one numpy's speed in a
    large product.
    """
    # Without a display, and without the state that pyplot keeps.
    from matplotlib.figure import Figure

    threads = sorted({row["setting_threads"] for row in report["results"]})
    figure = Figure(figsize=(7 * len(threads), 5.5), layout="constrained")
    panels = figure.subplots(1, len(threads), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(row["name"] for row in report["results"]))
    for axes, count in zip(panels, threads, strict=True):
        rows = [r for r in report["results"] if r["setting_threads"] == count]
        _roofs(axes, report, count, rows)
        for number, name in enumerate(names):
            _points(axes, name, number, [r for r in rows if r["name"] == name])
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="operations a byte moved",
            title=f"{count} thread{'s' * (count > 1)}",
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("G operations/s (two a weight and row)")
    # Beside the panels, where it covers no point.
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    out = Path(out)
    figure.savefig(out, dpi=120)
    return out


def _roofs(
    axes: Any, report: dict[str, Any], threads: int, rows: list[dict[str, Any]]
) -> None:
    bandwidth = report["bandwidth"][str(threads)] / 1e9
    peak = report["peak_flops"] / 1e9
    low = min(row["intensity"] for row in rows) / 2
    high = max(max(row["intensity"] for row in rows) * 2, peak / bandwidth)
    ridge = peak / bandwidth
    label = f"memory, {bandwidth:.1f} GB/s"
    axes.plot([low, ridge], [low * bandwidth, peak], "k--", lw=1, label=label)
    label = f"numpy float32, {peak:.0f} G operations/s"
    axes.plot([min(low, ridge), high], [peak, peak], "k:", lw=1, label=label)


def _points(
    axes: Any, name: str, number: int, rows: list[dict[str, Any]]
) -> None:
    """A line for each matrix, from the smallest batch to the largest."""
    lines = defaultdict(list)
    for row in rows:
        matrix = row["shape"], row["product"], row["weights_are"]
        lines[matrix].append((row["intensity"], row["flops_per_second"] / 1e9))
    for index, points in enumerate(lines.values()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(
            x,
            y,
            color=f"C{number % 10}",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            lw=2 if name == CODED else 1,
            alpha=0.8,
            label=name if index == 0 else None,
        )
