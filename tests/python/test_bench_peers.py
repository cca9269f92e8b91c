"""Measurements beside peers, with stand-ins for llama.cpp's programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from benchmarks import contenders, noise, synthetic_gguf
from benchmarks.cli import sweep as sweep_cli
from benchmarks.cli import synthetic as synthetic_cli
from benchmarks.cli.options import SHAPE_NAMES
from benchmarks.contenders import Coded, Dense, Stock, copies_beyond
from benchmarks.llama_cpp import (
    GgmlProduct,
    LlamaCpp,
    Speeds,
    find_llama_cpp,
    parse_llama_bench,
    run_llama_bench,
)
from benchmarks.shapes import SHAPES, find_shape
from benchmarks.sweep import SweepOptions, _cache_size, bench_sweep
from benchmarks.synthetic import Gaussian
from benchmarks.weights import WeightKind, weight_kinds
from helpers.peers import GGML_PEER, RECORDED, SMALL, program, run
from mlx_entropy import _ext


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices beyond the real cache would take seconds to make."""
    monkeypatch.setattr("benchmarks.sweep.last_cache_bytes", lambda: 1 << 16)


# Shapes and weights


@pytest.mark.parametrize(
    ("name", "weights"),
    [("135m", 134.5e6), ("1b", 1.236e9), ("8b", 8.03e9), ("70b", 70.55e9)],
)
def test_shapes_have_the_weights_of_their_models(
    name: str, weights: float
) -> None:
    assert find_shape(name.upper()).weights == pytest.approx(weights, rel=2e-3)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="135m, 1b, 8b, 70b"):
        find_shape("7b")


def test_gaussian_rows() -> None:
    values = Gaussian(0, 1024).rows(512, 1024, 0.25)
    assert values.mean() == pytest.approx(0, abs=2e-3)
    assert values.std() == pytest.approx(0.25, rel=1e-2)
    assert len(np.unique(values[:, :4], axis=0)) == 512


@pytest.mark.parametrize("rate", [2.0, 2.6, 3.2])
def test_row_scaled_matrices_take_the_bits_they_say(rate: float) -> None:
    (kind,) = weight_kinds((), 64, (rate,))
    rows, cols = 2048, 1024
    weight, scales, biases = kind.make(rows, cols)
    coded = _ext.encode_affine(weight, scales, biases, 128, kind.bits)
    assert 8 * coded.nbytes / (rows * cols) == pytest.approx(rate, abs=0.05)
    # They are the weights they came from, but for the grid.
    dense = mx.dequantize(
        weight, scales.astype(mx.float32), biases.astype(mx.float32), 128, 4
    )
    deviations = np.array(dense).std(1) * cols**0.5
    assert deviations[0] == pytest.approx(0.5, rel=0.15)
    assert deviations[-1] == pytest.approx(2.0, rel=0.15)
    assert np.abs(np.array(dense).mean()) < 1e-3


def test_kinds_of_weights() -> None:
    assert WeightKind(4, 64).llama_types(4096) == ("q4_K", "q4_0")
    assert WeightKind(4, 64).llama_types(576) == ("q4_0",)
    assert WeightKind(4, 128, 2.6).llama_types(4096) == ("q2_K", "iq2_s")
    assert WeightKind(4, 128, 3.4).llama_types(4096) == ("iq3_s", "q3_K")
    assert WeightKind(4, 128, 2.6).group_size_for(576) == 64
    with pytest.raises(ValueError, match="group size 128"):
        WeightKind(4, 128).make(64, 576)
    with pytest.raises(ValueError, match="rate of 9 bits"):
        weight_kinds((), 64, (9.0,))


# Contenders

OURS = ("coded", "coded tree", "coded flat")


def test_contenders_multiply_the_same_matrix() -> None:
    rows, cols = 256, 512
    kind = WeightKind(3, 64)
    parts = kind.make(rows, cols)
    coded = _ext.encode_affine(*parts, 64, 3)
    far = 3 * coded.nbytes
    ours = Coded("coded", coded, rows, cols, far)
    stock = Stock(parts, 64, 3, (rows, cols), far)
    dense = Dense(parts, 64, 3, far)
    x = ours.x(5)
    for copy in range(3):
        y = np.array(ours.product(x, copy))
        for other in (
            np.array(stock.product(x, min(copy, len(stock._parts) - 1))),
            np.array(x) @ dense._floats[0].T,
        ):
            # Activations are rounded to 16 bits.
            error = np.linalg.norm(y - other) / np.linalg.norm(other)
            assert error < 1e-4
    for each in (ours, stock, dense):
        assert each.sample(2, 1, 3) > 0
        assert each.bits_per_weight == 8 * each.nbytes / (rows * cols)
        each.close()


def test_copies_are_in_memory_of_their_own() -> None:
    parts = WeightKind(4, 64).make(64, 128)
    coded = _ext.encode_affine(*parts, 64, 4)
    ours = Coded("coded", coded, 64, 128, 10 * coded.nbytes)
    addresses = {
        np.asarray(memoryview(each)).ctypes.data for each in ours._coded
    }
    assert len(addresses) == 10
    assert copies_beyond(100, 1) == 1


def test_bandwidth() -> None:
    rates = _ext.read_bandwidth(1 << 20, 3)
    assert len(rates) == 3
    assert min(rates) > 1e6
    with pytest.raises(ValueError, match="positive"):
        _ext.read_bandwidth(0)


def test_cache_sizes() -> None:
    assert _cache_size("32768K\n") == 32 << 20
    assert _cache_size("1M") == 1 << 20
    assert _cache_size("") == 0


def test_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = noise.Noise().share()
    assert share is None or 0 <= share <= 1
    stat = tmp_path / "stat"
    monkeypatch.setattr(noise, "_STAT", stat)
    assert noise.Noise().share() is None
    stat.write_text("cpu  1000 0 0 9000 0 0 0 0 7 7\ncpu0 1 2 3\n")
    meter = noise.Noise()
    # Ten thousand more ticks on all CPUs, a quarter of them busy.
    stat.write_text("cpu  2000 0 1000 16400 100 0 0 500 7 7\n")
    assert meter.share() == pytest.approx(0.25, abs=0.01)


# The sweep


def options(**changes: Any) -> SweepOptions:
    common: dict[str, Any] = {
        "shapes": (SMALL,),
        "products": ("up", "keys"),
        "kinds": tuple(weight_kinds((4,), 64, (2.6,))),
        "batches": (1, 4),
        "threads": (1, 2),
        "repeat": 2,
        "budget": 0.02,
    }
    return SweepOptions(**{**common, **changes})


def test_sweep(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    before = _ext.num_threads()
    report = bench_sweep(
        options(llama=llama_cpp),
        notify=lambda done, total, _: heard.append((done, total)),
    )
    assert json.loads(json.dumps(report)) == report
    assert _ext.num_threads() == before
    assert heard[-1] == (15, 16)
    assert report["llama_cpp"] == "llama.cpp 1.2.3"
    assert report["bandwidth"].keys() == {"1", "2"}
    assert report["notes"] == []
    assert 0 <= report["others_cpu_share"] <= 1
    found = {
        (r["product"], r["weights_are"], r["batch"], r["setting_threads"])
        for r in report["results"]
    }
    assert len(found) == 16
    per_point = {*OURS, "stock MLX", "numpy float32"}
    for row in report["results"]:
        rows, cols, batch = row["rows"], row["cols"], row["batch"]
        assert row["name"] in per_point or row["name"].startswith("llama.cpp ")
        moved = row["nbytes"] + 4 * batch * (rows + cols)
        assert row["bytes_moved"] == moved
        assert row["bytes_per_second"] == pytest.approx(moved / row["seconds"])
        share = (
            row["bytes_per_second"]
            / (report["bandwidth"][str(row["setting_threads"])])
        )
        assert row["bandwidth_share"] == pytest.approx(share)
        if row["name"] in OURS:
            assert row["ratios"][row["name"]] == 1.0
        if row["name"].startswith("llama.cpp"):
            assert row["seconds"] == batch / 1e3
            assert row["layout"] == "repack"
    _check_plot(report, tmp_path)


def _check_plot(report: dict[str, Any], folder: Path) -> None:
    from benchmarks.roofline import plot_sweep

    plot = plot_sweep(report, folder / "roofline.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_products_beyond_the_limit_are_left_out(llama_cpp: LlamaCpp) -> None:
    report = bench_sweep(
        options(
            llama=llama_cpp,
            peers=("llama.cpp",),
            products=("up",),
            batches=(1, 64),
            threads=(1,),
            limit=0.03,
        )
    )
    batches = {
        row["batch"]
        for row in report["results"]
        if row["name"].startswith("llama.cpp")
    }
    assert batches == {1}
    assert any("0.03 s" in note for note in report["notes"])


def test_a_codec_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        contenders.CODECS,
        "other",
        lambda parts, group_size, bits: _ext.encode_affine(
            *parts, group_size, bits, tile_rows=8
        ),
    )
    report = bench_sweep(options(peers=("mlx",), batches=(1,), threads=(1,)))
    assert report["ours"] == [*OURS, "other"]
    for row in report["results"]:
        assert row["ratios"].keys() == {*OURS, "other"}


def test_sweep_command(
    llama_cpp: LlamaCpp,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SHAPES, "135m", SMALL)
    quick = ["sweep", "--shapes", "135m", "--batch", "1..2"]
    quick += ["--repeat", "1", "--budget", "0.01", "--bits", "4"]
    quick += ["--threads", "1", "-q"]
    out, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    built = ["--llama-cpp", llama_cpp.folder.parent]
    assert run(*quick, *built, "--json", out, "--plot", plot) == 0
    text = capsys.readouterr().out
    for part in ("llama.cpp q4_K (repacked)", "of DRAM", "coded is", "GB/s"):
        assert part in text
    assert json.loads(out.read_text())["benchmark"] == "sweep"
    assert "<svg" in plot.read_text()

    # A peer that is missing is an error where it was asked for by name.
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run(*quick, "--json", "-") == 0
    captured = capsys.readouterr()
    assert "without llama.cpp: no llama.cpp in build" in captured.err
    names = {row["name"] for row in json.loads(captured.out)["results"]}
    assert names == {*OURS, "stock MLX", "numpy float32"}
    assert run(*quick, "--peers", "llama.cpp") == 1
    assert "build_llama_cpp.sh build/llama.cpp" in capsys.readouterr().err
    assert run(*quick, "--peers", "none") == 0
    assert "llama.cpp was not run" in capsys.readouterr().out
    for wrong in (["--batch", "4..1"], ["--shapes", "2b"], ["--bits", "x"]):
        assert run(*quick, *wrong) == 2


def test_lists_of_batches() -> None:
    assert sweep_cli.batches("1,9,16..64") == (1, 9, 16, 32, 64)
    assert sweep_cli.batches("1..1") == (1,)
    assert synthetic_cli._GGUF_TYPES == synthetic_gguf.GGUF_TYPES
    assert tuple(SHAPES) == SHAPE_NAMES


# llama.cpp's programs


def test_llama_bench_output() -> None:
    speeds = parse_llama_bench(RECORDED)
    assert speeds == Speeds(126.62378, 252.680927, 96576768, "llama 256M Q4_1")
    alone = json.dumps(json.loads(RECORDED)[:1])
    assert parse_llama_bench(alone).generation is None
    for wrong in ("", "[]", "{}", '[{"n_gen": 1}]'):
        with pytest.raises(ValueError, match="something else"):
            parse_llama_bench(wrong)


def test_llama_bench_that_fails(tmp_path: Path) -> None:
    program(
        tmp_path, "llama-bench", "import sys; sys.exit('error: no such model')"
    )
    with pytest.raises(ValueError, match="error: no such model"):
        run_llama_bench(
            LlamaCpp(tmp_path),
            "x.gguf",
            threads=1,
            prompt_tokens=4,
            max_tokens=4,
        )


def test_which_llama_cpp(llama_cpp: LlamaCpp) -> None:
    root = llama_cpp.folder.parent
    assert find_llama_cpp(root / "bin") == llama_cpp
    assert find_llama_cpp(root, "avx512") == llama_cpp
    # The other build would have an unfair advantage.
    assert find_llama_cpp(root, "avx2") is None
    program(root / "bin-avx2", "ggml-peer", GGML_PEER)
    other = find_llama_cpp(root, "avx2")
    assert other is not None
    assert other.folder == (root / "bin-avx2").resolve()
    assert other.version == "llama.cpp of unknown version"


def test_a_running_product(llama_cpp: LlamaCpp) -> None:
    with GgmlProduct(llama_cpp, "q4_0", 64, 128, 2) as product:
        assert product.nbytes == 64 * 128 * 9 // 16
        assert product.seconds(3, 1, 5) == 3e-3
        assert product.seconds(4, 1, 5) == 4e-3
    with pytest.raises(ValueError, match="multiple of 32"):
        GgmlProduct(llama_cpp, "q4_0", 64, 33, 2)


def test_the_real_product(real_llama: LlamaCpp) -> None:
    for kind, bits in (("q4_K", 4.5), ("q2_K", 2.625), ("iq2_s", 2.5625)):
        with GgmlProduct(real_llama, kind, 64, 512, 3) as product:
            assert product.nbytes == 64 * 512 * bits / 8
            assert product.about["features"]["amx_int8"] is False
            assert 0 < product.seconds(1, 1, 7) < 1
            assert 0 < product.seconds(9, 2, 2) < 1
    with pytest.raises(ValueError, match="no type q9_9"):
        GgmlProduct(real_llama, "q9_9", 64, 512, 1)
