"""What is wrong, when loading a model fails and the error does not say."""

from __future__ import annotations

import json
import traceback
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


# Errors whose message is for the user.
_CLEAR = (ValueError, OSError, RuntimeError, ImportError)


def explanation(
    error: Exception, path: str | Path, adapters: str | Path | None
) -> str | None:
    """What to say instead of an error of mlx-lm's `load`, None for the same.

    `path` and `adapters` are what was to be loaded.
    """
    if "trust_remote_code=True" in str(error):
        return (
            f"the tokenizer of {path} comes with Python code of its own; "
            "trust_remote_code (--trust-remote-code) runs it"
        )
    for directory in (path, adapters):
        if directory is not None and Path(directory).is_dir():
            damage = find_damage(Path(directory))
            if damage is not None:
                return damage
    if not Path(path).is_dir():
        return None  # A name of the Hub's, with an error of the Hub's.
    reason = str(error)
    if not isinstance(error, _CLEAR):
        reason = f"{type(error).__name__}: {reason}"
    if _of_tokenizer(error):
        return f"cannot load the tokenizer of {path}: {reason}"
    if not isinstance(error, _CLEAR):
        return f"mlx-lm cannot load {path}: {reason}"
    return None


def _of_tokenizer(error: Exception) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(f.f_code.co_name == "load_tokenizer" for f, _ in frames)
