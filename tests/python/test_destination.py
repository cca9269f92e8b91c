"""Where conversions go: stopped and continued, kept safe, published whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import tiny
from mlx_entropy.conversion import convert
from mlx_entropy.destination import JOURNAL, PARTIAL_SUFFIX, Destination
from mlx_entropy.progress import Progress
from mlx_entropy.verification import verify

SMALL_SHARDS = 200_000


class Stopped(Exception):
    """What a test raises in place of Ctrl-C."""


def stop_after(count: int) -> Callable[[Progress], None]:
    def progress(state: Progress) -> None:
        if state.done_modules == count and state.module:
            raise Stopped

    return progress


@pytest.mark.parametrize("stop", [1, 7, 14, 21])
def test_continues_after_a_stop(tmp_path: Path, model: Path, stop: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = convert(model, whole, shard_bytes=SMALL_SHARDS)
    with pytest.raises(Stopped):
        convert(
            model, broken, shard_bytes=SMALL_SHARDS, progress=stop_after(stop)
        )
    assert not broken.exists()
    partial = tmp_path / "broken.mlx-entropy-partial"
    kept = {
        file.name: file.stat().st_ino for file in partial.glob("*.safetensors")
    }
    assert bool(kept) == (stop > 3)
    states: list[Progress] = []
    report = convert(
        model, broken, shard_bytes=SMALL_SHARDS, progress=states.append
    )
    assert "continuing" in (states[0].note or "")
    assert {name: (broken / name).stat().st_ino for name in kept} == kept, (
        "finished shards are reused"
    )
    assert tiny.digests(broken) == tiny.digests(whole)
    assert report.tensors == expected.tensors
    assert not partial.exists()


def test_a_killed_process_leaves_rubbish(tmp_path: Path, model: Path) -> None:
    """Temporary files and a half-written journal are cleared away."""
    with pytest.raises(Stopped):
        convert(model, tmp_path / "out", progress=stop_after(2))
    partial = tmp_path / "out.mlx-entropy-partial"
    (partial / "model.safetensors.tmp").write_bytes(b"half")
    (partial / f"{JOURNAL}.tmp").write_bytes(b"{")
    convert(model, tmp_path / "out")
    convert(model, tmp_path / "again")
    assert tiny.digests(tmp_path / "out") == tiny.digests(tmp_path / "again")


def test_a_damaged_journal_starts_again(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Stopped):
        convert(model, tmp_path / "out", progress=stop_after(2))
    (tmp_path / "out.mlx-entropy-partial" / JOURNAL).write_text("{")
    states: list[Progress] = []
    convert(model, tmp_path / "out", progress=states.append)
    assert "starting again" in (states[0].note or "")
    assert verify(tmp_path / "out", model).identical


def test_a_short_shard_is_written_again(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Stopped):
        convert(
            model,
            tmp_path / "out",
            shard_bytes=SMALL_SHARDS,
            progress=stop_after(14),
        )
    first = min((tmp_path / "out.mlx-entropy-partial").glob("*.safetensors"))
    os.truncate(first, 100)
    convert(model, tmp_path / "out", shard_bytes=SMALL_SHARDS)
    assert verify(tmp_path / "out", model).identical


def test_partial_of_another_source(tmp_path: Path, model: Path) -> None:
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    with pytest.raises(Stopped):
        convert(
            other,
            tmp_path / "out",
            shard_bytes=SMALL_SHARDS,
            progress=stop_after(14),
        )
    states: list[Progress] = []
    convert(model, tmp_path / "out", progress=states.append)
    assert "another source" in (states[0].note or "")
    assert verify(tmp_path / "out", model).identical
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_foreign_partial_is_not_cleared(tmp_path: Path, model: Path) -> None:
    letter = tmp_path / "out.mlx-entropy-partial" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("mine")
    with pytest.raises(ValueError, match="not made by mlx-entropy"):
        convert(model, tmp_path / "out")
    assert letter.read_text() == "mine"


def test_two_conversions_at_once(tmp_path: Path, model: Path) -> None:
    holder = Destination(tmp_path / "out", str(model))
    holder.open({})
    with pytest.raises(ValueError, match="another process"):
        convert(model, tmp_path / "out")
    holder.close()
    convert(model, tmp_path / "out")


def test_existing_destination(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    convert(model, out)
    before = tiny.digests(out)
    with pytest.raises(ValueError, match="exists"):
        convert(model, out)
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    with pytest.raises(Stopped):
        convert(other, out, overwrite=True, progress=stop_after(20))
    assert tiny.digests(out) == before
    convert(other, out, overwrite=True)
    assert verify(out, other).identical
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model",
        "other",
        "out",
    ]


def test_a_failed_rename_keeps_the_old(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(model, out)
    before = tiny.digests(out)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).suffix == PARTIAL_SUFFIX:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        convert(model, out, overwrite=True)
    assert tiny.digests(out) == before
    monkeypatch.undo()
    convert(model, out, overwrite=True)
    assert tiny.digests(out) == before


def test_an_empty_directory_is_taken(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(model, tmp_path / "out")
    assert verify(tmp_path / "out", model).identical


def test_unsafe_destinations(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, here = tmp_path / "documents", tmp_path / "here"
    documents.mkdir()
    (documents / "config.json").write_text('{"model_type": "llama"}')
    here.mkdir()
    link = tmp_path / "link"
    link.symlink_to(model)
    monkeypatch.chdir(here)
    before = tiny.digests(tmp_path)
    reasons = {
        model: "not made by",
        documents: "not made by",
        tmp_path: "not made by",
        link: "not made by",
        model / "out": "inside the source",
        Path("/"): "in use",
        Path("."): "in use",
    }
    for overwrite in (False, True):
        for target, reason in reasons.items():
            with pytest.raises(ValueError, match=reason):
                convert(model, target, overwrite=overwrite)
    assert tiny.digests(tmp_path) == before


def test_a_source_inside_of_the_destination(
    tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "out"
    convert(model, out)
    shutil.copytree(model, out / "inner")
    before = tiny.digests(out)
    with pytest.raises(ValueError, match="contains the source"):
        convert(out / "inner", out, overwrite=True)
    assert tiny.digests(out) == before


@pytest.mark.parametrize("call", range(0, 27, 3))
def test_full_disk_at_any_time(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    fsync, calls = os.fsync, iter(range(1000))

    def failing(descriptor: int) -> None:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left on device"):
        convert(model, tmp_path / "out", shard_bytes=SMALL_SHARDS)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    convert(model, tmp_path / "out", shard_bytes=SMALL_SHARDS)
    convert(model, tmp_path / "whole", shard_bytes=SMALL_SHARDS)
    assert tiny.digests(tmp_path / "out") == tiny.digests(tmp_path / "whole")
