"""Models to convert, and how they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from helpers import gguf_writer
from mlx_entropy.sources import Source, SourceError, open_source


def write_gguf(folder: Path, writer: gguf_writer.GgufWriter) -> Path:
    file = folder / "tiny.gguf"
    file.write_bytes(writer.build())
    return file


def write_stock(source: Source, folder: Path) -> Path:
    """The source's modules, unchanged, as a directory for stock mlx-lm."""
    folder.mkdir()
    arrays = {
        f"{module.path}.{name}": array
        for module in source.modules()
        for name, array in module.tensors.items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (folder / "config.json").write_text(json.dumps(source.config))
    for name, content in source.assets().files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(spec: str | Path) -> str:
    """The message with which `spec` is refused: always a single line."""
    with pytest.raises(SourceError) as caught:
        open_source(spec)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 500
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Content of every file under `folder` by its relative name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
