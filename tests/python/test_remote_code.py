"""Models and tokenizers that come with Python code of their own."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

import mlx_entropy
from helpers import tiny
from mlx_entropy.cli import main as cli
from mlx_entropy.model_format import MODEL_FILE
from mlx_entropy.sources import SourceError

# Its type is one that mlx-lm does not know, and its answers are not llama's.
ARCHITECTURE = """
from mlx_lm.models import llama
from mlx_lm.models.llama import ModelArgs

class Model(llama.Model):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * 2
"""

TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.fixture(params=["arch.py", "code/arch.py"])
def own(model: Path, request: pytest.FixtureRequest) -> Path:
    """A model that is built by a file of its own."""
    file = model / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text(ARCHITECTURE)
    change(model / "config.json", model_type="new", model_file=request.param)
    return model


@pytest.fixture
def own_tokenizer(model: Path) -> Path:
    (model / "tokenization_own.py").write_text(TOKENIZER)
    change(
        model / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    )
    return model


def run(*argv: object) -> int:
    return cli.main([str(argument) for argument in argv])


def test_model_files(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    before = tiny.digests(own)
    assert run("convert", own, out) == 1
    assert "--trust-remote-code" in capsys.readouterr().err
    assert not out.exists()
    assert run("convert", own, out, "--trust-remote-code") == 0
    assert tiny.digests(own) == before, "no bytecode either"
    assert not list(out.rglob("__pycache__"))
    assert run("verify", out, "--against", own) == 1
    assert run("verify", out, "--against", own, "--trust-remote-code") == 0
    capsys.readouterr()
    generate = ("generate", out, "--prompt", "ab", "--max-tokens", 2)
    assert run(*generate) == 1
    assert "--trust-remote-code" in capsys.readouterr().err
    assert run(*generate, "--trust-remote-code") == 0
    capsys.readouterr()
    for kind in ("load", "generate"):
        bench = ("bench", kind, out, "--against", own, "--repeat", 1)
        assert run(*bench) == 1
        assert "--trust-remote-code" in capsys.readouterr().err
        assert run(*bench, "--trust-remote-code") == 0


def test_the_converted_model_gives_the_same(tmp_path: Path, own: Path) -> None:
    """Through our loader, through `register`, and through stock mlx-lm."""
    out = tmp_path / "out"
    mlx_entropy.convert(own, out, trust_remote_code=True)
    tokens = mx.arange(1, 9)[None]
    expected = mlx_lm.load(str(own), trust_remote_code=True)[0](tokens)
    found = [
        mlx_entropy.load(out, trust_remote_code=True)[0](tokens),
        mlx_lm.load(str(out), trust_remote_code=True)[0](tokens),
    ]
    mlx_entropy.register()
    with pytest.raises(ValueError, match="trust_remote_code"):
        mlx_lm.load(str(out))
    found.append(mlx_lm.load(str(out), trust_remote_code=True)[0](tokens))
    for logits in found:
        error = mx.linalg.norm(logits - expected) / mx.linalg.norm(expected)
        assert error < 5e-2, "without the own file it is a half"


def test_restoring(tmp_path: Path, own: Path) -> None:
    """Runs none of it, and gives it back."""
    mlx_entropy.convert(own, tmp_path / "out", trust_remote_code=True)
    mlx_entropy.restore(tmp_path / "out", tmp_path / "back")
    tokens = mx.arange(1, 9)[None]
    expected, found = (
        mlx_lm.load(str(each), trust_remote_code=True)[0](tokens)
        for each in (own, tmp_path / "back")
    )
    assert mx.array_equal(found, expected)
    config = json.loads((own / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_an_ordinary_model_runs_no_code(tmp_path: Path, model: Path) -> None:
    """Trust does not change what runs where none is needed."""
    (model / "arch.py").write_text("raise AssertionError")
    mlx_entropy.convert(model, tmp_path / "out", trust_remote_code=True)
    mlx_entropy.load(tmp_path / "out", trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../arch.py", "no file of the model"),
        ("/tmp/arch.py", "no file of the model"),
        (5, "no file of the model"),
        ("nothing.py", "is missing"),
        (MODEL_FILE, "a converted model has"),
    ],
)
def test_model_files_that_are_none(
    tmp_path: Path, model: Path, name: object, reason: str
) -> None:
    (tmp_path / "arch.py").write_text(ARCHITECTURE)
    (model / MODEL_FILE).write_text(ARCHITECTURE)
    change(model / "config.json", model_file=name)
    with pytest.raises(SourceError, match=reason):
        mlx_entropy.convert(model, tmp_path / "out", trust_remote_code=True)


def test_a_model_file_that_raises(tmp_path: Path, own: Path) -> None:
    name = json.loads((own / "config.json").read_text())["model_file"]
    (own / name).write_text("1 / 0")
    with pytest.raises(SourceError, match="division by zero"):
        mlx_entropy.convert(own, tmp_path / "out", trust_remote_code=True)


def test_tokenizers(
    tmp_path: Path, own_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("convert", own_tokenizer, out) == 0
    capsys.readouterr()
    generate = ("generate", out, "--prompt", "ab", "--max-tokens", 2)
    assert run(*generate) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--trust-remote-code" in captured.err
    assert captured.err.count("\n") == 1
    assert run(*generate, "--trust-remote-code") == 0
    tokenizer = mlx_entropy.load(out, trust_remote_code=True)[1]
    assert type(tokenizer._tokenizer).__name__ == "OwnTokenizer"
