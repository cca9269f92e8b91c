"""Models of a real model's shape with random weights, as mlx-lm reads them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .shapes import ModelShape

# Type of the norms, which that of the activations follows, and of the scales.
# With float32 norms the activations are float32 whatever the scales are, as in
# models that were converted from GGUF files.
DTYPES = {
    "float32": (mx.float32, mx.float16),
    "float16": (mx.float16, mx.float16),
    "bfloat16": (mx.bfloat16, mx.bfloat16),
}

# Weights made at a time: bounds the memory that a wide embedding takes.
_CHUNK = 1 << 25


class Gaussian:
    """Gaussian matrices, made faster than by drawing each weight.

    A row is the sum of two windows of a long list of drawn values, which is
    Gaussian again; hardly any two rows share both windows.
    """

    _POOL = 1 << 22

    def __init__(self, seed: int, longest: int) -> None:
        self._random = np.random.default_rng(seed)
        size = self._POOL + longest
        self._pool = self._random.standard_normal(size, np.float32)

    def rows(self, rows: int, cols: int, scale: float) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(self._pool, cols)
        first, second = self._random.integers(0, self._POOL, (2, rows))
        values: np.ndarray = windows[first]
        values += windows[second]
        values *= np.float32(scale / np.sqrt(2))
        return values


def write_model(
    shape: ModelShape,
    out: str | os.PathLike[str],
    *,
    bits: int = 4,
    group_size: int = 64,
    dtype: str = "float32",
    layers: int | None = None,
    seed: int = 0,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Write a quantized model directory; `layers` makes it shallower.

    One file a layer, each written before the next one is made. `dtype` is
    that of the activations. FileExistsError if `out` is there; ValueError for
    bits or groups that MLX does not have.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists")
    count = shape.layers if layers is None else layers
    if not 1 <= count <= shape.layers:
        raise ValueError(f"a {shape.name} model has 1 to {shape.layers} layers")
    with scratch_beside(out) as partial:
        partial.mkdir()
        make = _Tensors(shape, bits, group_size, dtype, seed)
        index: dict[str, str] = {}
        total = 0
        for number, tensors in enumerate(make.shards(count), 1):
            name = f"model-{number:05d}-of-{count + 1:05d}.safetensors"
            mx.save_safetensors(str(partial / name), tensors, {"format": "mlx"})
            index |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
            if notify is not None:
                notify(f"{number} of {count + 1} files, {total / 1e9:.2f} GB")
        quantization = {
            "group_size": group_size,
            "bits": bits,
            "mode": "affine",
        }
        config = shape.config(count)
        config |= {
            "quantization": quantization,
            "quantization_config": quantization,
        }
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", {"eos_token_id": 2})
        _write_json(
            partial / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": index},
        )
        write_tokenizer(partial)
        partial.rename(out)
    return out


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Where to write what will be `out`, in a folder that nobody else has."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = ".mlx-entropy-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as scratch:
        yield Path(scratch) / out.name


class _Tensors:
    """The tensors of a model, a file at a time."""

    def __init__(
        self,
        shape: ModelShape,
        bits: int,
        group_size: int,
        dtype: str,
        seed: int,
    ) -> None:
        self._shape = shape
        self._bits = bits
        self._group_size = group_size
        self._norms, self._scales = DTYPES[dtype]
        widest = max(cols for _, cols in shape.layer().values())
        self._random = Gaussian(seed, widest)

    def shards(self, layers: int) -> Iterator[dict[str, mx.array]]:
        shape = self._shape
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            tensors = {
                f"{prefix}.input_layernorm.weight": self._norm(),
                f"{prefix}.post_attention_layernorm.weight": self._norm(),
            }
            for name, (rows, cols) in shape.layer().items():
                tensors |= self._matrix(f"{prefix}.{name}", rows, cols)
            yield tensors
        tensors = {"model.norm.weight": self._norm()}
        tables = ["model.embed_tokens"] + ["lm_head"] * (not shape.tied)
        for name in tables:
            tensors |= self._matrix(name, shape.vocabulary, shape.hidden)
        yield tensors

    def _norm(self) -> mx.array:
        return mx.ones(self._shape.hidden, self._norms)

    def _matrix(self, path: str, rows: int, cols: int) -> dict[str, mx.array]:
        step = max(1, _CHUNK // cols)
        parts = []
        for start in range(0, rows, step):
            count = min(step, rows - start)
            dense = mx.array(self._random.rows(count, cols, cols**-0.5))
            part = mx.quantize(
                dense.astype(self._scales), self._group_size, self._bits
            )
            mx.eval(part)
            parts.append(part)
        names = ("weight", "scales", "biases")
        tensors = {
            f"{path}.{name}": mx.concatenate([part[i] for part in parts])
            for i, name in enumerate(names)
        }
        mx.eval(tensors)
        return tensors


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a letter: enough for mlx-lm to load."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: i + 3 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    _write_json(folder / "tokenizer_config.json", about)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
