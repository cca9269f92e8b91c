"""MLX and Hugging Face directories as sources."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from helpers import llama
from helpers.sources import contents, refusal
from mlx_entropy.sources import open_source

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_directory(
    folder: Path, bits: int | None = None, mode: str = "affine"
) -> nn.Module:
    """A tiny llama directory; quantized when `bits` is given."""
    settings = None
    if bits is not None:
        group_size = 16 if mode == "nvfp4" else 32
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
    model, config = llama.build(settings)
    llama.save(folder, model, config)
    (folder / "tokenizer.json").write_text("{}")
    return model


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
def test_modules(tmp_path: Path, bits: int | None) -> None:
    model = write_directory(tmp_path, bits)
    before = contents(tmp_path)
    source = open_source(tmp_path)
    expected = dict(tree_flatten(model.parameters()))
    for module in source.modules():
        for name, array in module.tensors.items():
            stored = expected.pop(f"{module.path}.{name}")
            assert array.dtype == stored.dtype
            assert mx.array_equal(array, stored)
        kind = "linear"
        if "norm" in module.path:
            kind = "other"
        if "embed" in module.path:
            kind = "embedding"
        assert module.kind == kind
        settings = {"group_size": 32, "bits": bits, "mode": "affine"}
        plain = bits is None or kind == "other"
        assert module.quantization == (None if plain else settings)
    assert not expected
    assert source.config == json.loads(before["config.json"])
    assert contents(tmp_path) == before


def test_layout_matches_the_modules(tmp_path: Path) -> None:
    write_directory(tmp_path, 4)
    source = open_source(tmp_path)
    found = [(module.path, module.nbytes) for module in source.modules()]
    assert found == [(each.path, each.nbytes) for each in source.layout()]
    # A second pass gives everything again.
    assert [m.path for m in source.modules()] == [path for path, _ in found]
    skipped = frozenset(path for path, _ in found[:-1])
    assert [m.path for m in source.modules(skip=skipped)] == [found[-1][0]]


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_other_modes_are_described(
    tmp_path: Path, mode: str, bits: int, group_size: int
) -> None:
    write_directory(tmp_path, bits, mode)
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    kinds = {
        "model.layers.0.mlp.up_proj": "linear",
        "model.embed_tokens": "embedding",
    }
    for path, kind in kinds.items():
        assert modules[path].kind == kind
        assert modules[path].quantization == {
            "group_size": group_size,
            "bits": bits,
            "mode": mode,
        }
    assert modules["model.norm"].quantization is None


def test_with_mixed_bits(tmp_path: Path) -> None:
    model, config = llama.build()
    first = {"group_size": 64, "bits": 8, "mode": "affine"}
    rest = {"group_size": 32, "bits": 4, "mode": "affine"}

    def choose(path: str, module: nn.Module) -> dict | bool:
        if not hasattr(module, "to_quantized") or "v_proj" in path:
            return False
        return first if "embed" in path else rest

    nn.quantize(model, class_predicate=choose)
    config["quantization"] = {**rest, "model.embed_tokens": first}
    llama.save(tmp_path, model, config)
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    attention = "model.layers.0.self_attn"
    assert modules["model.embed_tokens"].quantization == first
    assert modules[f"{attention}.q_proj"].quantization == rest
    assert modules[f"{attention}.v_proj"].quantization is None
    assert modules[f"{attention}.v_proj"].kind == "linear"


def test_is_read_one_module_at_a_time(tmp_path: Path) -> None:
    write_directory(tmp_path)
    source = open_source(tmp_path)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    for module in source.modules():
        # Nothing is read before the caller evaluates it.
        assert mx.get_active_memory() - before <= 4096
        mx.eval(module.tensors)
        assert mx.get_active_memory() - before <= module.nbytes + 4096
        del module


def test_mixture_of_experts(tmp_path: Path) -> None:
    """Experts are stacked by `sanitize`."""
    from mlx_lm.models import mixtral

    config = {
        "model_type": "mixtral",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    }
    model = mixtral.Model(mixtral.ModelArgs.from_dict(config))
    arrays = {}
    for name, array in tree_flatten(model.parameters()):
        if ".switch_mlp." not in name:
            arrays[name] = array
            continue
        layer, _, matrix = name.partition(".switch_mlp.")
        short = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
        key = short[matrix.removesuffix(".weight")]
        for expert in range(4):
            arrays[f"{layer}.experts.{expert}.{key}.weight"] = array[expert]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "config.json").write_text(json.dumps(config))
    modules = {m.path: m for m in open_source(tmp_path).modules()}
    block = "model.layers.0.block_sparse_moe"
    experts = modules[f"{block}.switch_mlp.up_proj"]
    assert experts.kind == "switch"
    assert experts.tensors["weight"].shape == (4, 64, 32)
    assert modules[f"{block}.gate"].kind == "linear"


def test_assets(tmp_path: Path) -> None:
    write_directory(tmp_path)
    kept = {
        "tokenizer.json": b"{}",
        "tokenizer.model": b"\0\1",
        "chat_template.jinja": b"x",
        "generation_config.json": b"{}",
        "merges.txt": b"a b",
        "custom.py": b"pass",
    }
    left = ["model.safetensors.index.json", "hf_quant_config.json", "x.bin"]
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    source = open_source(tmp_path)
    for name in left:
        (tmp_path / name).write_bytes(b"{}")
    assert source.assets().files == kept


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write_directory(tmp_path)
    first = open_source(tmp_path).fingerprint
    assert open_source(tmp_path).fingerprint == first
    os.utime(tmp_path / "model.safetensors", ns=(0, 0))
    second = open_source(tmp_path).fingerprint
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + " ")
    assert len({first, second, open_source(tmp_path).fingerprint}) == 3


def test_truncated_safetensors(tmp_path: Path) -> None:
    write_directory(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, 12), header - 1, header, header + 100]
    for place in [*places, len(content) - 1]:
        file.write_bytes(content[:place])
        assert "model.safetensors is damaged" in refusal(tmp_path)


def entry(begin: object, end: object, **changes: object) -> dict:
    base = {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}
    return {**base, **changes}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps"),
        ({"a": entry(12, 20)}, "ends 4 bytes after"),
        ({"a": entry(2**63, 2**63 + 8)}, "after the end"),
        ({"a": entry(8, 0)}, "'a' is wrong"),
        ({"a": entry(-8, 0)}, "'a' is wrong"),
        ({"a": entry(0.0, 8)}, "'a' is wrong"),
        ({"a": entry(0, 8, shape=[3])}, "'a' is wrong"),
        ({"a": entry(0, 8, shape=[2**62, 2**62])}, "'a' is wrong"),
        ({"a": entry(0, 8, shape="2")}, "'a' is wrong"),
        ({"a": 5}, "'a' is wrong"),
        ([1], "not a JSON object"),
    ],
)
def test_hostile_safetensors(
    tmp_path: Path, tensors: object, reason: str
) -> None:
    write_directory(tmp_path)
    header = json.dumps(tensors).encode()
    length = struct.pack("<Q", len(header))
    (tmp_path / "model.safetensors").write_bytes(length + header + bytes(16))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{", b"[" * 100_000, b'{"a":1,"a":2}', b"\xff\xfe"]
)
def test_safetensors_headers_that_are_not_json(
    tmp_path: Path, header: bytes
) -> None:
    write_directory(tmp_path)
    length = struct.pack("<Q", len(header))
    (tmp_path / "model.safetensors").write_bytes(length + header)
    assert "not valid JSON" in refusal(tmp_path)


def test_directories_that_are_no_models(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"")
    assert "tiny.gguf" in refusal(tmp_path)
    config = tmp_path / "config.json"
    for broken in ("{", "[]", "{}", "\ufffe", "[" * 100_000):
        config.write_text(broken)
        assert "config.json" in refusal(tmp_path)
    config.write_text('{"model_type": "llama"}')
    assert "no model*.safetensors" in refusal(tmp_path)


def test_converted_directories_are_refused(tmp_path: Path) -> None:
    write_directory(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mlx_entropy"] = {"version": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "already converted" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_directory(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = mx.load(str(file))
    del tensors["model.norm.weight"]
    mx.save_safetensors(str(file), tensors)
    assert "model.norm.weight" in refusal(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    shard = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    assert f"lacks '{shard}'" in refusal(tmp_path)


def test_what_mlx_lm_refuses_is_one_line(tmp_path: Path) -> None:
    write_directory(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"model_type": "no_such_model"},
        {"num_hidden_layers": 3},
        {"hidden_size": 256},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        assert "mlx-lm cannot load" in refusal(tmp_path)


# Where the project's shared data is checked out beside it.
@pytest.mark.parametrize("name", ["stories15M", "stories260K"])
def test_stories(name: str) -> None:
    path = DATA / name
    if not path.is_dir():
        pytest.skip("no shared data")
    source = open_source(path)
    stored = mx.load(str(path / "model.safetensors"))
    for module in source.modules():
        for parameter, array in module.tensors.items():
            weight = stored.pop(f"{module.path}.{parameter}")
            assert mx.array_equal(array, weight)
    assert not stored
