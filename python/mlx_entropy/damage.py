"""Which file it is, when loading a model fails and the error does not say."""

from __future__ import annotations

import json
from pathlib import Path

from .sources.base import SourceError
from .sources.safetensors_file import read_header

# What these hold is an object, whatever else is in a directory.
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
)


def find_damage(directory: Path) -> str | None:
    """A sentence about the first file that cannot be read, None if all can.

    Reads every JSON file and every header, so it is for after a failure.
    """
    for file in sorted(directory.glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
        except OSError as error:
            return f"cannot read {file}: {error.strerror}"
        except (ValueError, RecursionError) as error:
            return f"{file} is not valid JSON: {error}"
        if file.name in _OBJECTS and not isinstance(content, dict):
            return f"{file} is damaged: it holds no JSON object"
    for file in sorted(directory.glob("*.safetensors")):
        try:
            read_header(file)
        except SourceError as error:
            return str(error)
    return None
