"""Models under any name that a file system allows, in any place."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_entropy
from helpers import gguf_writer, tiny
from helpers.sources import write_gguf
from mlx_entropy.cli import main as cli
from mlx_entropy.conversion import convert
from mlx_entropy.verification import verify

NAMES = {
    "class": "a[b]",
    "not a class": "[!x]",
    "stars": "a*b?",
    "new line": "new\nline",
    "quotes": "quo\"te's",
    "dash": "-dash",
    "option": "--prompt",
    "not UTF-8": os.fsdecode(b"x\xff\xfe"),
    "spaces": " spa ce ",
    "letters": "größe 模型 🙂",
    "format": "%s{}{0}",
    "home": "~",
    "home of root": "~root",
    "variable": "$HOME",
    "backslash": "back\\slash",
    "colon": "pypi:x",
    "escape": "\x1b[31m",
    "suffix": "x.gguf",
    "long": "a" * 200,
}


def run(*argv: str) -> int:
    return cli.main(list(argv))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names(
    tmp_path: Path,
    model: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each verb, with paths that start with a dot as shells complete them."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    shutil.copytree(model, name)
    source, out, back = f"./{name}", f"./{name}.ec", f"./{name}.back"
    generate = ("--prompt", "ab", "--max-tokens", "2")
    for argv in (
        ("convert", source, out),
        ("verify", out, "--against", source),
        ("inspect", out),
        ("generate", out, *generate),
        ("generate", source, *generate),
        ("restore", out, back),
        ("seal", out),
        ("convert", source, out, "--overwrite", "--json"),
    ):
        assert run(*argv) == 0, capsys.readouterr().err
    assert sorted(os.listdir()) == sorted([name, f"{name}.ec", f"{name}.back"])
    # What is wrong is said of the name that the user gave, on one line.
    os.unlink(Path(out) / "tokenizer.json")
    capsys.readouterr()
    assert run("generate", out, *generate) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "mlx-entropy-" not in line


@pytest.mark.parametrize("name", ["a[b]", os.fsdecode(b"x\xff"), "new\nline"])
def test_gguf_files(tmp_path: Path, name: str) -> None:
    file = write_gguf(tmp_path, gguf_writer.tiny_llama())
    file = file.rename(tmp_path / name)
    convert(file, tmp_path / "out")
    assert verify(tmp_path / "out", file).identical


def test_the_home_directory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("convert", "~/model", "~/out") == 0
    assert run("verify", "~/out", "--against", "~/model") == 0
    assert run("generate", "~/out", "--prompt", "a", "--max-tokens", "1") == 0


def test_a_prompt_that_is_not_utf8(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = os.fsdecode(b"\xff")
    assert run("generate", str(model), "--prompt", prompt) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_links_to_directories(tmp_path: Path, model: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "place").mkdir()
    (tmp_path / "elsewhere").symlink_to("place")
    out = tmp_path / "elsewhere" / "out"
    convert(tmp_path / "chain", out)
    assert verify(out, tmp_path / "link").identical
    assert (tmp_path / "place" / "out" / "config.json").is_file()


WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND")


def test_sources_are_only_read(tmp_path: Path, model: Path) -> None:
    """Root may write anywhere, so what is opened is watched instead."""
    mask, writes = sum(getattr(os, name) for name in WRITES), []
    watched = str(model)

    def watch(event: str, args: tuple) -> None:
        changes = event in ("os.remove", "os.rename", "os.mkdir", "os.utime")
        changes = changes or (event == "open" and bool(args[2] & mask))
        if changes and str(args[0]).startswith(watched):
            writes.append(args[0])

    watching = True
    sys.addaudithook(lambda *args: watch(*args) if watching else None)
    before = tiny.digests(model)
    convert(model, tmp_path / "out")
    verify(tmp_path / "out", model)
    watching = False
    assert writes == []
    assert tiny.digests(model) == before


SHARDS = 40

LIMITED = """
import sys
from mlx_entropy.cli.main import main
source, out = sys.argv[1:]
again = ["--prompt", "ab", "--max-tokens", "2"]
for argv in (
    ["convert", source, out, "--shard-size", "1KB"],
    ["verify", out, "--against", source],
    ["inspect", out],
    ["generate", out, *again],
    ["generate", source, *again],
):
    if main(argv) != 0:
        sys.exit(1)
"""


def limit_open_files() -> None:
    """As `ulimit -n 32` of somebody who is not root does."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    drop_bound, sys_resource = 24, 24
    ctypes.CDLL(None).prctl(drop_bound, sys_resource, 0, 0, 0)


def test_a_low_limit_of_open_files(tmp_path: Path, model: Path) -> None:
    """Fewer than a model has weight files, and mlx-lm wants to raise it."""
    tensors = mx.load(str(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    count = min(SHARDS, len(names))
    for index in range(count):
        mx.save_safetensors(
            str(model / f"model-{index + 1:05d}-of-{count:05d}.safetensors"),
            {name: tensors[name] for name in names[index::count]},
        )
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, model, tmp_path / "out"],
        capture_output=True,
        text=True,
        preexec_fn=limit_open_files,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 16
    # The same, without the limit, gives the same.
    convert(model, tmp_path / "free", shard_bytes=1000)
    assert tiny.digests(tmp_path / "out") == tiny.digests(tmp_path / "free")
    tokens = mx.arange(1, 9)[None]
    expected = mlx_entropy.load(tmp_path / "free")[0](tokens)
    found = mlx_entropy.load(tmp_path / "out")[0](tokens)
    assert mx.array_equal(found, expected)


def test_the_source_s_name_in_the_config(tmp_path: Path, model: Path) -> None:
    """It is JSON that any reader takes."""
    odd = model.rename(tmp_path / os.fsdecode(b"x\xff"))
    convert(odd, tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_bytes().decode()
    name = json.loads(text)["mlx_entropy"]["source"]
    assert name.encode() == b"x?"
