"""How much of the machine others used while something was measured."""

from __future__ import annotations

import os
from pathlib import Path

# From here on, two threads that wait for each other mostly wait.
NOISY = 0.1

_STAT = Path("/proc/stat")
# user, nice, system, idle, iowait, irq, softirq, steal
_FIELDS, _IDLE = 8, slice(3, 5)


class Noise:
    """Counts CPU time from its making on, where the system tells."""

    def __init__(self) -> None:
        self._start = _cpu_seconds()

    def share(self) -> float | None:
        """Of all CPUs' time, what other processes (and guests) had.

        Child processes count as ours once they have ended.
        """
        now = _cpu_seconds()
        if self._start is None or now is None:
            return None
        total, busy, ours = (
            after - before
            for before, after in zip(self._start, now, strict=True)
        )
        return max(0.0, busy - ours) / total if total > 0 else 0.0


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Seconds of all CPUs, those that they were busy, those for us."""
    try:
        line = _STAT.read_text().splitlines()[0]
    except OSError:
        return None
    ticks = [int(text) for text in line.split()[1 : 1 + _FIELDS]]
    second = os.sysconf("SC_CLK_TCK")
    total, idle = sum(ticks), sum(ticks[_IDLE])
    times = os.times()
    ours = sum(times[:4])
    return total / second, (total - idle) / second, ours
