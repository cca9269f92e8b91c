"""What long operations tell their caller while they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State after one more module; bytes are those of the source model.

    `coded_bytes` is what has been written for `done_bytes`, or 0 where
    nothing is written. `note` is a sentence for the user, or None.
    """

    module: str
    done_modules: int
    total_modules: int
    done_bytes: int
    total_bytes: int
    coded_bytes: int = 0
    note: str | None = None


ProgressCallback = Callable[[Progress], None]
