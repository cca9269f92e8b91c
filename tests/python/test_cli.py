"""The command: exit codes, one-line errors, clean JSON."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tiny
from mlx_entropy import inspection
from mlx_entropy.cli import main as cli
from mlx_entropy.cli.arguments import byte_size

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def out(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    assert run("convert", model, tmp_path / "out") == 0
    capsys.readouterr()
    return tmp_path / "out"


def run(*argv: object) -> int:
    return cli.main([str(argument) for argument in argv])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mlx-entropy: error: ")
    return captured.err


def test_convert_then_verify(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.digests(model)
    assert run("convert", model, tmp_path / "out", "--lossless") == 0
    assert "bits a weight" in capsys.readouterr().out
    assert run("verify", tmp_path / "out", "--against", model) == 0
    assert capsys.readouterr().out.startswith("identical: ")
    assert tiny.digests(model) == before


def test_convert_json(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", model, tmp_path / "out", "--json") == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert captured.err == ""
    assert content["coded_bytes"] < content["source_bytes"]


def test_convert_shards(tmp_path: Path, model: Path) -> None:
    assert run("convert", model, tmp_path / "a", "--shard-size", "200KB") == 0
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2


def test_convert_refuses_to_replace(
    out: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", model, out) == 1
    assert "overwrite" in error_line(capsys)
    assert run("convert", model, out, "--overwrite") == 0


def test_inspect(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", out) == 0
    text = capsys.readouterr().out
    assert f"{UP}.weight" in text
    assert "total" in text
    assert run("inspect", out, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["bits_per_weight"] < 4.6


def test_inspect_unconverted(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", model) == 1
    assert "mlx-entropy convert" in error_line(capsys)


def test_verify_damage(
    out: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.flip_byte(out, f"{UP}.coded", 300)
    assert run("verify", out, "--against", model) == 1
    text = capsys.readouterr().out
    assert f"{UP}.coded: " in text
    assert "NOT identical" in text
    assert run("verify", out, "--against", model, "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["identical"] is False
    assert content["mismatches"][0]["name"] == f"{UP}.coded"


def test_generate(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--prompt", "hello", "--max-tokens", 4)
    assert run("generate", out, *options) == 0
    captured = capsys.readouterr()
    assert "tokens/s" in captured.err
    assert "tokens/s" not in captured.out
    assert run("generate", out, *options, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["text"] == captured.out.removesuffix("\n")
    assert content["prompt_tokens"] == 5
    assert run("generate", out, *options, "--temp", 0.8) == 0


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert "no problems" in text
    assert "machine-model.txt" in text
    assert run("doctor", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["target"] in content["targets"]
    assert content["versions"]["mlx"]
    assert content["machine_model"]["target"] == content["target"]
    assert content["codec"] in ("rans", "tree", "flat")


@pytest.mark.parametrize(
    ("own", "openmp", "count", "source"),
    [
        ("3", "5", 3, "MLX_ENTROPY_NUM_THREADS"),
        (None, "5,2", 5, "OMP_NUM_THREADS"),
        ("none", None, None, None),
    ],
)
def test_doctor_says_who_decided_on_threads(
    own: str | None, openmp: str | None, count: int | None, source: str | None
) -> None:
    environment = {
        name: value
        for name, value in (*os.environ.items(), ("OMP_NUM_THREADS", openmp))
        if value is not None
    }
    environment.pop("MLX_ENTROPY_NUM_THREADS", None)
    if own is not None:
        environment["MLX_ENTROPY_NUM_THREADS"] = own
    done = subprocess.run(
        [sys.executable, "-m", "mlx_entropy", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    if count is None:
        assert done.returncode == 1
        assert "MLX_ENTROPY_NUM_THREADS=none" in report["problems"][0]
    else:
        assert done.returncode == 0
        assert (report["threads"], report["threads_source"]) == (count, source)


@pytest.mark.parametrize(
    "argv",
    [
        ("convert", "model", "out"),
        ("inspect", "model"),
        ("verify", "model", "--against", "model"),
        ("generate", "model", "--prompt", "hello"),
        ("bench", "load", "model"),
    ],
    ids=lambda argv: argv[0],
)
def test_a_target_that_is_none(
    argv: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLX_ENTROPY_TARGET", "nonsense")
    assert run(*argv) == 1
    line = error_line(capsys)
    assert "MLX_ENTROPY_TARGET=nonsense" in line
    assert "scalar" in line
    assert run("doctor") == 1
    assert "MLX_ENTROPY_TARGET=nonsense" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nonsense",),
        ("convert",),
        ("convert", "a"),
        ("convert", "a", "b", "--shard-size", "many"),
        ("convert", "a", "b", "--shard-size", "0"),
        ("verify", "a"),
        ("inspect", "a", "--nonsense"),
        ("generate", "a"),
        ("generate", "a", "--prompt", "b", "--max-tokens", "0"),
        ("generate", "a", "--prompt", "b", "--max-tokens", "-1"),
        ("generate", "a", "--prompt", "b", "--max-tokens", "ten"),
        ("generate", "a", "--prompt", "b", "--temp", "-1"),
        ("generate", "a", "--prompt", "b", "--temp", "hot"),
    ],
)
def test_usage_errors(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert "_int" not in captured.err


@pytest.mark.parametrize(
    "verb", ["convert", "inspect", "verify", "generate", "doctor"]
)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert (
        f"Examples:\n  mlx-entropy {verb}"
        in capsys.readouterr().out.replace("MLX_ENTROPY_TARGET=scalar ", "")
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("mlx-entropy ")


@pytest.mark.parametrize(
    "argv",
    [
        ("convert", "nothing", "out"),
        ("inspect", "nothing"),
        ("verify", "nothing", "--against", "model"),
        ("generate", "nothing", "--prompt", "a"),
        ("generate", "some/model", "--prompt", "a"),
        ("inspect", "model/config.json"),
        ("generate", "model/config.json", "--prompt", "a"),
    ],
)
def test_missing_model(
    tmp_path: Path,
    model: Path,
    argv: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 1
    assert argv[1] in error_line(capsys)


def test_empty_prompt(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", out, "--prompt", "") == 1
    assert "prompt is empty" in error_line(capsys)


def test_the_wrong_source(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    assert run("verify", out, "--against", other) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert lines[-1].startswith("NOT identical: ")
    assert run("verify", out, "--against", other, "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert len(content["mismatches"]) > 20


def test_defects_are_one_line_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("file")

    monkeypatch.setattr(inspection, "inspect", broken)
    assert run("inspect", tmp_path) == 1
    line = error_line(capsys)
    assert "KeyError" in line
    assert "--debug" in line


def test_debug_shows_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (("--debug", "inspect"), ("inspect", "--debug")):
        assert run(*argv, tmp_path / "nothing") == 1
        assert "Traceback" in capsys.readouterr().err


def test_ctrl_c(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsync, calls = os.fsync, iter(range(1000))

    def interrupted(descriptor: int) -> None:
        if next(calls) == 12:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    argv = ("convert", model, tmp_path / "out", "--shard-size", "200KB")
    assert run(*argv) == 130
    assert "same command continues" in error_line(capsys)
    assert run(*argv) == 0
    assert "continuing" in capsys.readouterr().err


def test_full_disk(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run("convert", model, tmp_path / "out") == 1
    assert "No space left on device" in error_line(capsys)


def test_sizes() -> None:
    assert byte_size("1000") == 1000
    assert byte_size("512MB") == 512 * 10**6
    assert byte_size("1.5 GiB") == 3 << 29
    assert byte_size("2k") == 2000
    for wrong in ("", "MB", "-1", "1XB", "1iB", "1e3"):
        with pytest.raises(Exception, match="size"):
            byte_size(wrong)
