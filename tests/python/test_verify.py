"""`verify` finds every kind of difference and names the tensor."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from helpers import tiny
from mlx_entropy.conversion import convert
from mlx_entropy.sources.base import SourceError
from mlx_entropy.verification import difference, verify

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def out(tmp_path: Path, model: Path) -> Path:
    convert(model, tmp_path / "out")
    return tmp_path / "out"


def rewrite(folder: Path, **changes: mx.array | None) -> None:
    """Replace, add or (None) drop tensors; `__` in a name is a dot."""
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    mx.eval(arrays)
    for name, array in changes.items():
        name = name.replace("__", ".")
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    mx.save_safetensors(file, arrays, {"format": "mlx"})


def problems(out: Path, model: Path) -> dict[str, str]:
    report = verify(out, model)
    assert report.identical == (not report.mismatches)
    return {found.name: found.problem for found in report.mismatches}


def test_identical(out: Path, model: Path) -> None:
    report = verify(out, model)
    assert report.identical
    assert report.tensors == len(mx.load(str(model / "model.safetensors")))


@pytest.mark.parametrize("offset", [0, 9, 200, 5000])
def test_damaged_coded_tensor(out: Path, model: Path, offset: int) -> None:
    tiny.flip_byte(out, f"{UP}.coded", offset)
    assert problems(out, model).keys() == {f"{UP}.coded"}


def test_damaged_raw_tensor(out: Path, model: Path) -> None:
    tiny.flip_byte(out, "model.norm.weight", 1)
    assert problems(out, model) == {
        "model.norm.weight": f"1 of {tiny.HIDDEN} values differ"
    }


def test_missing_tensor(out: Path, model: Path) -> None:
    rewrite(out, model__norm__weight=None)
    assert problems(out, model) == {"model.norm.weight": "is missing"}


def test_missing_coded_tensor(out: Path, model: Path) -> None:
    rewrite(out, lm_head__coded=None)
    assert set(problems(out, model)) == {
        "lm_head.weight",
        "lm_head.scales",
        "lm_head.biases",
    }


def test_extra_tensor(out: Path, model: Path) -> None:
    rewrite(out, model__extra__weight=mx.zeros(3))
    assert problems(out, model) == {
        "model.extra.weight": "is not in the source"
    }


def test_wrong_type(out: Path, model: Path) -> None:
    rewrite(out, model__norm__weight=mx.ones(tiny.HIDDEN))
    assert "float32" in problems(out, model)["model.norm.weight"]


def test_another_source(out: Path, tmp_path: Path) -> None:
    other = tiny.write_model(
        tmp_path / "other",
        quantization=tiny.affine(4),
        noise=(f"{UP}",),
    )
    found = problems(out, other)
    assert f"{UP}.weight" in found
    assert all(name.startswith(UP) for name in found)


def test_other_bits(out: Path, tmp_path: Path) -> None:
    other = tiny.write_model(tmp_path / "other", quantization=tiny.affine(3))
    assert "shape" in problems(out, other)["lm_head.weight"]


def test_every_bit_pattern(tmp_path: Path) -> None:
    """NaN payloads, infinities, denormals and signed zeros survive."""
    patterns = mx.arange(1 << 16).astype(mx.uint16).view(mx.bfloat16)
    model = tiny.write_model(tmp_path / "model")
    file = str(model / "model.safetensors")
    arrays = dict(mx.load(file))
    mx.eval(arrays)
    shape = arrays["model.layers.0.self_attn.q_proj.weight"].shape
    assert np.prod(shape) == 1 << 16
    arrays["model.layers.0.self_attn.q_proj.weight"] = patterns.reshape(shape)
    # Few enough bit patterns to be worth coding.
    repeated = mx.concatenate([patterns[-256:]] * (1 << 8))
    arrays["model.layers.1.self_attn.q_proj.weight"] = repeated.reshape(shape)
    mx.save_safetensors(file, arrays, {"format": "mlx"})
    report = convert(model, tmp_path / "out")
    assert verify(tmp_path / "out", model).identical
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons["model.layers.1.self_attn.q_proj.weight"] is None


def test_unconverted_model(model: Path) -> None:
    with pytest.raises(SourceError, match="not entropy-coded"):
        verify(model, model)


def test_difference() -> None:
    nan = mx.array([mx.nan, 0.0])
    assert difference(nan, nan) is None
    assert difference(nan, mx.array([mx.nan, -0.0])) == "1 of 2 values differ"
    assert "shape" in (difference(nan, nan.reshape(1, 2)) or "")
    assert "type" in (difference(nan, nan.astype(mx.float16)) or "")
    assert difference(mx.array(1.5), mx.array(1.5)) is None
    assert difference(mx.zeros((0, 3)), mx.zeros((0, 3))) is None
