"""Aligned text tables that stay whole when piped into a file."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> str:
    """Columns two spaces apart; the first `left` ones flush left."""
    widths = [
        max(len(row[column]) for row in (header, *rows))
        for column in range(len(header))
    ]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(nbytes: int) -> str:
    """`nbytes` in units of 10**6 bytes, as disks are sold."""
    return f"{nbytes / 1e6:,.2f} MB"
