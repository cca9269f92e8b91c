"""Where the command starts: Ctrl-C is one line from here on.

Nothing but signals is dealt with before the rest is imported, which takes
long enough for a user to change their mind.
"""

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing has been started yet that would have to be ended."""
    os.write(2, b"mlx-entropy: error: interrupted\n")
    os._exit(128 + number)


# A shell's background jobs ignore it, and so do we.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)


def main() -> int:
    """The `mlx-entropy` command; returns its exit status."""
    from .cli.main import main as run

    return run(sys.argv[1:])
