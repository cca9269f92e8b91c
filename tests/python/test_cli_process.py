"""The command as a process: signals, pipes, closed streams, locales."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_entropy import convert
from mlx_entropy.destination import JOURNAL

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
