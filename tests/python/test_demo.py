"""The demonstration and the stock copy, on tiny local models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from benchmarks import demo
from benchmarks.cli import main as benchmarks
from helpers import gguf_writer, tiny
from mlx_entropy import stock
from mlx_entropy.destination import DestinationError
from mlx_entropy.progress import Progress
from mlx_entropy.sources import open_source
from mlx_entropy.sources.base import Layout, Source, SourceError

UP = "model.layers.0.mlp.up_proj"
TOKENS = 4


def run(*argv: object) -> int:
    return benchmarks.main([str(argument) for argument in argv])


def run_demo(source: Path, output: Path, *options: str) -> int:
    return run(
        "demo", "--source", source, "--output", output,
        "--max-tokens", TOKENS, *options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_LOADS", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    tiny.write_model(folder, quantization=tiny.affine(4))
    tiny.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def finished(model: Path) -> Path:
    """The output of one whole demonstration."""
    output = model.with_name("output")
    assert run_demo(model, output) == 0
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))


def report_in(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "demo.json").read_bytes())
    return report


# The demonstration


def test_report(finished: Path, model: Path) -> None:
    report = report_in(finished)
    assert report["source"] == str(model)
    assert report["verified"]["identical"] is True
    assert report["conversion"]["reused"] is False
    assert report["answer"]["prompt"] == demo.QUESTION
    # Random weights may say nothing that can be read.
    assert isinstance(report["answer"]["text"], str)
    assert report["agreement"]["tokens"] == TOKENS
    ours, peer = report["comparison"]["coded"], report["comparison"]["stock"]
    assert ours.keys() == peer.keys()
    for key, ratio in report["comparison"]["ratios"].items():
        assert ratio == ours[key] / peer[key]
    assert {"file_bytes", "tokens_per_second", "load_seconds"} <= report[
        "comparison"
    ]["ratios"].keys()


def test_sizes(finished: Path) -> None:
    comparison = report_in(finished)["comparison"]
    ours, peer = comparison["coded"], comparison["stock"]
    for name, sizes in (("coded", ours), ("stock", peer)):
        file = finished / name / "model.safetensors"
        assert sizes["file_bytes"] == file.stat().st_size
    assert peer["linear_bits_per_weight"] == 4.5
    assert ours["linear_bits_per_weight"] < 4.5
    assert ours["bits_per_weight"] < peer["bits_per_weight"]
    assert ours["weights_bytes"] < peer["weights_bytes"]


def test_plot(finished: Path) -> None:
    content = (finished / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_text(
    output: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "demo.png").unlink()
    assert run_demo(model, output, "--no-plot") == 0
    text = capsys.readouterr().out
    assert f"stock MLX copy: {output / 'stock'} is there, reused" in text
    assert f"conversion: {output / 'coded'} is there, reused" in text
    assert "bit-identical" in text
    assert demo.QUESTION in text
    for line in ("weight file, MB", "generation, tokens/s", "greedy tokens"):
        assert line in text
    assert not (output / "demo.png").exists()
    report = report_in(output)
    assert report["conversion"]["reused"] is True
    assert report["conversion"]["seconds"] > 0


def test_json(
    output: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(model, output, "--json", "--no-plot") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == report_in(output)


def test_damage_is_found(
    output: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.flip_byte(output / "coded", f"{UP}.coded", 300)
    assert run_demo(model, output) == 1
    assert f"NOT identical: {UP}.coded" in capsys.readouterr().out
    report = report_in(output)
    assert report["verified"]["identical"] is False
    assert "comparison" not in report


def test_another_source_is_converted_again(
    output: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    tiny.write_model(other, quantization=tiny.affine(3))
    tiny.write_tokenizer(other)
    assert run_demo(other, output, "--no-plot") == 0
    assert "reused" not in capsys.readouterr().out
    report = report_in(output)
    assert report["conversion"]["reused"] is False
    assert report["comparison"]["stock"]["linear_bits_per_weight"] == 3.5


def test_nothing_foreign_is_replaced(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stock", "coded"):
        output = tmp_path / f"in-{name}"
        (output / name).mkdir(parents=True)
        (output / name / "thesis.txt").write_text("years of work")
        assert run_demo(model, output) == 1
        assert "not replaced" in capsys.readouterr().err
        assert (output / name / "thesis.txt").exists()


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--max-tokens", 1) == 2
    assert run("demo", "--help") == 0
    assert "Examples:\n  python -m benchmarks demo" in capsys.readouterr().out
    assert run_demo(tmp_path / "nothing", tmp_path / "output") == 1
    assert "nothing" in capsys.readouterr().err


# The stock copy


@pytest.fixture(params=["directory", "gguf"])
def source(
    request: pytest.FixtureRequest, model: Path, tmp_path: Path
) -> Source:
    if request.param == "directory":
        return open_source(model)
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_writer.tiny_llama().build())
    return open_source(file)


def stored(folder: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(folder / "model.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def test_stock_copy(source: Source, tmp_path: Path, same_bits: Any) -> None:
    from mlx_lm import load

    target = tmp_path / "stock"
    states: list[Progress] = []
    assert not stock.is_stock_copy(source, target)
    report = stock.write_stock(source, target, progress=states.append)
    assert stock.is_stock_copy(source, target)
    assert report.nbytes == (target / "model.safetensors").stat().st_size
    arrays = stored(target)
    for module in source.modules():
        for name, array in module.tensors.items():
            assert same_bits(arrays.pop(f"{module.path}.{name}"), array)
    assert not arrays
    assert states[-1].done_modules == states[-1].total_modules == len(states)
    assert states[-1].done_bytes == states[-1].total_bytes
    model, tokenizer = load(str(target))
    assert model(mx.array([tokenizer.encode("he")])).ndim == 3


def test_stock_copy_of_another_source(
    source: Source, model: Path, tmp_path: Path
) -> None:
    target, other = tmp_path / "stock", tmp_path / "other"
    tiny.write_model(other, quantization=tiny.affine(2))
    stock.write_stock(open_source(other), target)
    assert not stock.is_stock_copy(source, target)
    stock.write_stock(source, target)
    assert stock.is_stock_copy(source, target)
    names = {f"{m.path}.{n}" for m in source.modules() for n in m.tensors}
    assert stored(target).keys() == names


def test_interrupted_stock_copy(source: Source, tmp_path: Path) -> None:
    target = tmp_path / "stock"

    def stop(state: Progress) -> None:
        if state.done_modules == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stock.write_stock(source, target, progress=stop)
    assert not stock.is_stock_copy(source, target)
    stock.write_stock(source, target)
    assert stock.is_stock_copy(source, target)


def test_stock_copy_replaces_nothing_else(
    source: Source, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DestinationError, match="not replaced"):
        stock.write_stock(source, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_source_that_changes(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = [*source.layout(), Layout("model.more", 8)]
    monkeypatch.setattr(source, "layout", lambda: longer)
    with pytest.raises(SourceError, match="changed"):
        stock.write_stock(source, tmp_path / "stock")
    assert not stock.is_stock_copy(source, tmp_path / "stock")
