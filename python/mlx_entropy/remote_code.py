"""Running the Python file that a model was built by before conversion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import without_bytecode
from .model_format import CONFIG_KEY, OWN_MODEL_FILE, Config
from .sources.base import stays_inside


def own_classes(
    directory: Path, config: Config, trusted: bool
) -> Callable[..., tuple[Any, Any]] | None:
    """What gives the classes of a model with a Python file of its own.

    None for models that mlx-lm knows; ValueError unless it may run.
    """
    name = config[CONFIG_KEY].get(OWN_MODEL_FILE)
    if name is None:
        return None
    if not isinstance(name, str) or not stays_inside(name):
        raise ValueError(f"{directory / 'config.json'}: {name!r} is no file")
    file = directory / name
    if not trusted:
        raise ValueError(
            f"{directory} is built by Python code of its own ({name}); "
            "trust_remote_code (--trust-remote-code) runs it"
        )

    def classes(config: Config) -> tuple[Any, Any]:
        # As mlx-lm does for the model that was converted.
        spec = importlib.util.spec_from_file_location("custom_model", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with without_bytecode():
            spec.loader.exec_module(module)
        return module.Model, module.ModelArgs

    return classes
