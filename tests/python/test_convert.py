"""Conversion: what it writes and reports."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from safetensors import safe_open

from helpers import tiny
from mlx_entropy.conversion import convert
from mlx_entropy.loading import load
from mlx_entropy.progress import Progress
from mlx_entropy.sources.base import SourceError
from mlx_entropy.sources.safetensors_file import read_header
from mlx_entropy.verification import verify

SMALL_SHARDS = 200_000

MODELS = {
    "4bit": {"quantization": tiny.affine(4)},
    "3bit": {"quantization": tiny.affine(3, 32)},
    "mixed": {
        "quantization": tiny.affine(4),
        "overrides": {
            "lm_head": tiny.affine(8, 32),
            "model.layers.0.mlp.up_proj": tiny.affine(2),
            "model.embed_tokens": False,
        },
    },
    "float16": {"dtype": mx.float16},
    "bfloat16": {"dtype": mx.bfloat16},
    "float32": {"dtype": mx.float32},
}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_round_trip(tmp_path: Path, options: dict) -> None:
    model = tiny.write_model(tmp_path / "model", **options)
    before = tiny.digests(model)
    report = convert(model, tmp_path / "out")
    assert tiny.digests(model) == before
    assert report.coded_bytes < report.source_bytes
    assert verify(tmp_path / "out", model).identical
    assert not (tmp_path / "out.mlx-entropy-partial").exists()
    config = config_of(tmp_path / "out")
    assert "quantization" not in config
    assert "quantization_config" not in config
    assert config["mlx_entropy"]["format_version"] == 1
    assert config["mlx_entropy"]["source"] == "model"
    assert config["mlx_entropy"]["modules"] == {"coded": 16, "raw": 5}


def test_report_matches_the_file(tmp_path: Path, model: Path) -> None:
    report = convert(model, tmp_path / "out")
    stored = read_header(tmp_path / "out" / "model.safetensors")
    assert report.coded_bytes == sum(each.nbytes for each in stored.values())
    source = read_header(model / "model.safetensors")
    assert report.source_bytes == sum(each.nbytes for each in source.values())
    assert report.bits_per_weight == 8 * report.coded_bytes / report.weights
    rows = {row.name: row for row in report.tensors}
    up = rows["model.layers.0.mlp.up_proj.weight"]
    assert up.shape == (tiny.INTERMEDIATE, tiny.HIDDEN)
    assert up.coded_bytes == stored["model.layers.0.mlp.up_proj.coded"].nbytes
    assert up.reason is None
    assert up.codec != "raw"
    assert rows["model.norm.weight"].reason == "1-D tensor"
    assert f"{report.bits_per_weight:.3f} bits a weight" in report.summary()


def test_stock_readers_open_the_file(tmp_path: Path, model: Path) -> None:
    convert(model, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    arrays, metadata = mx.load(str(file), return_metadata=True)
    assert metadata == {"format": "mlx"}
    with safe_open(file, "numpy") as reader:
        assert set(reader.keys()) == set(arrays)
        coded = reader.get_tensor("lm_head.coded")
    assert mx.array_equal(mx.array(coded), arrays["lm_head.coded"])


def test_several_shards_have_an_index(tmp_path: Path, model: Path) -> None:
    convert(model, tmp_path / "out", shard_bytes=SMALL_SHARDS)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files[0].name == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads(
        (tmp_path / "out" / "model.safetensors.index.json").read_text()
    )
    stored = {}
    for file in files:
        stored.update({name: file.name for name in read_header(file)})
    assert index["weight_map"] == stored
    assert verify(tmp_path / "out", model).identical


def test_incompressible_modules_stay_raw(tmp_path: Path) -> None:
    kept = "model.layers.0.mlp.up_proj"
    model = tiny.write_model(
        tmp_path / "model",
        quantization=tiny.affine(4),
        overrides={
            "lm_head": tiny.affine(8, 32),
            kept: tiny.affine(3),
            "model.layers.1.mlp.up_proj": tiny.affine(3),
            "model.embed_tokens": False,
        },
        noise=("lm_head", kept, "model.embed_tokens"),
    )
    report = convert(model, tmp_path / "out")
    assert verify(tmp_path / "out", model).identical
    config = config_of(tmp_path / "out")
    assert config["quantization"] == {
        **tiny.affine(4),
        "lm_head": tiny.affine(8, 32),
        kept: tiny.affine(3),
        "model.embed_tokens": False,
    }
    assert config["quantization_config"] == config["quantization"]
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons[f"{kept}.weight"] == "not smaller coded"
    assert set(config["mlx_entropy"]["raw"]) == {
        "lm_head",
        kept,
        "model.embed_tokens",
    }
    stored = read_header(tmp_path / "out" / "model.safetensors")
    assert f"{kept}.scales" in stored
    assert f"{kept}.coded" not in stored


def test_other_modes_stay_raw(tmp_path: Path) -> None:
    mxfp4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    model = tiny.write_model(
        tmp_path / "model",
        quantization=tiny.affine(4),
        overrides={"lm_head": mxfp4},
    )
    report = convert(model, tmp_path / "out")
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons["lm_head.weight"] == "mode mxfp4 is not affine"
    assert verify(tmp_path / "out", model).identical
    quantization = config_of(tmp_path / "out")["quantization"]
    assert quantization == {**tiny.affine(4), "lm_head": mxfp4}


def test_assets_do_not_replace_ours(tmp_path: Path, model: Path) -> None:
    (model / "mlx_entropy_model.py").write_text("evil = True")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    convert(model, tmp_path / "out")
    ours = (tmp_path / "out" / "mlx_entropy_model.py").read_text()
    assert "evil" not in ours
    assert config_of(tmp_path / "out")["model_file"] == "mlx_entropy_model.py"
    for name in ("chat_template.jinja", "generation_config.json"):
        copy = tmp_path / "out" / name
        assert copy.read_bytes() == (model / name).read_bytes()


def test_progress_counts_every_module(tmp_path: Path, model: Path) -> None:
    states: list[Progress] = []
    report = convert(model, tmp_path / "out", progress=states.append)
    assert [state.done_modules for state in states] == list(range(1, 22))
    assert states[-1].done_bytes == states[-1].total_bytes
    assert states[-1].coded_bytes == report.coded_bytes


def test_converted_models_are_no_source(tmp_path: Path, model: Path) -> None:
    convert(model, tmp_path / "out")
    with pytest.raises(SourceError, match="already"):
        convert(tmp_path / "out", tmp_path / "twice")


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        convert(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out.mlx-entropy-partial").exists()


@pytest.mark.parametrize("head", ["affine", "mxfp4", "mxfp8", "float"])
def test_partly_raw_models_load(tmp_path: Path, head: str) -> None:
    """The config describes exactly the layers that are still quantized."""
    overrides = {
        "affine": tiny.affine(8, 32),
        "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "float": False,
    }
    kept = "model.layers.0.mlp.up_proj"
    model = tiny.write_model(
        tmp_path / "model",
        quantization=tiny.affine(4),
        overrides={
            "lm_head": overrides[head],
            kept: tiny.affine(3),
            "model.layers.1.mlp.up_proj": tiny.affine(3),
        },
        noise=(kept,),
    )
    tiny.write_tokenizer(model)
    convert(model, tmp_path / "out")
    tokens = mx.arange(1, 9)[None]
    expected = load(model)[0](tokens)
    found = load(tmp_path / "out")[0](tokens)
    assert mx.allclose(found, expected, rtol=0.1, atol=0.05, equal_nan=True)
