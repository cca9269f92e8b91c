"""The config that convert writes builds the model again."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import utils

import mlx_entropy
from helpers import llama, tiny
from helpers.stock import MOE
from mlx_entropy.nn.coded import EntropyCoded


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def same_logits(source, folder):
    stock, _ = utils.load_model(source)
    coded, config = llama.load_registered(folder)
    tokens = mx.array([[1, 2, 3, 5, 8]])
    expected, found = stock(tokens), coded(tokens)
    error = mx.linalg.norm(found - expected) / mx.linalg.norm(expected)
    assert error.item() <= 1e-3
    return coded, config


@pytest.mark.parametrize("place", ["top", "text"])
def test_layers_built_from_the_config(tmp_path, place):
    """BitNet's packed layers are described by quantization_config alone."""
    source = tiny.write_model(tmp_path / "src")
    tensors = dict(mx.load(str(source / "model.safetensors")))
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        rows, cols = tensors[name].shape
        tensors[name] = mx.random.randint(0, 170, (rows // 4, cols)).astype(
            mx.uint8
        )
        scale = name.replace(".weight", ".weight_scale")
        tensors[scale] = mx.array([0.5], mx.bfloat16)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    method = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "modules_to_not_convert": ["lm_head"],
    }
    if place == "top":
        edit_config(source, quantization_config=method)
    else:
        edit_config(source, text_config={"quantization_config": method})
    mlx_entropy.convert(source, tmp_path / "dst")
    assert mlx_entropy.verify(tmp_path / "dst", source).identical
    coded, _ = llama.load_registered(tmp_path / "dst")
    kinds = {type(m).__name__ for _, m in coded.named_modules()}
    assert {"BitLinear", "EntropyCodedLinear"} <= kinds


def test_entries_that_leave_out_defaults(tmp_path):
    """Entries need not have a mode; raw layers' entries get all fields."""
    noise = "model.layers.0.mlp.up_proj"
    source = tiny.write_model(
        tmp_path / "src",
        quantization=tiny.affine(4),
        overrides={noise: tiny.affine(8)},
        noise=(noise,),
    )
    quantization = tiny.affine(4) | {noise: {"bits": 8}}
    edit_config(source, quantization=quantization)
    mlx_entropy.convert(source, tmp_path / "dst")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["quantization"][noise] == tiny.affine(8)
    rows = mlx_entropy.inspect(tmp_path / "dst").tensors
    row = next(row for row in rows if row.name == f"{noise}.weight")
    assert (row.codec, row.bits, row.group_size) == ("raw", 8, 64)
    coded, _ = llama.load_registered(tmp_path / "dst")
    assert type(coded.model.layers[0].mlp.up_proj) is nn.QuantizedLinear


def test_global_scale_of_raw_experts(tmp_path):
    """nvfp4 experts may have one, which their entry must say."""
    config = MOE | {"quantization": dict(tiny.affine(4))}
    model_class, args = utils._get_classes(config)
    model = model_class(args.from_dict(config))
    llama.randomize(model, mx.float32)
    own = {"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": True}

    def settings(path, module):
        if path.endswith("switch_mlp.down_proj"):
            config["quantization"][path] = own
            return own
        return hasattr(module, "to_quantized")

    nn.quantize(model, 64, 4, class_predicate=settings)
    source = llama.save(tmp_path / "src", model, config)
    mlx_entropy.convert(source, tmp_path / "dst")
    assert mlx_entropy.verify(tmp_path / "dst", source).identical
    # Stock MLX multiplies with it on GPUs only.
    _, config = llama.load_registered(tmp_path / "dst")
    assert config["quantization"] == {
        **tiny.affine(4),
        **{
            f"model.layers.{i}.mlp.switch_mlp.down_proj": own
            for i in range(MOE["num_hidden_layers"])
        },
    }


def test_model_that_would_not_load_is_not_published(tmp_path, monkeypatch):
    source = tiny.write_model(tmp_path / "src")

    def fail(*_):
        raise KeyError("no such layer")

    monkeypatch.setattr("mlx_entropy.loading._swap", fail)
    with pytest.raises(ValueError, match=r"cannot load what became of.*layer"):
        mlx_entropy.convert(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    monkeypatch.undo()
    mlx_entropy.convert(source, tmp_path / "dst")
    model, _ = llama.load_registered(tmp_path / "dst")
    assert any(isinstance(m, EntropyCoded) for _, m in model.named_modules())


def test_structure_check_keeps_no_weights(tmp_path):
    """Peak memory while it loads: far less than the model."""
    from mlx_entropy.loading import check_structure

    source = tiny.write_model(tmp_path / "src")
    mlx_entropy.convert(source, tmp_path / "dst")
    tensors = mx.load(str(tmp_path / "dst" / "model.safetensors"))
    total = sum(a.nbytes for a in tensors.values())
    largest = max(a.nbytes for a in tensors.values())
    del tensors
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    check_structure(tmp_path / "dst")
    assert mx.get_peak_memory() - before < max(total / 3, 2 * largest)


def test_config_of_plain_models_says_nothing_of_quantization(tmp_path):
    source = tiny.write_model(
        tmp_path / "src", dtype=mx.float32, quantization=tiny.affine(4)
    )
    mlx_entropy.convert(source, tmp_path / "dst")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    same_logits(source, tmp_path / "dst")
