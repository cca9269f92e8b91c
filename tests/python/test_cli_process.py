"""The command as a process: signals, pipes, closed streams, locales."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_entropy import convert
from mlx_entropy.destination import JOURNAL, PARTIAL_SUFFIX

COMMAND = (sys.executable, "-m", "mlx_entropy")
# Output is to be buffered, as it is by default where it is no terminal.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


@pytest.fixture
def out(tmp_path: Path, model: Path) -> Path:
    convert(model, tmp_path / "out")
    return tmp_path / "out"


def shell(
    script: str, *argv: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in which `$@` is the command with these arguments."""
    words = [*COMMAND, *(str(argument) for argument in argv)]
    return subprocess.run(
        ["bash", "-c", script, "bash", *words],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "argv", [("--help",), ("convert", "--help"), ("inspect", "OUT")]
)
def test_a_reader_that_goes_away(out: Path, argv: Sequence[str]) -> None:
    words = [str(out) if word == "OUT" else word for word in argv]
    script = '"$@" | true; echo "${PIPESTATUS[0]}"'
    done = shell(script, *words)
    assert done.stderr == ""
    # The text may have gone through before the reader went.
    assert done.stdout in ("0\n", "1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("argv", [("--version",), ("inspect", "OUT")])
def test_output_that_cannot_be_written(out: Path, argv: Sequence[str]) -> None:
    words = [str(out) if word == "OUT" else word for word in argv]
    done = shell('"$@" > /dev/full', *words)
    assert done.returncode == 1
    assert done.stderr == "mlx-entropy: error: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(
    tmp_path: Path, model: Path, out: Path, closed: str
) -> None:
    done = shell(f'"$@" {closed}', "convert", model, tmp_path / "again")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(
        f'"$@" {closed}', "verify", tmp_path / "again", "--against", model
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    done = shell(f'"$@" {closed}', "inspect", tmp_path / "nothing")
    assert done.returncode == 1
    assert bool(done.stderr) == ("2>&-" not in closed)


def test_locale_without_utf8(tmp_path: Path, model: Path) -> None:
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    folder = tmp_path / "größe"
    for environment in ({"LC_ALL": "C"}, ascii_only):
        done = shell('"$@"', "inspect", folder, **environment)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
    done = shell('"$@"', "convert", model, folder, LC_ALL="C")
    assert done.returncode == 0
    done = shell('"$@"', "inspect", folder, LC_ALL="C")
    assert folder.name in done.stdout


def written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


SLOW_DISK = """
import os, sys, time
from mlx_entropy.cli.main import main
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.03), fsync(descriptor))
sys.exit(main())
"""


def heed_interrupts() -> None:
    """Background jobs of a shell ignore them, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c(tmp_path: Path, model: Path) -> None:
    """A real signal, early and late in a conversion of half a second."""
    out = tmp_path / "out"
    journal = tmp_path / "out.mlx-entropy-partial" / JOURNAL
    argv = ("convert", model, out, "--shard-size", "200KB")
    for delay in (0.0, 0.03, 0.11, 0.17):
        before = written(journal)
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_DISK, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=heed_interrupts,
        )
        while process.poll() is None and written(journal) in (0, before):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (130, "")
        assert errors.endswith("the same command continues where it stopped\n")
        assert "Traceback" not in errors
    done = shell('"$@"', *argv)
    assert done.returncode == 0
    assert "continuing out.mlx-entropy-partial" in done.stderr
    assert shell('"$@"', "verify", out, "--against", model).returncode == 0
    assert not journal.exists()


SLOW_IMPORT = """
import os, runpy, signal, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx_entropy.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

sys.meta_path.insert(0, Slow())
runpy.run_module("mlx_entropy", run_name="__main__")
"""


def test_ctrl_c_while_python_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_IMPORT],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=heed_interrupts,
        timeout=20,
    )
    assert done.returncode == 130
    assert done.stderr == "mlx-entropy: error: interrupted\n"


def heed_nothing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


SHARDS = ("--shard-size", "200KB")


def slow_conversion(
    model: Path, out: Path, prepare: Callable[[], None], **streams: int
) -> subprocess.Popen[str]:
    """A conversion that has begun to write."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, "convert", model, out, *SHARDS],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        text=True,
        env={**ENVIRONMENT, "TERM": "xterm"},
        preexec_fn=prepare,
    )
    journal = out.with_name(f"{out.name}{PARTIAL_SUFFIX}") / JOURNAL
    while process.poll() is None and not written(journal):
        time.sleep(0.001)
    return process


def test_signals_that_are_ignored(tmp_path: Path, model: Path) -> None:
    """As by `nohup`, and by a shell for its background jobs."""
    out = tmp_path / "out"
    process = slow_conversion(model, out, heed_nothing)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_requests_to_end(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    """On a terminal, whose cursor the progress bar hides."""
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    process = slow_conversion(model, out, heed_interrupts, stderr=theirs)
    os.close(theirs)
    process.send_signal(number)
    shown = b""
    # The end of a terminal whose other side is closed is an error.
    with suppress(OSError):
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 128 + number
    hidden, back = b"\x1b[?25l", b"\x1b[?25h"
    assert shown.rfind(hidden) < shown.rfind(back)
    assert f"stopped by {number.name}; the same command".encode() in shown
    assert b"Traceback" not in shown
    convert(model, out, shard_bytes=200_000)


@pytest.mark.parametrize(
    "argv",
    [
        ("convert", "model", "out"),
        ("inspect", "model"),
        ("verify", "model", "--against", "model"),
        ("generate", "model", "--prompt", "hello"),
        ("bench", "load", "model", "--against", "model"),
    ],
    ids=lambda argv: argv[0],
)
def test_a_number_of_threads_that_is_none(argv: tuple[str, ...]) -> None:
    done = shell('"$@"', *argv, MLX_ENTROPY_NUM_THREADS="many")
    assert done.returncode == 1
    assert done.stderr == (
        "mlx-entropy: error: MLX_ENTROPY_NUM_THREADS=many is not a number "
        "from 1 to 4096\n"
    )
