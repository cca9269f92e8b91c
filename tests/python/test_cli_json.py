"""Every verb speaks JSON, also about what went wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cli import main as benchmarks
from mlx_entropy.cli import main as cli

PROGRAMS = {"mlx-entropy": cli.main, "benchmarks": benchmarks.main}


def run(program: str, *argv: object) -> int:
    return PROGRAMS[program]([str(argument) for argument in argv])


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every verb with its parser, after the name of its program."""
    below = [
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    if not below:
        yield path, parser
    for choices in below:
        for name, each in choices.items():
            yield from commands(each, (*path, name))


ALL = {
    path: parser
    for name, program in (
        ("mlx-entropy", cli._PROGRAM),
        ("benchmarks", benchmarks.PROGRAM),
    )
    for path, parser in commands(
        cli._parser(program, cli._verbs(program)), (name,)
    )
    # What it prints is another program's.
    if path != ("mlx-entropy", "run")
}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_verb_has_it(path: tuple[str, ...]) -> None:
    assert "--json" in ALL[path]._option_string_actions


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert content.keys() == {"error"}
    return content["error"]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_wrong_usage(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*path, "--json", "--nonsense") == 2
    message = error_of(capsys)
    assert "--help" in message
    assert "--nonsense" in message or "required" in message


def test_no_verb_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mlx-entropy", "--json") == 2
    assert "error" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "argv",
    [
        ("mlx-entropy", "convert", "nothing", "out"),
        ("mlx-entropy", "inspect", "nothing"),
        ("mlx-entropy", "verify", "nothing", "--against", "nothing"),
        ("mlx-entropy", "generate", "nothing", "--prompt", "a"),
        ("mlx-entropy", "seal", "nothing"),
        ("benchmarks", "demo", "--source", "nothing"),
        ("mlx-entropy", "bench", "load", "nothing", "--against", "nothing"),
        ("benchmarks", "sweep", "--llama-cpp", "nothing"),
        ("benchmarks", "synthetic", "135m"),
    ],
    ids=lambda argv: argv[1],
)
def test_errors(
    tmp_path: Path,
    argv: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status = run(*argv, "--json")
    found = json.loads(capsys.readouterr().out)["error"]
    assert status == run(*argv) > 0
    assert found.split(" (")[0] in capsys.readouterr().err


def test_interrupts(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_entropy.conversion.convert", interrupted)
    assert (
        run("mlx-entropy", "convert", model, tmp_path / "out", "--json") == 130
    )
    assert error_of(capsys).startswith("interrupted; the same command")


def test_synthetic_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = (
        "benchmarks",
        "synthetic",
        "135m",
        "--layers",
        1,
        "--out",
        tmp_path / "m",
    )
    assert run(*argv, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert content["directory"] == str(tmp_path / "m")
    assert content["bits"] == 4
