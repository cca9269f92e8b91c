"""Errors say which file it is about, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_entropy
from helpers import gguf_writer
from helpers.sources import write_gguf
from mlx_entropy.cli import main as cli
from mlx_entropy.conversion import convert
from mlx_entropy.sources import open_source
from mlx_entropy.verification import verify


def run(*argv: object) -> int:
    return cli.main([str(argument) for argument in argv])


def error_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a command fails with."""
    capsys.readouterr()
    assert run(*argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "--debug" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    "name",
    ["sha256-0123456789abcdef", "model.bin", "model", "x.GGUF", "x.json"],
)
def test_gguf_files_are_known_by_content(tmp_path: Path, name: str) -> None:
    file = write_gguf(tmp_path, gguf_writer.tiny_llama())
    renamed = file.rename(tmp_path / name)
    convert(renamed, tmp_path / "out")
    assert verify(tmp_path / "out", renamed).identical


def test_files_that_are_no_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"", b"GGU", b"PK\3\4"):
        (tmp_path / "file").write_bytes(content)
        line = error_of(capsys, "convert", tmp_path / "file", tmp_path / "out")
        assert "is no model" in line


def test_repositories_of_the_hub(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    name = "mlx-community/SmolLM2-135M-4bit"
    commands = [
        ("convert", name, "out"),
        ("inspect", name),
        ("verify", name, "--against", name),
        ("generate", name, "--prompt", "a"),
        ("bench", "load", name),
        ("bench", "generate", name, "--against", name),
    ]
    advice = f"hf download {name} --local-dir SmolLM2-135M-4bit"
    for argv in commands:
        assert advice in error_of(capsys, *argv)
    address = f"https://huggingface.co/{name}"
    assert advice in error_of(capsys, "convert", address, "out")
    snapshot = tmp_path / "hub/models--mlx-community--SmolLM2-135M-4bit"
    snapshot /= "snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for argv in commands:
        line = error_of(capsys, *argv)
        assert str(snapshot) in line
        assert "download" not in line
    line = error_of(capsys, "convert", tmp_path / "nothing", "out")
    assert "Hub" not in line


def test_folders_of_the_hub_s_cache(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People take the folder of a repository for the model."""
    folder = tmp_path / "hub" / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("bbb")
    for revision in ("aaa", "bbb", "ccc"):
        shutil.copytree(model, folder / "snapshots" / revision)
    expected = str(folder / "snapshots" / "bbb")
    for argv in (
        ("convert", folder, tmp_path / "out"),
        ("inspect", folder),
        ("generate", folder, "--prompt", "a"),
    ):
        assert expected in error_of(capsys, *argv)
    shutil.rmtree(folder / "refs")
    line = error_of(capsys, "convert", folder, tmp_path / "out")
    assert str(folder / "snapshots" / "ccc") in line


TEMPLATES = {
    "raises": "{{ raise_exception('Conversation roles must alternate') }}",
    "filter": "{{ messages[0].content | nofilter }}",
    "syntax": "{% if %}",
    "nothing": "{% if tools %}x{% endif %}",
    "no default": {"rag": "R", "tool_use": "T"},
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_chat_templates_that_fail(
    tmp_path: Path,
    model: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    template = TEMPLATES[kind]
    if isinstance(template, str):
        (model / "chat_template.jinja").write_text(template)
    else:
        file = model / "tokenizer_config.json"
        named = [{"name": k, "template": v} for k, v in template.items()]
        config = json.loads(file.read_text()) | {"chat_template": named}
        file.write_text(json.dumps(config))
    out = tmp_path / "out"
    convert(model, out)
    argv = ("generate", out, "--prompt", "ab", "--max-tokens", 2)
    line = error_of(capsys, *argv)
    assert "the model's chat template " in line
    assert line.endswith("; --no-chat-template passes it as it is\n")
    assert ("roles must alternate" in line) == (kind == "raises")
    assert run(*argv, "--no-chat-template") == 0
    bench = ("bench", "generate", out, "--against", model)
    line = error_of(capsys, *bench)
    assert "the model's chat template " in line
    assert "--no-chat-template" not in line, "it has no such option"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_json_is_named(
    tmp_path: Path,
    model: Path,
    name: str,
    content: bytes,
    sealed: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Models that mlx-lm has saved again have no checksums."""
    out = tmp_path / "out"
    convert(model, out)
    if not sealed:
        (out / "mlx_entropy_checksums.json").unlink()
    (out / name).write_bytes(content)
    line = error_of(capsys, "generate", out, "--prompt", "a")
    assert str(out / name) in line
    if name == "config.json":
        assert str(out / name) in error_of(capsys, "inspect", out)
        (model / name).write_bytes(content)
        line = error_of(capsys, "convert", model, tmp_path / "again")
        assert str(model / name) in line


def test_tokenizers_that_cannot_be_loaded(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    convert(model, out)
    line = error_of(capsys, "generate", out, "--prompt", "a")
    assert f"cannot load the tokenizer of {out}: " in line
    (model / "tokenizer.json").unlink()
    convert(model, out, overwrite=True)
    line = error_of(capsys, "generate", out, "--prompt", "a")
    assert f"cannot load the tokenizer of {out}: " in line


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "wide"}, {"quantization": 5}, {"rms_norm_eps": None}],
    ids=str,
)
def test_configurations_that_make_no_model(
    tmp_path: Path,
    model: Path,
    change: dict,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    convert(model, out)
    for folder in (model, out):
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
    mlx_entropy.seal(out)
    line = error_of(capsys, "convert", model, tmp_path / "again")
    assert f"mlx-lm cannot load {model}" in line
    line = error_of(capsys, "generate", out, "--prompt", "a")
    assert str(out) in line


def test_a_damaged_generation_config(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mlx-lm takes one that is no JSON for an empty one."""
    file = model / "generation_config.json"
    file.write_text("[]")
    line = error_of(capsys, "convert", model, tmp_path / "out")
    assert f"{file} is damaged" in line


def test_damaged_headers_are_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    convert(model, out)
    (out / "mlx_entropy_checksums.json").unlink()
    for broken in (model, out):
        file = broken / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[8:12] = b"!!!!"
        file.write_bytes(content)
    for argv in (
        ("generate", out, "--prompt", "a"),
        ("inspect", out),
        ("verify", out, "--against", model),
    ):
        assert str(out / "model.safetensors") in error_of(capsys, *argv)
    line = error_of(capsys, "convert", model, tmp_path / "again")
    assert str(model / "model.safetensors") in line


@pytest.mark.parametrize(
    "broken", ["adapter_config.json", "adapters.safetensors"]
)
def test_damaged_adapters_are_named(
    tmp_path: Path, model: Path, broken: str
) -> None:
    out, adapters = tmp_path / "out", tmp_path / "adapters"
    convert(model, out)
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(
        json.dumps(
            {
                "fine_tune_type": "lora",
                "num_layers": 1,
                "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0},
            }
        )
    )
    mx.save_safetensors(
        str(adapters / "adapters.safetensors"), {"x": mx.zeros(4)}
    )
    (adapters / broken).write_bytes(b"{")
    with pytest.raises(ValueError, match=str(adapters / broken)):
        mlx_entropy.load(out, adapter_path=str(adapters))


def test_other_errors_stay_what_they_are(tmp_path: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "no_such_model"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no_such_model"):
        mlx_entropy.load(model)
    with pytest.raises(ValueError, match="no_such_model"):
        open_source(model)
