"""The sizes that `inspect` reports are those of the files."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from helpers import llama, tiny
from mlx_entropy.cli.main import main
from mlx_entropy.conversion import convert
from mlx_entropy.inspection import inspect
from mlx_entropy.sources.base import SourceError
from mlx_entropy.sources.safetensors_file import read_header


def converted(folder: Path, **options: object) -> Path:
    tiny.write_model(folder / "model", **options)  # type: ignore[arg-type]
    convert(folder / "model", folder / "out", shard_bytes=300_000)
    return folder / "out"


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    out = converted(tmp_path, quantization=tiny.affine(4))
    report = inspect(out)
    files = list(out.glob("*.safetensors"))
    stored = {}
    for file in files:
        stored.update(read_header(file))
    assert report.file_bytes == sum(file.stat().st_size for file in files)
    total = report.total
    assert total.coded_bytes == sum(each.nbytes for each in stored.values())
    assert total.weights == sum(row.weights for row in report.tensors)
    assert total.bits_per_weight == 8 * total.coded_bytes / total.weights
    for row in report.tensors:
        assert row.bits_per_weight == 8 * row.coded_bytes / row.weights
    parts = (report.linear, report.embedding)
    others = [row for row in report.tensors if row.kind == "other"]
    assert total.coded_bytes == sum(part.coded_bytes for part in parts) + sum(
        row.coded_bytes for row in others
    )
    assert report.linear.tensors == 15
    assert report.embedding.tensors == 1
    assert report.embedding.weights == tiny.VOCABULARY * tiny.HIDDEN


def test_rows_of_coded_tensors(tmp_path: Path) -> None:
    out = converted(tmp_path, quantization=tiny.affine(3, 32))
    rows = {row.name: row for row in inspect(out).tensors}
    row = rows["model.layers.1.mlp.down_proj.weight"]
    assert row.shape == (tiny.HIDDEN, tiny.INTERMEDIATE)
    assert (row.scheme, row.bits, row.group_size) == ("affine", 3, 32)
    assert (row.kind, row.dtype, row.reason) == ("linear", "bfloat16", None)
    assert 2 < row.entropy_bits < 3
    assert row.entropy_bits < row.bits_per_weight < 4
    assert row.codec in ("rans16", "rans32")
    bias = rows["model.layers.1.self_attn.q_proj.bias"]
    assert (bias.kind, bias.codec, bias.reason) == (
        "other",
        "raw",
        "1-D tensor",
    )
    assert bias.bits_per_weight == 16
    assert bias.entropy_bits is None


def test_floats(tmp_path: Path) -> None:
    out = converted(tmp_path, dtype=mx.bfloat16)
    row = next(r for r in inspect(out).tensors if r.name == "lm_head.weight")
    assert (row.scheme, row.dtype, row.bits) == ("float", "bfloat16", 16)
    assert row.group_size == 0
    assert 8 < row.bits_per_weight < 14


def test_raw_weights_say_why(tmp_path: Path) -> None:
    mxfp4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    out = converted(
        tmp_path,
        quantization=tiny.affine(4),
        overrides={"lm_head": mxfp4},
        noise=("model.embed_tokens",),
    )
    report = inspect(out)
    rows = {row.name: row for row in report.tensors}
    head = rows["lm_head.weight"]
    assert (head.scheme, head.reason) == ("mxfp4", "mode mxfp4 is not affine")
    assert (head.kind, head.bits_per_weight) == ("linear", 4.25)
    assert head.shape == (tiny.VOCABULARY, tiny.HIDDEN)
    embedding = rows["model.embed_tokens.weight"]
    assert embedding.reason == "not smaller coded"
    assert (embedding.kind, embedding.bits_per_weight) == ("embedding", 4.5)
    assert report.embedding.entropy_bits is None
    assert report.linear.tensors == 15
    assert "model.embed_tokens.scales" not in rows


def test_report_is_json(tmp_path: Path) -> None:
    report = inspect(converted(tmp_path, quantization=tiny.affine(4)))
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["bits_per_weight"] == report.total.bits_per_weight
    assert content["linear"]["weights"] == report.linear.weights
    assert content["tensors"][0]["name"] == "model.embed_tokens.weight"


def test_unconverted_model(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    with pytest.raises(SourceError, match="mlx-entropy convert"):
        inspect(model)
    with pytest.raises(SourceError, match="no model directory"):
        inspect(tmp_path / "nothing")


def test_newer_format(tmp_path: Path) -> None:
    out = converted(tmp_path, quantization=tiny.affine(4))
    config = json.loads((out / "config.json").read_text())
    config["mlx_entropy"]["format_version"] = 99
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="99"):
        inspect(out)


def test_damage_names_the_tensor(tmp_path: Path) -> None:
    out = converted(tmp_path, quantization=tiny.affine(4))
    tiny.flip_byte(out, "lm_head.coded", 0)
    with pytest.raises(ValueError, match=r"lm_head\.coded"):
        inspect(out)


def test_cut_file(tmp_path: Path) -> None:
    out = converted(tmp_path, quantization=tiny.affine(4))
    file = min(out.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(SourceError, match=file.name):
        inspect(out)
    file.unlink()
    with pytest.raises(SourceError, match="lacks"):
        inspect(out)


def test_says_what_is_in_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = converted(tmp_path, quantization=tiny.affine(4))
    report = inspect(out)
    forms = report.memory_forms
    coded = [row for row in report.tensors if row.memory_codec is not None]
    assert sum(form.matrices for form in forms.values()) == len(coded)
    for name, form in forms.items():
        monkeypatch.setenv("MLX_ENTROPY_CODEC", name)
        model, _ = llama.load_registered(out)
        rows = [row.name for row in coded if row.memory_codec == name]
        held = dict(tree_flatten(model.parameters()))
        found = sum(
            held[row.replace(".weight", ".coded")].nbytes for row in rows
        )
        # The choice is predicted, the loaded bytes are counted.
        assert abs(form.nbytes - found) <= 0.02 * found
    assert main(["inspect", str(out)]) == 0
    assert "in memory on this machine: " in capsys.readouterr().out
