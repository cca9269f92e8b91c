"""Models of random weights, and whole models beside llama.cpp."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.llama_cpp import LlamaCpp, run_llama_bench
from benchmarks.shapes import SHAPES, ModelShape, find_shape
from benchmarks.synthetic import write_model
from benchmarks.synthetic_gguf import BLOCK_TYPES, write_gguf
from benchmarks.whole_model import bench_model
from helpers import gguf_writer
from helpers.peers import SMALL, UNTIED, run
from mlx_entropy import convert, load

# Synthetic models


@pytest.mark.parametrize("shape", [SMALL, UNTIED])
def test_synthetic_models_convert_and_generate(
    tmp_path: Path, shape: ModelShape
) -> None:
    heard: list[str] = []
    stock = write_model(shape, tmp_path / "stock", bits=3, notify=heard.append)
    assert len(heard) == shape.layers + 1
    tensors: dict[str, mx.array] = {}
    for file in stock.glob("*.safetensors"):
        tensors |= mx.load(str(file))
    index = json.loads((stock / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    down = [
        tensors[f"model.layers.0.mlp.down_proj.{name}"].astype(dtype)
        for name, dtype in (
            ("weight", mx.uint32),
            ("scales", mx.float32),
            ("biases", mx.float32),
        )
    ]
    dense = mx.dequantize(*down, 64, 3)
    assert dense.shape == (shape.hidden, shape.intermediate)
    assert dense.std().item() == pytest.approx(
        shape.intermediate**-0.5, rel=0.1
    )
    with pytest.raises(FileExistsError):
        write_model(shape, stock)

    convert(stock, tmp_path / "coded")
    model, tokenizer = load(tmp_path / "coded")
    logits = model(mx.array([tokenizer.encode("hello")]))
    assert logits.dtype == mx.float32
    assert logits.shape == (1, 5, shape.vocabulary)
    assert mx.isfinite(logits).all().item()


def test_neighbours_of_synthetic_models_stay(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "letter.txt").write_text("mine")
    (tmp_path / "file.gguf.partial").write_text("mine")
    write_model(SMALL, tmp_path / "model", layers=1)
    write_gguf(SMALL, tmp_path / "file.gguf", layers=1)
    assert not (tmp_path / "model" / "letter.txt").exists()
    assert (tmp_path / "file.gguf.partial").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.gguf",
        "file.gguf.partial",
        "model",
        "model.partial",
    ]


def test_shallower_synthetic_models(tmp_path: Path) -> None:
    out = write_model(SMALL, tmp_path / "one", layers=1, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())[
        "num_hidden_layers"
    ] == 1  # fmt: skip
    with pytest.raises(ValueError, match="1 to 2 layers"):
        write_model(SMALL, tmp_path / "three", layers=3)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0"])
def test_random_blocks_have_sane_values(kind: str) -> None:
    """Against the tests' own reading of ggml's blocks."""
    block = BLOCK_TYPES[kind]
    data = block.rows(np.random.default_rng(0), 8, 1024)
    assert data.nbytes == 8 * block.row_bytes(1024)
    values = gguf_writer.dequantize(data.tobytes(), (8, 1024), block.number)
    assert values.std() == pytest.approx(1024**-0.5, rel=0.05)
    assert abs(values.mean()) < 0.15 * 1024**-0.5


@pytest.mark.parametrize("shape", [SMALL, UNTIED])
def test_gguf_structure(tmp_path: Path, shape: ModelShape) -> None:
    file = write_gguf(shape, tmp_path / "model.gguf")
    data = file.read_bytes()
    magic, version, tensors, _ = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    assert tensors == 9 * shape.layers + (2 if shape.tied else 3)
    matrices = sum(rows * cols for rows, cols in shape.layer().values())
    q4_k, q6_k = (BLOCK_TYPES[kind] for kind in ("q4_k", "q6_k"))
    table = shape.vocabulary
    expected = shape.layers * q4_k.row_bytes(matrices)
    expected += table * q6_k.row_bytes(shape.hidden)
    if not shape.tied:
        expected += table * q4_k.row_bytes(shape.hidden)
    assert expected < len(data) < expected + 16384
    with pytest.raises(FileExistsError):
        write_gguf(shape, file)
    with pytest.raises(ValueError, match="blocks of 256"):
        write_gguf(find_shape("135m"), tmp_path / "no.gguf", kind="q4_k")


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
def test_real_llama_bench_runs_synthetic_models(
    tmp_path: Path, real_llama: LlamaCpp, kind: str
) -> None:
    file = write_gguf(SMALL, tmp_path / "model.gguf", kind=kind)
    speeds = run_llama_bench(
        real_llama, file, threads=1, prompt_tokens=4, max_tokens=4
    )
    assert speeds.generation is not None
    assert speeds.prompt is not None
    assert speeds.model_bytes < file.stat().st_size


def test_synthetic_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SHAPES, "1b", SMALL)
    out, gguf = tmp_path / "out", tmp_path / "out.gguf"
    assert run("synthetic", "1b", "--out", out, "--gguf", gguf) == 0
    assert capsys.readouterr().out.count("the shape of nothing") == 2
    assert (out / "tokenizer.json").is_file()
    assert gguf.is_file()
    assert run("synthetic", "1b", "--out", out) == 1
    assert "exists" in capsys.readouterr().err
    assert run("synthetic", "1b") == 1
    assert "nothing to write" in capsys.readouterr().err


# A whole model


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    write_model(SMALL, folder / "stock")
    convert(folder / "stock", folder / "coded")
    return folder / "coded"


def test_model(coded: Path, llama_cpp: LlamaCpp) -> None:
    heard: list[str] = []
    report = bench_model(
        coded,
        llama=llama_cpp,
        gguf="model.gguf",
        against=coded.with_name("stock"),
        prompt_tokens=8,
        max_tokens=3,
        repeat=2,
        notify=heard.append,
    )
    assert json.loads(json.dumps(report)) == report
    assert len(heard) == 6
    ours, stock, peer = report["results"]
    names = [row["name"] for row in (ours, stock, peer)]
    assert names == ["coded", "stock MLX", "llama.cpp"]
    assert peer["tokens_per_second"] == pytest.approx(126.62378)
    assert peer["prompt_tokens_per_second"] == pytest.approx(252.680927)
    assert peer["nbytes"] == 96576768
    assert ours["nbytes"] < stock["nbytes"]
    ratio = ours["tokens_per_second"] / peer["tokens_per_second"]
    assert report["ratios"]["llama.cpp"]["tokens_per_second"] == ratio
    with pytest.raises(ValueError, match="2 tokens"):
        bench_model(coded, max_tokens=1)


def test_model_command(
    coded: Path,
    llama_cpp: LlamaCpp,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = ["model", coded, "--max-tokens", "2"]
    quick += ["--prompt-tokens", "4", "--repeat", "1"]
    root = llama_cpp.folder.parent
    assert run(*quick, "--gguf", "a.gguf", "--llama-cpp", root) == 0
    text = capsys.readouterr().out
    assert "coded / llama.cpp: " in text
    assert "llama.cpp 1.2.3, on a.gguf" in text
    assert run(*quick, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ratios"] == {}
    assert run(*quick, "--gguf", "a.gguf", "--llama-cpp", tmp_path) == 1
    assert "builds it" in capsys.readouterr().err
