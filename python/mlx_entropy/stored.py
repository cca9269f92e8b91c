"""Reading a converted model directory, one module at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import _ext
from .damage import find_damage
from .files import user_path
from .mlx_lm_files import plain_path
from .model_format import CODED, CONFIG_KEY, check_format, marked_config
from .sources import hub
from .sources.base import LeftOut, SourceError
from .sources.safetensors_file import StoredTensor, read_header


class StoredModel:
    """A directory that `convert` wrote; ValueError if it is not one.

    Names and sizes come from the file headers; data is read by `load`. A model
    that lacks tensors of its index is refused unless `incomplete`.
    """

    def __init__(self, path: str | Path, incomplete: bool = False) -> None:
        self.path = user_path(path)
        if not self.path.is_dir():
            raise SourceError(
                f"no model directory at {self.path}{hub.absent(str(path))}"
            )
        config = marked_config(self.path)
        if config is None:
            if (hint := hub.inside(self.path)) != "":
                raise SourceError(f"{self.path} has no config.json{hint}")
            if (damage := find_damage(self.path)) is not None:
                raise SourceError(damage)
            raise SourceError(
                f"{self.path} is not entropy-coded; "
                "run mlx-entropy convert on it first"
            )
        check_format(config)
        self.config = config
        self.about: dict[str, Any] = self.config[CONFIG_KEY]
        self.left_out = self._left_out()
        self.files = sorted(self.path.glob("model*.safetensors"))
        self.tensors = self._headers()
        index = self.path / "model.safetensors.index.json"
        if index.is_file() and not incomplete:
            self._check_index(index, self.tensors)
        self._open: tuple[str, dict[str, mx.array]] = ("", {})

    def _left_out(self) -> tuple[LeftOut, ...]:
        """Tensors of the source that are not here; old models name none."""
        try:
            return tuple(
                LeftOut(**tensor) for tensor in self.about.get("left_out", ())
            )
        except TypeError:
            raise SourceError(
                f"{self.path / 'config.json'}: {CONFIG_KEY}.left_out is damaged"
            ) from None

    def _headers(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, tensor in read_header(file).items():
                if name in tensors:
                    raise SourceError(
                        f"{name} is in {tensors[name].file} and {file.name}"
                    )
                tensors[name] = tensor
        if not tensors:
            raise SourceError(f"{self.path} holds no model*.safetensors")
        return tensors

    def _check_index(
        self, index: Path, tensors: dict[str, StoredTensor]
    ) -> None:
        try:
            names = set(json.loads(index.read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{index}: damaged index") from error
        if missing := sorted(names - tensors.keys()):
            raise SourceError(
                f"{self.path} lacks {len(missing)} tensors of its index, "
                f"first {missing[0]}"
            )

    def modules(self) -> Iterator[tuple[str, list[str]]]:
        """Paths of the modules and the names of their parameters.

        In the order of the files, i.e. that of the conversion.
        """
        grouped: dict[str, list[str]] = {}
        ordered = sorted(
            self.tensors.items(), key=lambda item: (item[1].file, item[1].start)
        )
        for name, _ in ordered:
            path, _, parameter = name.rpartition(".")
            grouped.setdefault(path, []).append(parameter)
        yield from grouped.items()

    def load(self, name: str) -> mx.array:
        """The tensor `name`; ValueError if MLX cannot read it."""
        file = self.tensors[name].file
        if self._open[0] != file or name not in self._open[1]:
            self._open = (file, self._read(file))
        # Popped, or the evaluated data would stay in memory.
        array = self._open[1].pop(name, None)
        if array is None:
            raise SourceError(f"{file} changed while it was read")
        mx.eval(array)
        return array

    def decode(self, name: str) -> dict[str, mx.array]:
        """What the coded tensor `name` holds: weight, and scales and biases.

        Experts have an axis of their own. ValueError if it is damaged.
        """
        coded = self.load(name)
        info = _ext.validate(coded)
        if info.scheme == "affine":
            names = ("weight", "scales", "biases")
            parts = dict(zip(names, _ext.decode_affine(coded), strict=True))
        elif info.scheme == "float":
            parts = {"weight": _ext.decode_float(coded)}
        else:
            raise ValueError(f"holds {info.scheme}, not weights")
        experts = self._experts.get(name.removesuffix(f".{CODED}"))
        if experts is None:
            return parts
        return {
            part: array.reshape(experts, -1, array.shape[-1])
            for part, array in parts.items()
        }

    @property
    def _experts(self) -> dict[str, int]:
        experts = self.about.get("experts")
        return experts if isinstance(experts, dict) else {}

    def _read(self, file: str) -> dict[str, mx.array]:
        try:
            with plain_path(self.path) as path:
                arrays = mx.load(str(path / file))
        except RuntimeError as error:
            raise SourceError(f"cannot read {file}: {error}") from error
        assert isinstance(arrays, dict)  # What safetensors files hold.
        return arrays
