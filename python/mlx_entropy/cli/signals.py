"""Signals as exceptions, so that whatever has been started ends properly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """A signal asks the process to end; like KeyboardInterrupt, no error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def signals_end() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process at once, for others' programs.

    Threads that they wait for at exit would keep it alive for ever.
    """
    ours = [n for n in _ENDING if signal.getsignal(n) is _terminate]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    try:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number in ours:
            signal.signal(number, _terminate)


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP `Terminated`.

    Those that are ignored stay so: `nohup` and background jobs rely on it.
    Handlers are as before afterwards. Only the main thread may have any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = dict.fromkeys(_ENDING, _terminate)
    handlers[signal.SIGINT] = signal.default_int_handler
    before = {
        number: signal.getsignal(number)
        for number in handlers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number, handler in before.items():
            # None: it was not installed from Python.
            signal.signal(number, handler or signal.SIG_DFL)
