"""Progress on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..progress import Progress, ProgressCallback

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[ProgressCallback | None]:
    """A callback to pass to `convert` and others; None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(title) as callback:
            yield callback
    else:
        yield _Lines(title)


class _Lines:
    """Prints notes at once and the state every few seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __call__(self, state: Progress) -> None:
        if state.note is not None:
            print(f"mlx-entropy: {state.note}", file=sys.stderr)
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN_LINES
        percent = 100 * state.done_bytes / max(state.total_bytes, 1)
        print(
            f"{self._title}: {state.done_modules} of {state.total_modules} "
            f"modules, {percent:.0f} %",
            file=sys.stderr,
        )


@contextmanager
def _bar(title: str) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def update(state: Progress) -> None:
            if state.note is not None:
                bar.console.print(state.note, highlight=False, markup=False)
            bar.update(
                task, total=state.total_bytes, completed=state.done_bytes
            )

        yield update


@contextmanager
def step_bar(
    title: str, quiet: bool
) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback for steps done, all steps, and what is next; None if quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _step_bar(title) as callback:
            yield callback
    else:
        yield _StepLines(title)


class _StepLines:
    """Prints the state every few seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._next = time.monotonic()

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN_LINES
        print(f"{self._title}: {done} of {total}, {note}", file=sys.stderr)


@contextmanager
def _step_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: int, total: int, note: str) -> None:
            bar.update(task, total=total, completed=done, note=note)

        yield update
