"""An interrupted conversion continues inside a file, after any module."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import gguf_writer, tiny
from helpers.sources import write_gguf
from mlx_entropy import conversion
from mlx_entropy.cli import main as cli
from mlx_entropy.destination import PARTIAL_SUFFIX
from mlx_entropy.progress import Progress
from mlx_entropy.shards import ShardWriter
from mlx_entropy.verification import verify

MODULES = 21

KILLED = f"""
import os, signal, sys
from mlx_entropy import convert

def progress(state):
    if state.done_modules == int(sys.argv[3]):
        os.kill(os.getpid(), {signal.SIGKILL.value})

convert(sys.argv[1], sys.argv[2], progress=progress)
"""


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / f"out{PARTIAL_SUFFIX}"


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the modules that are coded from now on."""
    paths: list[str] = []
    code_module = conversion.code_module

    def counted(module):
        paths.append(module.path)
        return code_module(module)

    monkeypatch.setattr(conversion, "code_module", counted)
    return paths


def killed(source: Path, out: Path, modules: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, out, str(modules)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def stop_after(count: int) -> Callable[[Progress], None]:
    def progress(state: Progress) -> None:
        if state.done_modules == count and state.module:
            raise KeyboardInterrupt

    return progress


def same_as_whole(tmp_path: Path, source: Path) -> None:
    conversion.convert(source, tmp_path / "whole")
    assert tiny.digests(tmp_path / "out") == tiny.digests(tmp_path / "whole")


def test_killed_in_the_middle(
    tmp_path: Path, model: Path, coded: list[str]
) -> None:
    out = tmp_path / "out"
    for modules in (5, 6, MODULES):
        killed(model, out, modules)
    states: list[Progress] = []
    report = conversion.convert(model, out, progress=states.append)
    assert coded == [], "all modules were there"
    assert f"{MODULES} of {MODULES} modules are done" in (states[0].note or "")
    assert states[0].done_bytes == states[0].total_bytes
    same_as_whole(tmp_path, model)
    again = conversion.convert(model, out, overwrite=True)
    assert report.tensors == again.tensors


@pytest.mark.parametrize("modules", [1, 12, 20])
def test_finished_modules_are_not_coded_again(
    tmp_path: Path, model: Path, coded: list[str], modules: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(
            model, tmp_path / "out", progress=stop_after(modules)
        )
    first = len(coded)
    conversion.convert(model, tmp_path / "out")
    assert first == modules
    assert len(coded) == len(set(coded)) == MODULES
    same_as_whole(tmp_path, model)


def test_gguf_files_continue_too(tmp_path: Path, coded: list[str]) -> None:
    source = write_gguf(tmp_path, gguf_writer.tiny_llama())
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, tmp_path / "out", progress=stop_after(3))
    conversion.convert(source, tmp_path / "out")
    assert len(coded) == len(set(coded))
    same_as_whole(tmp_path, source)


@pytest.mark.parametrize("where", ["data", "log", "tail", "cut", "hole"])
def test_what_a_power_cut_leaves(
    tmp_path: Path, model: Path, partial: Path, coded: list[str], where: str
) -> None:
    """Only what is whole on the disk is continued from."""
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(model, tmp_path / "out", progress=stop_after(12))
    coded.clear()
    file = partial / "model.safetensors.tmp"
    log = partial / "model.safetensors.log"
    content = bytearray(file.read_bytes())
    lines = log.read_bytes().splitlines(keepends=True)
    kept = 12
    if where == "data":
        content[-5] ^= 1
        kept = 11
    elif where == "log":
        lines[7] = lines[7][:20]
        kept = 7
    elif where == "tail":
        content += b"of a module that was not finished"
        lines.append(b'{"record":')
    elif where == "cut":
        del content[len(content) // 2 :]
        kept = -1
    else:
        content[-40:] = bytes(40)
        kept = 11
    file.write_bytes(content)
    log.write_bytes(b"".join(lines))
    conversion.convert(model, tmp_path / "out")
    if kept < 0:
        assert MODULES - 12 < len(coded) < MODULES
    else:
        assert len(coded) == MODULES - kept
    same_as_whole(tmp_path, model)


def test_another_source_starts_again(
    tmp_path: Path, model: Path, coded: list[str]
) -> None:
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(other, tmp_path / "out", progress=stop_after(12))
    coded.clear()
    conversion.convert(model, tmp_path / "out")
    assert len(coded) == MODULES
    assert verify(tmp_path / "out", model).identical


def test_stopped_between_journal_and_name(
    tmp_path: Path,
    model: Path,
    partial: Path,
    coded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace = os.replace

    def stopped(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(model, tmp_path / "out")
    monkeypatch.setattr(os, "replace", replace)
    assert (partial / "model.safetensors.tmp").exists()
    conversion.convert(model, tmp_path / "out")
    assert len(coded) == MODULES
    same_as_whole(tmp_path, model)


def test_a_header_that_outgrows_its_room(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving the data leaves a second file when it is stopped."""
    monkeypatch.setattr(conversion, "header_room", lambda paths: 64)
    unlink = Path.unlink

    def stopped(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".old":
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stopped)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(model, tmp_path / "out")
    monkeypatch.setattr(Path, "unlink", unlink)
    conversion.convert(model, tmp_path / "out")
    same_as_whole(tmp_path, model)


def test_a_full_disk_keeps_what_is_complete(
    tmp_path: Path,
    model: Path,
    partial: Path,
    coded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, room = ShardWriter._write, 400_000

    def limited(self: ShardWriter, content: memoryview) -> None:
        nonlocal room
        room -= len(content)
        if room < 0:
            write(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, content)

    monkeypatch.setattr(ShardWriter, "_write", limited)
    argv = ["convert", str(model), str(tmp_path / "out"), "-q"]
    assert cli.main(argv) == 1
    message = capsys.readouterr().err
    assert "No space left on device; up to " in message
    assert "MB more are needed" in message
    assert str(partial) in message
    assert "same command continues" in message
    assert (partial / "model.safetensors.tmp").stat().st_size < 410_000
    first = len(coded)
    room = 10_000_000
    assert cli.main(argv) == 0
    assert len(coded) == MODULES + 1, "the module that failed, twice"
    assert first > 2
    same_as_whole(tmp_path, model)


def test_a_full_disk_while_restoring(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    conversion.convert(model, tmp_path / "out")
    write, room = ShardWriter._write, 400_000

    def limited(self: ShardWriter, content: memoryview) -> None:
        nonlocal room
        room -= len(content)
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, content)

    monkeypatch.setattr(ShardWriter, "_write", limited)
    argv = ["restore", str(tmp_path / "out"), str(tmp_path / "back")]
    assert cli.main(argv) == 1
    message = capsys.readouterr().err
    assert "No space left on device; at least " in message
    assert str(tmp_path / f"back{PARTIAL_SUFFIX}") in message
    room = 10_000_000
    assert cli.main(argv) == 0
    assert "continuing" in capsys.readouterr().err


def test_a_real_full_disk_names_the_file(tmp_path: Path) -> None:
    """Errors of `write` say no name by themselves."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    import mlx.core as mx

    writer = ShardWriter(tmp_path / "file", room=0)
    writer._file.close()
    writer._file = open(full, "r+b", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        writer.add("a", mx.zeros(100))
