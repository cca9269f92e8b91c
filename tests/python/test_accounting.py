"""Every tensor of the source's files is kept, or named as left out."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

import mlx_entropy
from helpers import llama, tiny
from helpers.sources import refusal
from helpers.stock import MOE
from mlx_entropy.cli.main import main
from mlx_entropy.sources import open_source
from mlx_entropy.sources.accounting import StoredFiles, left_out
from mlx_entropy.sources.base import Module


def write(folder: Path, config, tensors) -> Path:
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_tensors(config) -> dict[str, mx.array]:
    model_class, args = _get_classes(config)
    model = model_class(args.from_dict(config))
    llama.randomize(model, mx.bfloat16)
    return dict(tree_flatten(model.parameters()))


def round_trip(source: Path, folder: Path, **options):
    report = mlx_entropy.convert(source, folder, **options)
    check = mlx_entropy.verify(folder, source)
    assert check.identical, check.mismatches
    assert check.left_out == report.contents.left_out
    told = json.loads((folder / "config.json").read_text())["mlx_entropy"]
    assert told["left_out"] == [vars(each) for each in check.left_out]
    assert mlx_entropy.inspect(folder).left_out == check.left_out
    files = [mx.load(str(file)) for file in source.glob("model*.safetensors")]
    names = {name for file in files for name in file}
    assert check.tensors == len(names)
    return report


def rewrite_as(file: Path, dtype: str, names: set[str]) -> None:
    """Call tensors of one-byte elements another type in a file's header."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    file.write_bytes(
        struct.pack("<Q", len(text)) + text + content[8 + length :]
    )


def test_nothing_is_left_out_of_a_plain_model(tmp_path):
    source = tiny.write_model(tmp_path / "src", quantization=tiny.affine(4))
    report = round_trip(source, tmp_path / "dst")
    assert report.contents.left_out == ()
    weights = mx.load(str(source / "model.safetensors"))
    assert report.source_bytes == sum(a.nbytes for a in weights.values())


def test_tensors_that_the_model_has_no_place_for(tmp_path, capsys):
    text = {k: MOE[k] for k in MOE if "moe" not in k and "expert" not in k}
    text |= {"model_type": "qwen3_vl_text", "tie_word_embeddings": True}
    config = {"model_type": "qwen3_vl", "text_config": text}
    tensors = random_tensors(config)
    for block in range(5):
        name = f"vision_tower.blocks.{block}.weight"
        tensors[name] = mx.random.normal((64, 64)).astype(mx.bfloat16)
    source = write(tmp_path / "src", config, tensors)
    report = round_trip(source, tmp_path / "dst")
    assert [each.name for each in report.contents.left_out] == [
        f"vision_tower.blocks.{block}.weight" for block in range(5)
    ]
    assert {(each.dtype, each.nbytes) for each in report.contents.left_out} == {
        ("BF16", 8192)
    }
    assert "5 tensors of the source (0.04 MB) left out" in report.summary()
    assert report.to_dict()["file_bytes"] == report.source_bytes + 5 * 8192
    for arguments in (
        ["inspect", str(tmp_path / "dst")],
        ["verify", str(tmp_path / "dst"), "--against", str(source)],
    ):
        assert main(arguments) == 0
        assert "vision_tower.blocks.0.weight" in capsys.readouterr().out


def test_verify_notices_what_was_left_out_in_silence(tmp_path):
    source = tiny.write_model(tmp_path / "src")
    mlx_entropy.convert(source, tmp_path / "dst")
    tensors = dict(mx.load(str(source / "model.safetensors")))
    # Llama drops tables of frequencies.
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[extra] = mx.arange(1.0, 65.0)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    found = mlx_entropy.verify(tmp_path / "dst", source)
    assert {each.name for each in found.mismatches} == {extra}


def test_stacked_experts_are_kept(tmp_path):
    tensors = {}
    for name, array in random_tensors(MOE).items():
        if "switch_mlp" not in name:
            tensors[name] = array
            continue
        for expert in range(4):
            path = name.replace("switch_mlp", f"experts.{expert}")
            tensors[path] = array[expert]
    source = write(tmp_path / "src", MOE, tensors)
    report = round_trip(source, tmp_path / "dst")
    assert report.contents.left_out == ()
    assert report.contents.tensors == len(tensors)


@pytest.mark.parametrize("equal", [True, False])
def test_head_that_is_dropped_for_the_embedding(tmp_path, equal):
    config = MOE | {"tie_word_embeddings": True}
    tensors = random_tensors(config)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding if equal else embedding + 1
    source = write(tmp_path / "src", config, tensors)
    found = round_trip(source, tmp_path / "dst").contents.left_out
    assert [each.name for each in found] == ["lm_head.weight"] * (not equal)


def eight_bit_floats(folder: Path) -> tuple[Path, set[str]]:
    source = tiny.write_model(folder)
    file = source / "model.safetensors"
    tensors = dict(mx.load(str(file)))
    names = {name for name in tensors if "mlp" in name}
    for name in names:
        tensors[name] = mx.to_fp8(tensors[name])
    mx.save_safetensors(str(file), tensors)
    rewrite_as(file, "F8_E4M3", names)
    return source, names


def test_other_types_are_refused(tmp_path):
    source, _ = eight_bit_floats(tmp_path / "src")
    message = refusal(source)
    assert "F8_E4M3" in message
    assert "model.layers.0.mlp" in message
    assert "--as-loaded" in message
    assert main(["convert", str(source), str(tmp_path / "dst")]) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["src"]


def test_other_types_as_they_are_loaded(tmp_path):
    source, names = eight_bit_floats(tmp_path / "src")
    report = round_trip(source, tmp_path / "dst", as_loaded=True)
    assert {each.name for each in report.contents.left_out} == names
    assert {each.reason for each in report.contents.left_out} == {
        "mlx-lm makes U8 of F8_E4M3 on loading"
    }


@pytest.mark.parametrize("equal", [True, False])
def test_tensor_in_two_files(tmp_path, equal):
    source = tiny.write_model(tmp_path / "src")
    norm = mx.load(str(source / "model.safetensors"))["model.norm.weight"]
    other = {"model.norm.weight": norm if equal else norm + 1}
    mx.save_safetensors(str(source / "model-2.safetensors"), other)
    if equal:
        open_source(source)
        return
    message = refusal(source)
    for part in ("model.safetensors", "model-2.safetensors", "model.norm"):
        assert part in message


def left_out_of(
    folder: Path,
    stored: dict[str, mx.array],
    make: Callable[[dict[str, mx.array]], dict[str, mx.array]],
) -> dict[str, str]:
    """Names and reasons when a model makes its parameters of `stored`."""
    file = folder / "model.safetensors"
    mx.save_safetensors(str(file), stored)
    loaded = mx.load(str(file))
    module = Module("", "other", make(dict(loaded)))
    files = StoredFiles.read([file])
    found = left_out(files, dict(loaded), [module])
    return {each.name: each.reason for each in found}


@pytest.mark.parametrize(
    "make",
    [
        lambda w: {"renamed": w["a"], "b": w["b"]},
        lambda w: {"a": w["a"].swapaxes(1, 2), "b": w["b"] * 1},
        lambda w: {"a": w["a"][:, :8], "c": w["a"][:, 8:], "b": w["b"]},
        lambda w: {"ab": mx.concatenate([w["a"], w["b"]])},
        lambda w: {"ab": mx.stack([w["a"], w["b"]]).swapaxes(2, 3)},
        lambda w: {"a": w["a"].view(mx.uint16), "b": w["b"].reshape(-1)},
    ],
)
def test_recoverable_changes(tmp_path, make):
    stored = {
        name: mx.random.normal((4, 16, 32)).astype(mx.bfloat16)
        for name in ("a", "b")
    }
    assert left_out_of(tmp_path, stored, make) == {}


def test_channels_last(tmp_path):
    stored = {"conv": mx.random.normal((8, 3, 5, 7))}
    made = left_out_of(
        tmp_path, stored, lambda w: {"conv": mx.moveaxis(w["conv"], 1, -1)}
    )
    assert made == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a + 1, "mlx-lm changes its values on loading"),
        (lambda a: a[:, ::-1] * 1, "mlx-lm changes its values on loading"),
        (
            lambda a: a.astype(mx.float16),
            "mlx-lm makes F16 of F32 on loading",
        ),
    ],
)
def test_changes_that_lose_the_bytes(tmp_path, change, reason):
    stored = {"a": mx.random.normal((3, 64)), "b": mx.zeros((2,))}
    found = left_out_of(
        tmp_path, stored, lambda w: {"a": change(w["a"]), "b": w["b"]}
    )
    assert found == {"a": reason}
