"""The benchmarks: what they report, never how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from benchmarks.cli import main as benchmarks
from benchmarks.dispatch import bench_dispatch
from benchmarks.encode import bench_encode
from benchmarks.gemv import GemvCase, bench_gemv, bench_gemv_sweep
from helpers import tiny
from mlx_entropy import _ext, convert, load
from mlx_entropy.bench.generate import (
    Generation,
    _turns,
    agreement,
    bench_generate,
    compare_tokens,
    encode_prompt,
    first_difference,
)
from mlx_entropy.bench.load import bench_load, count_weights
from mlx_entropy.bench.memory import peak_resident_bytes, resident_bytes
from mlx_entropy.bench.timing import Timing, interleave, settings
from mlx_entropy.cli import main as cli

PACKAGED = ("load", "generate")
QUICK: dict[str, Any] = {"repeat": 2, "budget": 0.05}
MACHINE = {
    "target", "threads", "cpus", "platform", "python", "mlx", "mlx_lm",
    "mlx_entropy",
}  # fmt: skip
RESULT = {
    "name", "nbytes", "weights_per_second", "threads", "seconds", "fastest",
    "slowest", "spread", "repetitions", "calls_a_repetition",
}  # fmt: skip


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "stock"
    tiny.write_model(folder, quantization=tiny.affine(4))
    tiny.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def coded(stock: Path) -> Path:
    convert(stock, stock.with_name("coded"))
    return stock.with_name("coded")


def check(report: dict[str, Any], benchmark: str) -> None:
    """What every report has; and that it is JSON."""
    assert json.loads(json.dumps(report)) == report
    assert report["benchmark"] == benchmark
    assert report["machine"].keys() == MACHINE
    for row in report["results"]:
        assert row.keys() >= RESULT
        assert row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["nbytes"] > 0
        assert row["weights_per_second"] > 0


def run(kind: object, *argv: object) -> int:
    """A benchmark by its name: the package's, or one of the checkout's."""
    given = [str(kind), *(str(argument) for argument in argv)]
    if kind in PACKAGED:
        return cli.main(["bench", *given])
    return benchmarks.main(given)


# Timing


def test_runs_take_turns() -> None:
    calls = []

    def slow(name: str) -> None:
        calls.append(name)
        total = sum(range(200_000))
        assert total

    timings = interleave(
        {"a": lambda: slow("a"), "b": lambda: slow("b")}, repeat=3, budget=60
    )
    assert [len(timing.samples) for timing in timings.values()] == [3, 3]
    rounds = timings["a"].calls + timings["b"].calls
    measured = calls[-3 * rounds :]
    assert measured == 3 * (
        ["a"] * timings["a"].calls + ["b"] * timings["b"].calls
    )


def test_the_budget_ends_the_rounds() -> None:
    timings = interleave({"a": lambda: None}, repeat=10**9, budget=0.02)
    assert 1 <= len(timings["a"].samples) < 10**6


def test_one_round_at_least() -> None:
    timings = interleave({"a": lambda: None}, repeat=5, budget=1e-9)
    assert len(timings["a"].samples) == 1
    assert timings["a"].calls == 1
    assert timings["a"].spread == 0


def test_medians_and_spread() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), 7)
    assert timing.seconds == 3
    assert timing.spread == pytest.approx(2 / 3)
    assert timing.to_dict()["slowest"] == 100
    assert timing.to_dict()["calls_a_repetition"] == 7


def test_settings_are_put_back() -> None:
    before = _ext.num_threads(), _ext.target()
    with settings(1, "scalar"):
        assert (_ext.num_threads(), _ext.target()) == (1, "scalar")
    assert (_ext.num_threads(), _ext.target()) == before
    with pytest.raises(ValueError, match="abacus"), settings(1, "abacus"):
        pass
    assert (_ext.num_threads(), _ext.target()) == before


def test_memory() -> None:
    resident = resident_bytes()
    assert resident is None or 0 < resident <= peak_resident_bytes()


# One product


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gemv(dtype: str, bits: int) -> None:
    case = GemvCase(256, 512, bits, 64, dtype, 2)
    report = bench_gemv(case, **QUICK)
    check(report, "gemv")
    ours, peer, dense = report["results"]
    names = [row["name"] for row in (ours, peer, dense)]
    assert names == ["coded", "stock MLX", "numpy float32"]
    assert report["ratio"] == peer["seconds"] / ours["seconds"]
    assert report["weights"] == 256 * 512
    assert report["stored_bits_per_weight"] == bits + 0.5
    assert report["coded_bits_per_weight"] == 8 * ours["nbytes"] / (256 * 512)
    assert ours["relative_error"] < (5e-3 if "16" in dtype else 1e-3)
    # Stock MLX adds up in the type of the activations.
    assert peer["relative_error"] < (5e-2 if "16" in dtype else 1e-3)
    for row in report["results"]:
        rate = 2 * 256 * 512 / row["seconds"]
        assert row["weights_per_second"] == pytest.approx(rate)
    assert dense["relative_error"] < 1e-5


@pytest.mark.parametrize("target", _ext.targets())
def test_gemv_on_a_target(target: str) -> None:
    report = bench_gemv(GemvCase(256, 512), threads=1, target=target, **QUICK)
    assert report["machine"]["target"] == target
    assert report["machine"]["threads"] == 1
    assert report["results"][0]["threads"] == 1
    assert report["results"][1]["threads"] is None


def test_gemv_sweep() -> None:
    heard: list[str] = []
    report = bench_gemv_sweep(
        GemvCase(64, 128), repeat=1, budget=0.01, notify=heard.append
    )
    check(report, "gemv sweep")
    found = [(c["bits"], c["dtype"], c["batch"]) for c in report["cases"]]
    assert found == [
        (bits, dtype, batch)
        for bits in (2, 3, 4)
        for dtype in ("float32", "bfloat16")
        for batch in (1, 8, 64)
    ]
    assert len(heard) == len(found)
    for case in report["cases"]:
        check(case, "gemv")


# Coding


def test_encode() -> None:
    report = bench_encode(256, 512, 3, **QUICK)
    check(report, "encode")
    kinds = {row["weights_of"] for row in report["results"]}
    assert kinds == {"affine 3 bits", "bfloat16", "float16"}
    threads = {1, report["machine"]["threads"]}
    for kind in kinds:
        for operation in ("encode", "decode"):
            rows = [
                row
                for row in report["results"]
                if (row["weights_of"], row["operation"]) == (kind, operation)
            ]
            *ours, peer = rows
            assert {row["threads"] for row in ours} == threads
            assert peer["name"] == "zlib -1"
            assert peer["ratio"] == 1
            for row in ours:
                assert row["ratio"] == peer["seconds"] / row["seconds"]
                assert row["entropy_bits"] <= row["bits_per_weight"]
                assert row["bits_per_weight"] < row["source_bits_per_weight"]


# Threads


def test_dispatch() -> None:
    before = _ext.num_threads()
    report = bench_dispatch(3, repeat=2)
    assert _ext.num_threads() == before
    assert json.loads(json.dumps(report)) == report
    assert report["machine"]["threads"] == 3
    assert [row["threads"] for row in report["results"]] == [1, 2, 3]
    for row in report["results"]:
        for key in ("empty_seconds", "handover_seconds", "asleep_seconds"):
            assert 0 < row[key] < 1


# Loading


def test_load(
    coded: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other codecs may take more memory than the file.
    monkeypatch.setenv("MLX_ENTROPY_CODEC", "rans")
    heard: list[str] = []
    report = bench_load(coded, stock, repeat=1, notify=heard.append)
    check(report, "load")
    ours, peer = report["results"]
    assert report["ratio"] == peer["seconds"] / ours["seconds"]
    for row, folder in ((ours, coded), (peer, stock)):
        files = list(folder.glob("model*.safetensors"))
        assert row["nbytes"] == sum(file.stat().st_size for file in files)
        assert row["active_bytes"] <= row["nbytes"]
        assert row["peak_resident_bytes"] > row["active_bytes"]
    assert len(heard) == 2


def test_load_alone(coded: Path) -> None:
    report = bench_load(coded, repeat=1)
    check(report, "load")
    assert report["ratio"] is None


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model directory"):
        bench_load(tmp_path / "nothing")


def test_count_weights(coded: Path, stock: Path) -> None:
    from mlx_lm import load as load_stock

    models = [load(coded)[0], load_stock(str(stock))[0]]
    shapes = [shape for shape in tiny._shapes().values() if len(shape) == 2]
    total = sum(rows * cols for rows, cols in shapes)
    table = tiny.VOCABULARY * tiny.HIDDEN
    for model in models:
        assert count_weights(model) == total
        assert count_weights(model, multiplied=True) == total - table
        model.lm_head = None
        assert count_weights(model, multiplied=True) == total - table


# Generation


def test_generate(coded: Path, stock: Path) -> None:
    heard: list[str] = []
    report = bench_generate(
        coded, stock, "hello", 6, repeat=2, notify=heard.append
    )
    check(report, "generate")
    ours, peer = report["results"]
    assert report["ratio"] == peer["seconds"] / ours["seconds"]
    assert report["prompt_ratio"] == (
        ours["prompt_tokens_per_second"] / peer["prompt_tokens_per_second"]
    )
    assert report["prompt_tokens"] == 5
    assert ours["nbytes"] < peer["nbytes"]
    assert ours["deterministic"]
    found = report["agreement"]
    assert found["tokens"] == 6
    assert 0 <= found["agreed"] <= 6
    assert (found["first_difference"] is None) == (found["agreed"] == 6)
    assert found["mean_kl"] < 1e-2
    assert len(heard) == 2
    with pytest.raises(ValueError, match="2 tokens"):
        bench_generate(coded, stock, "hello", 1)


@pytest.mark.parametrize("tokens", [2, 3, 24, 25, 26, 49, 51, 99, 200])
def test_turns(tokens: int) -> None:
    turns = _turns(tokens)
    assert sum(turns) == tokens
    assert min(turns) >= 2
    assert max(turns) < 50


def test_generations_take_turns(coded: Path) -> None:
    model, tokenizer = load(coded)
    prompt = encode_prompt(tokenizer, "hello")
    alone = Generation(model, prompt, 8)
    alone.advance(8)
    pair = [Generation(model, prompt, 8) for _ in range(2)]
    for count in (2, 3, 3):
        for each in pair:
            each.advance(count)
    for each in pair:
        assert each.tokens == alone.tokens
        assert len(each.token_seconds) == 3
        assert each.prompt_seconds > 0


def test_prompts(coded: Path) -> None:
    tokenizer = load(coded)[1]
    assert encode_prompt(tokenizer, "abc") == tokenizer.encode("abc")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
        "{% if add_generation_prompt %}!{% endif %}"
    )
    assert encode_prompt(tokenizer, "abc") == tokenizer.encode("<abc>!")


class Scripted:
    """A model whose logits follow a script, whatever it reads."""

    def __init__(self, rows: mx.array, prompt: int) -> None:
        self._rows = rows
        self._skip = prompt - 1

    def make_cache(self) -> list[int]:
        return [0]  # Tokens read so far.

    def __call__(self, tokens: mx.array, cache: list[int]) -> mx.array:
        count = tokens.shape[1]
        start = cache[0] - self._skip
        cache[0] += count
        if start < 0:
            return mx.zeros((1, count, self._rows.shape[1]))
        return self._rows[None, start : start + count]


def scripted(
    length: int, changes: dict[int, dict[int, float]] | None = None
) -> tuple[Scripted, list[int]]:
    """A model that prefers token i % 7 at position i, and its tokens."""
    rows = [
        [4.0 * (token == i % 7) for token in range(7)] for i in range(length)
    ]
    for position, logits in (changes or {}).items():
        for token, logit in logits.items():
            rows[position][token] = logit
    tokens = [max(range(7), key=row.__getitem__) for row in rows]
    return Scripted(mx.array(rows), 3), tokens


PROMPT = [1, 2, 3]


def test_equal_generations() -> None:
    (stock, ids), (coded, same) = scripted(130), scripted(130)
    found = agreement(PROMPT, ids, same, stock, coded)
    assert found["agreed"] == found["same_choice"] == found["tokens"] == 130
    assert found["first_difference"] is None
    assert found["mean_kl"] == 0


@pytest.mark.parametrize("position", [0, 63, 64, 99])
def test_a_near_tie(position: int) -> None:
    own, other = position % 7, (position + 1) % 7
    stock, stock_ids = scripted(100, {position: {other: 3.98}})
    coded, coded_ids = scripted(100, {position: {other: 4.01}})
    # Behind a difference nothing is expected to be equal.
    coded_ids[position + 1 :] = [9] * (99 - position)
    found = agreement(PROMPT, stock_ids, coded_ids, stock, coded)
    assert found["agreed"] == position
    assert found["same_choice"] == 99
    assert 0 < found["mean_kl"] < 1e-3
    difference = found["first_difference"]
    assert difference["position"] == position
    assert difference["stock_token"] == own
    assert difference["coded_token"] == other
    assert difference["gap"] == pytest.approx(0.02, abs=1e-6)
    assert difference["near_tie"] is True
    shares = difference["stock_probability"], difference["coded_probability"]
    assert shares[0] > shares[1] > 0.4


def test_a_real_difference() -> None:
    stock, stock_ids = scripted(20)
    coded, coded_ids = scripted(20, {5: {0: 9.0}})
    found = agreement(PROMPT, stock_ids, coded_ids, stock, coded)
    assert found["agreed"] == 5
    assert found["first_difference"]["gap"] == 4
    assert found["first_difference"]["near_tie"] is False


def test_first_difference() -> None:
    assert first_difference([], []) is None
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 5, 4]) == 1
    with pytest.raises(ValueError, match="zip"):
        first_difference([1], [1, 2])


def test_compare_tokens() -> None:
    found = compare_tokens(mx.log(mx.array([0.25, 0.5, 0.25])), 1, 2)
    assert found["gap"] == pytest.approx(0.6931, abs=1e-4)
    assert found["stock_probability"] == pytest.approx(0.5)
    assert found["coded_probability"] == pytest.approx(0.25)
    assert not found["near_tie"]


# The command


SMALL = ("--rows", 128, "--cols", 128, "--repeat", 1, "--budget", 0.01)


def test_commands(
    coded: Path, stock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ("generate", coded, "--against", stock, "--prompt", "hi")
    commands: list[tuple[object, ...]] = [
        ("gemv", *SMALL),
        ("gemv", "--sweep", *SMALL),
        ("encode", *SMALL),
        ("load", coded, "--against", stock, "--repeat", 1),
        (*generate, "--max-tokens", 4, "--repeat", 1),
    ]
    for command in commands:
        assert run(*command) == 0
        text = capsys.readouterr().out
        assert f"target {_ext.target()}, {_ext.num_threads()} threads" in text
        assert "samples" in text
        assert run(*command, "--json") == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert json.loads(captured.out)["benchmark"].startswith(str(command[0]))


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--bits", 3, "--dtype", "bfloat16", "--batch", 2, "--threads", 1)
    target = ("--target", "scalar", "--group-size", 32, "--json")
    assert run("gemv", *SMALL, *options, *target) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["target"] == "scalar"
    assert report["machine"]["threads"] == 1
    assert (report["bits"], report["group_size"]) == (3, 32)
    assert (report["dtype"], report["batch"]) == ("bfloat16", 2)


@pytest.mark.parametrize(
    "argv",
    [
        ("",),
        ("nonsense",),
        ("gemv", "--bits", "7"),
        ("gemv", "--budget", "0"),
        ("load",),
        ("generate", "a"),
        ("generate", "a", "--against", "b", "--max-tokens", "1"),
    ],
)
def test_usage_errors(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [("gemv", "--cols", "100"), ("gemv", "--target", "abacus")],
)
def test_errors(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("mlx-entropy: error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "name", "kinds"),
    [
        (benchmarks.main, "python -m benchmarks", ("gemv", "encode")),
        (
            lambda argv: cli.main(["bench", *argv]),
            "mlx-entropy bench",
            PACKAGED,
        ),
    ],
)
def test_help(
    main: Callable[[list[str]], int],
    name: str,
    kinds: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    assert f"Examples:\n  {name}" in capsys.readouterr().out
    for kind in kinds:
        assert main([kind, "--help"]) == 0
        assert f"Examples:\n  {name} {kind}" in capsys.readouterr().out
