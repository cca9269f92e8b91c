"""`restore` gives back the model that was converted."""

from __future__ import annotations

import json
import os

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

import mlx_entropy
from helpers import gguf_writer, stock, tiny
from helpers.sources import contents, write_gguf
from helpers.sources import write_stock as write_source
from mlx_entropy.cli.main import main
from mlx_entropy.destination import PARTIAL_SUFFIX, DestinationError
from mlx_entropy.model_format import CONFIG_KEY
from mlx_entropy.sources import SourceError, open_source
from mlx_entropy.sources.side_files import INDEX
from mlx_entropy.stored import StoredModel

MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
KEPT = "model.layers.0.mlp.up_proj"
SOURCES = {
    "4bit": {"quantization": tiny.affine(4)},
    "3bit": {"quantization": tiny.affine(3, 32)},
    "mixed": {
        "quantization": tiny.affine(4),
        "overrides": {
            "lm_head": tiny.affine(8, 32),
            KEPT: tiny.affine(3),
            "model.layers.1.mlp.up_proj": tiny.affine(2),
            "model.layers.0.mlp.down_proj": MXFP4,
            "model.embed_tokens": False,
        },
        "noise": (KEPT, "lm_head"),
    },
    "float16": {"dtype": mx.float16},
    "bfloat16": {"dtype": mx.bfloat16},
}


@pytest.fixture(params=SOURCES, ids=str)
def source(request, tmp_path):
    folder = tiny.write_model(tmp_path / "source", **SOURCES[request.param])
    tiny.write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def assert_same_tensors(found, expected, same_bits):
    found, expected = stock.tensors(found), stock.tensors(expected)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)


def same_files(found, expected):
    """But for the weights and their index, which are split anew."""
    files = [
        {n: c for n, c in contents(folder).items() if "safetensors" not in n}
        for folder in (found, expected)
    ]
    configs = [json.loads(each.pop("config.json")) for each in files]
    return files[0] == files[1] and configs[0] == configs[1]


def test_restores_the_source(tmp_path, source, same_bits):
    mlx_entropy.convert(source, tmp_path / "coded")
    before = tiny.digests(tmp_path / "coded")
    report = mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    assert tiny.digests(tmp_path / "coded") == before
    assert_same_tensors(tmp_path / "back", source, same_bits)
    assert same_files(tmp_path / "back", source)
    expected = stock.tensors(source)
    assert report.tensors == len(expected)
    assert report.nbytes == sum(array.nbytes for array in expected.values())
    assert f"{report.tensors} tensors" in report.summary()
    models = [load_model(each)[0] for each in (tmp_path / "back", source)]
    logits = [model(mx.arange(1, 9)[None]) for model in models]
    assert same_bits(*logits)


def test_older_models_remember_nothing(tmp_path, source, same_bits):
    """Their config says what is left of the quantization, the coded headers
    the rest."""
    mlx_entropy.convert(source, tmp_path / "coded")
    file = tmp_path / "coded" / "config.json"
    config = json.loads(file.read_text())
    del config[CONFIG_KEY]["source_config"]
    file.write_text(json.dumps(config))
    mlx_entropy.seal(tmp_path / "coded")
    mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    assert_same_tensors(tmp_path / "back", source, same_bits)
    models = [load_model(each)[0] for each in (tmp_path / "back", source)]
    logits = [model(mx.arange(1, 9)[None]) for model in models]
    assert same_bits(*logits)


@pytest.mark.parametrize("kind", stock.MODELS)
def test_experts_and_tied_heads(tmp_path, kind, same_bits):
    source = stock.write(tmp_path / "source", stock.MODELS[kind])
    mlx_entropy.convert(source, tmp_path / "coded")
    mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    assert_same_tensors(tmp_path / "back", source, same_bits)
    assert same_files(tmp_path / "back", source)


def test_gguf(tmp_path, same_bits):
    file = write_gguf(tmp_path, gguf_writer.tiny_llama())
    mlx_entropy.convert(file, tmp_path / "coded")
    mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    source = write_source(open_source(file), tmp_path / "source")
    assert_same_tensors(tmp_path / "back", source, same_bits)
    assert same_files(tmp_path / "back", source)
    load_model(tmp_path / "back")


def test_converts_again_to_the_same(tmp_path, source):
    mlx_entropy.convert(source, tmp_path / "coded")
    mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    mlx_entropy.convert(tmp_path / "back", tmp_path / "again")
    assert mlx_entropy.verify(tmp_path / "again", source).identical


def test_shards_and_their_index(tmp_path, model, same_bits):
    mlx_entropy.convert(model, tmp_path / "coded")
    states = []
    mlx_entropy.restore(
        tmp_path / "coded",
        tmp_path / "back",
        shard_bytes=150_000,
        progress=states.append,
    )
    files = sorted(each.name for each in (tmp_path / "back").glob("model-*"))
    assert len(files) > 2
    index = json.loads((tmp_path / "back" / INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["weight_map"].keys() == stock.tensors(model).keys()
    assert_same_tensors(tmp_path / "back", model, same_bits)
    counts = [state.done_modules for state in states]
    assert counts == list(range(1, states[-1].total_modules + 1))
    assert states[-1].done_bytes == states[-1].total_bytes


@pytest.mark.parametrize("shard_bytes", [150_000, 1 << 30])
def test_continues_after_an_interruption(
    tmp_path, model, same_bits, monkeypatch, shard_bytes
):
    mlx_entropy.convert(model, tmp_path / "coded")

    class Stop(Exception):
        pass

    def stop(state):
        if state.done_modules == 12:
            raise Stop

    def run(progress):
        return mlx_entropy.restore(
            tmp_path / "coded",
            tmp_path / "back",
            shard_bytes=shard_bytes,
            progress=progress,
        )

    with pytest.raises(Stop):
        run(stop)
    assert not (tmp_path / "back").exists()
    partial = tmp_path / f"back{PARTIAL_SUFFIX}"
    finished = {
        each: each.stat().st_mtime_ns
        for each in partial.glob("model-*.safetensors")
    }
    assert finished or shard_bytes > 150_000
    decoded = []
    decode = StoredModel.decode

    def counted(self, name):
        decoded.append(name)
        return decode(self, name)

    monkeypatch.setattr(StoredModel, "decode", counted)
    states = []
    run(states.append)
    coded = [n for n in stock.tensors(tmp_path / "coded") if "coded" in n]
    assert 0 < len(decoded) < len(coded) - 6
    assert "continuing" in states[0].note
    for each, written in finished.items():
        moved = tmp_path / "back" / each.name
        assert moved.stat().st_mtime_ns == written
    assert_same_tensors(tmp_path / "back", model, same_bits)
    assert not partial.exists()


def test_replaces_nothing(tmp_path, model):
    mlx_entropy.convert(model, tmp_path / "coded")
    file = tmp_path / "file"
    file.write_text("x")
    for target in (model, tmp_path / "coded", file):
        before = contents(tmp_path)
        with pytest.raises(DestinationError, match="replaces nothing"):
            mlx_entropy.restore(tmp_path / "coded", target)
        assert contents(tmp_path) == before
    with pytest.raises(DestinationError, match="inside the source"):
        mlx_entropy.restore(tmp_path / "coded", tmp_path / "coded" / "back")
    (tmp_path / "empty").mkdir()
    mlx_entropy.restore(tmp_path / "coded", tmp_path / "empty")


@pytest.mark.parametrize("sealed", [False, True])
def test_damage_is_refused(tmp_path, model, sealed):
    """By the checksums, and by the coded matrices' own."""
    mlx_entropy.convert(model, tmp_path / "coded")
    tiny.flip_byte(tmp_path / "coded", "lm_head.coded", 3000)
    if sealed:
        mlx_entropy.seal(tmp_path / "coded")
    with pytest.raises(SourceError, match=r"lm_head\.coded") as caught:
        mlx_entropy.restore(tmp_path / "coded", tmp_path / "back")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_command(tmp_path, model, capsys, same_bits):
    mlx_entropy.convert(model, tmp_path / "coded")
    coded, back = str(tmp_path / "coded"), str(tmp_path / "back")
    assert main(["restore", coded, back, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensors"] == len(stock.tensors(model))
    assert os.path.realpath(back) == report["destination"]
    assert_same_tensors(tmp_path / "back", model, same_bits)
    assert main(["restore", coded, back]) == 1
    assert "replaces nothing" in capsys.readouterr().err
    assert main(["restore", str(model), back + "2"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not entropy-coded" in error
    assert main(["restore", coded, back + "3"]) == 0
    assert "restored: " in capsys.readouterr().out


def test_experts_decode_with_their_axis(tmp_path):
    """Whoever reads `decode` needs no model class to know the shape."""
    source = stock.write(tmp_path / "source", stock.MOE)
    mlx_entropy.convert(source, tmp_path / "coded")
    stored = StoredModel(tmp_path / "coded")
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    parts = stored.decode(f"{name}.coded")
    assert parts["scales"].shape == (4, 128, 2)
