"""Files beside the weights: all that a loader may want, checked early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from helpers import tiny
from mlx_entropy import verify
from mlx_entropy.cli import main as cli
from mlx_entropy.conversion import convert
from mlx_entropy.loading import load
from mlx_entropy.progress import Progress
from mlx_entropy.sources import SourceError, open_source
from mlx_entropy.sources.safetensors_file import read_header

INDEX = "model.safetensors.index.json"


def notes(model: Path, out: Path) -> list[str]:
    """What is said before the first module is written."""
    found: list[str] = []
    started = False

    def progress(state: Progress) -> None:
        nonlocal started
        started = started or bool(state.module)
        if state.note and not started:
            found.append(state.note)

    report = convert(model, out, progress=progress)
    assert [f"warning: {each}" for each in report.warnings] == found
    return found


def test_everything_that_loaders_read_is_copied(
    tmp_path: Path, model: Path
) -> None:
    """One file for each of mlx-lm's patterns, and what those leave out."""
    names = {pattern.replace("*", "some") for pattern in DEFAULT_ALLOW_PATTERNS}
    names -= {"modelsome.safetensors"}
    names |= {
        "spiece.model",
        "sentencepiece.bpe.model",
        "additional_chat_templates/rag.jinja",
        "preprocessor_config.json",
    }
    for name in names:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
    assert notes(model, tmp_path / "out") == []
    for name in names:
        assert (tmp_path / "out" / name).read_text() == "{}", name
    convert(model, tmp_path / "out", overwrite=True)


def test_templates_in_a_folder_are_used(tmp_path: Path, model: Path) -> None:
    folder = model / "additional_chat_templates"
    folder.mkdir()
    (model / "chat_template.jinja").write_text("usual")
    (folder / "rag.jinja").write_text("searched")
    convert(model, tmp_path / "out")
    for place in (model, tmp_path / "out"):
        templates = load(place)[1].chat_template
        assert templates == {"default": "usual", "rag": "searched"}


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "model.safetensors", "some.txt"]
)
def test_links_to_nothing(tmp_path: Path, model: Path, name: str) -> None:
    """As in snapshots of which a blob was not downloaded."""
    file = model / name
    file.unlink(missing_ok=True)
    file.symlink_to("../../blobs/0123")
    with pytest.raises(SourceError, match=name):
        convert(model, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_links_to_files_are_followed(tmp_path: Path, model: Path) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (model / name).rename(tmp_path / name)
        (model / name).symlink_to(tmp_path / name)
    (model / "README.md").symlink_to("nowhere")
    assert notes(model, tmp_path / "out") == []
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert verify(tmp_path / "out", model).identical


def test_data_sets_are_left_out(tmp_path: Path, model: Path) -> None:
    with open(model / "train.jsonl", "wb") as file:
        file.truncate(300 << 20)
    (model / "valid.jsonl").write_text("{}")
    (note,) = notes(model, tmp_path / "out")
    assert "train.jsonl (315 MB) is left out" in note
    assert not (tmp_path / "out" / "train.jsonl").exists()
    assert (tmp_path / "out" / "valid.jsonl").exists()


def test_a_tokenizer_that_is_too_large(tmp_path: Path, model: Path) -> None:
    with open(model / "tokenizer.json", "wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(SourceError, match=r"tokenizer\.json is too large"):
        convert(model, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_files_that_cannot_be_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read anything, so the answer is made up."""
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(SourceError, match=r"tokenizer\.json: Permission"):
        convert(model, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_model_without_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.write_model(tmp_path / "model", quantization=tiny.affine(4))
    argv = ["convert", str(model), str(tmp_path / "out")]
    assert cli.main(argv) == 0
    assert "has no tokenizer" in capsys.readouterr().err
    (model / "spiece.model").write_bytes(b"x")
    assert cli.main([*argv, "--overwrite"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json"],
)
def test_damaged_side_files_are_named(
    tmp_path: Path, model: Path, name: str
) -> None:
    (model / name).write_text("{")
    (note,) = notes(model, tmp_path / "out")
    assert f"{name} is not valid JSON" in note
    assert (tmp_path / "out" / name).read_text() == "{"


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
        {"weight_map": {"lm_head.weight": "model.safetensors"}},
        {"weight_map": 5},
        [],
        None,
    ],
)
def test_stale_indexes(tmp_path: Path, model: Path, content: object) -> None:
    """mlx-lm never reads it; ours is right."""
    text = "{" if content is None else json.dumps(content)
    (model / INDEX).write_text(text)
    load(model)
    (note,) = notes(model, tmp_path / "out")
    assert f"{INDEX} is" in note
    assert "not used" in note
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    stored = read_header(tmp_path / "out" / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(stored, "model.safetensors")


def test_right_indexes_are_not_mentioned(tmp_path: Path, model: Path) -> None:
    mapping = dict.fromkeys(
        read_header(model / "model.safetensors"), "model.safetensors"
    )
    (model / INDEX).write_text(json.dumps({"weight_map": mapping}))
    assert open_source(model).assets().warnings == []
    assert notes(model, tmp_path / "out") == []
