"""Conversions delete nothing that they did not make, and say so early."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from helpers import tiny
from mlx_entropy import destination as module
from mlx_entropy.cli import main as cli
from mlx_entropy.conversion import convert
from mlx_entropy.destination import JOURNAL, PARTIAL_SUFFIX, DestinationError
from mlx_entropy.verification import verify


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


def kill_in(monkeypatch: pytest.MonkeyPatch, function: str, call: int) -> None:
    """Raise instead of the numbered call of a function of `os` or `shutil`."""
    owner = shutil if function == "rmtree" else os
    real, calls = getattr(owner, function), iter(range(1000))

    def killed(*args: object) -> object:
        if next(calls) == call:
            raise Killed
        return real(*args)

    monkeypatch.setattr(owner, function, killed)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("suffix", [".replaced", ".partial", ".tmp", ".old"])
def test_neighbours_stay(tmp_path: Path, model: Path, suffix: str) -> None:
    neighbour = tmp_path / f"out{suffix}"
    convert(model, neighbour)
    before = tiny.digests(neighbour)
    convert(model, tmp_path / "out")
    convert(model, tmp_path / "out", overwrite=True)
    assert tiny.digests(neighbour) == before
    assert names(tmp_path) == ["model", "out", neighbour.name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_neighbour_that_is_no_model(
    tmp_path: Path, model: Path, overwrite: bool
) -> None:
    if overwrite:
        convert(model, tmp_path / "out")
    for name in ("out.replaced", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter.txt").write_text("mine")
    convert(model, tmp_path / "out", overwrite=overwrite)
    for name in ("out.replaced", "out.partial"):
        assert (tmp_path / name / "letter.txt").read_text() == "mine"


def test_our_own_names_are_no_destinations(tmp_path: Path, model: Path) -> None:
    for name in (f"out{PARTIAL_SUFFIX}", ".mlx-entropy-replaced-00"):
        with pytest.raises(DestinationError, match="choose another"):
            convert(model, tmp_path / name, overwrite=True)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["notes.txt", "adapters/adapters.json"])
@pytest.mark.parametrize("listed", [True, False])
def test_what_others_put_into_a_model(
    tmp_path: Path, model: Path, name: str, listed: bool
) -> None:
    """`files` in config.json says what is ours; older models lack it."""
    out = tmp_path / "out"
    convert(model, out)
    if not listed:
        config = json.loads((out / "config.json").read_text())
        del config["mlx_entropy"]["files"]
        (out / "config.json").write_text(json.dumps(config))
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    if not listed and "/" not in name:
        return
    with pytest.raises(DestinationError, match=name.partition("/")[0]):
        convert(model, out, overwrite=True)
    assert (out / name).read_text() == "mine"
    assert names(tmp_path) == ["model", "out"]


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_damaged_conversions_are_replaced(
    tmp_path: Path, model: Path, content: str
) -> None:
    """Their checksums still say whose they are."""
    out = tmp_path / "out"
    convert(model, out)
    (out / "config.json").write_text(content)
    with pytest.raises(DestinationError, match="overwrite"):
        convert(model, out)
    convert(model, out, overwrite=True)
    assert verify(out, model).identical
    assert names(tmp_path) == ["model", "out"]


def test_bytecode_of_the_model_file_is_ours(
    tmp_path: Path, model: Path
) -> None:
    convert(model, tmp_path / "out")
    (tmp_path / "out" / "__pycache__").mkdir()
    (tmp_path / "out" / "__pycache__" / "m.pyc").write_bytes(b"x")
    convert(model, tmp_path / "out", overwrite=True)


def test_a_letter_in_the_partial(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        convert(model, out, progress=lambda state: 1 // 0)
    letter = tmp_path / f"out{PARTIAL_SUFFIX}" / "letter.txt"
    letter.write_text("mine")
    with pytest.raises(DestinationError, match=r"letter\.txt was not made"):
        convert(model, out)
    assert letter.read_text() == "mine"
    letter.unlink()
    convert(model, out)
    assert verify(out, model).identical


@pytest.mark.parametrize(
    ("function", "call"), [("rename", 0), ("rename", 1), ("rmtree", 0)]
)
@pytest.mark.parametrize("same", [True, False])
def test_killed_while_publishing(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
    same: bool,
) -> None:
    """The same command finishes; another one leaves nothing behind either."""
    out = tmp_path / "out"
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    convert(other, out)
    kill_in(monkeypatch, function, call)
    with pytest.raises(Killed):
        convert(model, out, overwrite=True)
    monkeypatch.undo()
    last = model if same else other
    convert(last, out, overwrite=True)
    assert verify(out, last).identical
    assert names(tmp_path) == ["model", "other", "out"]
    assert JOURNAL not in names(out)


def test_killed_after_the_first_publication(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal that is left is no part of the model."""
    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name == JOURNAL:
            raise Killed
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        convert(model, tmp_path / "out")
    monkeypatch.undo()
    assert JOURNAL in names(tmp_path / "out")
    with pytest.raises(DestinationError, match="overwrite"):
        convert(model, tmp_path / "out")
    assert JOURNAL not in names(tmp_path / "out")
    assert verify(tmp_path / "out", model).identical


def test_a_hostile_journal_deletes_nothing(tmp_path: Path, model: Path) -> None:
    convert(model, tmp_path / "friend")
    convert(model, tmp_path / "out")
    hostile = {"replaced": ["friend", "../friend", 5], "files": ["../friend"]}
    (tmp_path / "out" / JOURNAL).write_text(json.dumps(hostile))
    convert(model, tmp_path / "out", overwrite=True)
    assert verify(tmp_path / "friend", model).identical


def test_after_publishing_failures_are_warnings(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    convert(model, out)

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(module.shutil, "rmtree", denied)
    argv = ["convert", str(model), str(out), "--overwrite"]
    assert cli.main([*argv, "-q"]) == 0
    captured = capsys.readouterr()
    assert "bits a weight" in captured.out
    assert captured.err.startswith("mlx-entropy: warning: ")
    assert ".mlx-entropy-replaced-" in captured.err
    assert captured.err.count("\n") == 1
    assert cli.main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (warning,) = json.loads(captured.out)["warnings"]
    assert "Permission denied" in warning
    assert verify(out, model).identical


def test_read_only_places_are_found_early(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so what the system answers is made up."""
    out = tmp_path / "out"
    convert(model, out)
    before = tiny.digests(out)
    denied = out
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied)
    with pytest.raises(DestinationError, match="out is read-only"):
        convert(model, out, overwrite=True)
    denied = tmp_path
    for place in (out, tmp_path / "new", tmp_path / "a" / "b"):
        with pytest.raises(DestinationError, match="is read-only"):
            convert(model, place, overwrite=True)
    assert tiny.digests(out) == before
    assert names(tmp_path) == ["model", "out"]


def test_below_a_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DestinationError, match="is not a directory"):
        convert(model, tmp_path / "file" / "out")
