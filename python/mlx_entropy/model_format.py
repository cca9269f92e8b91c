"""What marks a converted model: its config entry, its names, its version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Config = dict[str, Any]

CONFIG_KEY = "mlx_entropy"
"""The entry of config.json that only converted models have."""

FORMAT_VERSION = 1
"""The format that is written, and the newest one that is read."""

CODECS = ("auto", "rans", "tree", "flat")
"""Codecs that coded matrices can have in memory; files have their own."""

CODED = "coded"
"""A coded matrix is the parameter `<path>.coded`, for `<path>.weight`."""

CHECKSUM_FILE = "mlx_entropy_checksums.json"
"""Digests of every stored tensor and of every other file (`checksums`)."""

MODEL_FILE = "mlx_entropy_model.py"
"""What ``config["model_file"]`` names: mlx-lm's way in without `register`."""

OWN_MODEL_FILE = "model_file"
"""The entry of config.json's entry that names the source's own such file."""

MODEL_FILE_SOURCE = '''\
"""Lets mlx-lm load this model when it is told to trust remote code."""

from pathlib import Path

try:
    from mlx_entropy import model_classes_of, register
except ModuleNotFoundError as error:
    raise ImportError("to load this model: pip install mlx-entropy") from error

# mlx-lm does not pass this trust on to a draft model.
register()
Model, ModelArgs = model_classes_of(Path(__file__).parent)
'''


def full_name(path: str, parameter: str) -> str:
    """A tensor's name in a model; the root module's path is empty."""
    return f"{path}.{parameter}" if path else parameter


def marked_config(directory: str | os.PathLike[str]) -> Config | None:
    """config.json of a converted model, None for any other directory.

    ValueError for a converted model whose config.json is damaged.
    """
    path = Path(directory)
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    if is_marked(config):
        return config
    if (path / CHECKSUM_FILE).is_file():
        raise ValueError(
            f"{path / 'config.json'} is damaged: it does not say any more that "
            "the model is entropy-coded"
        )
    return None


def is_marked(config: object) -> bool:
    """Whether the content of a config.json is that of a converted model."""
    return isinstance(config, dict) and CONFIG_KEY in config


def is_converted(directory: str | os.PathLike[str]) -> bool:
    """Whether mlx-entropy wrote the model directory."""
    try:
        return marked_config(directory) is not None
    except ValueError:  # Damaged, but ours.
        return True


def check_format(config: Config) -> None:
    """ValueError unless the config is of a format that this package reads."""
    entry = config.get(CONFIG_KEY)
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(
            f"config.json: {CONFIG_KEY} must have a positive integer "
            f"format_version, got {entry!r}"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the model has format version {version}, newer than the "
            f"{FORMAT_VERSION} that this mlx-entropy reads: "
            "pip install --upgrade mlx-entropy"
        )
