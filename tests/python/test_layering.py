"""The folders of src/ include only what is below them."""

import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

# base <- format <- {codec, quant} <- {convert, kernels}, kernels <- model,
# and all of them <- mlx
ALLOWED = {
    "base": set(),
    "format": {"base"},
    "codec": {"base", "format"},
    "quant": {"base", "format"},
    "convert": {"base", "format", "codec", "quant", "kernels"},
    "kernels": {"base", "format", "codec", "quant"},
    "model": {"base", "format", "codec", "quant", "kernels"},
    "mlx": {
        "base",
        "format",
        "codec",
        "quant",
        "convert",
        "kernels",
        "model",
    },
}


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_includes_point_down(layer):
    files = [*(SRC / layer).rglob("*.h"), *(SRC / layer).rglob("*.cpp")]
    assert files
    for path in files:
        for include in re.findall(r'#include "([^"]+)"', path.read_text()):
            below = include.split("/")[0]
            assert below == layer or below in ALLOWED[layer], (
                f"{path.relative_to(SRC)} includes {include}"
            )


def test_every_folder_has_a_rule():
    assert {p.name for p in SRC.iterdir() if p.is_dir()} == set(ALLOWED)
