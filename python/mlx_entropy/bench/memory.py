"""Memory of this process, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_IO = Path("/proc/self/io")


def resident_bytes() -> int | None:
    """Bytes in memory now; None where the system does not tell."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most bytes in memory so far."""
    # On Linux ru_maxrss of a child starts at its parent's size.
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restart_peak() -> bool:
    """Start `peak_resident_bytes` again from now; False if impossible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def bytes_read() -> int | None:
    """Bytes that this process has read from files, cached or not."""
    return _field(_IO, "rchar")


def _status(name: str) -> int | None:
    kilobytes = _field(_STATUS, name)
    return None if kilobytes is None else kilobytes * 1024


def _field(file: Path, name: str) -> int | None:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
    return None
