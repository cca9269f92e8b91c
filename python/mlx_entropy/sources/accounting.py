"""What becomes of each tensor of a source's files, by its own bytes.

mlx-lm's models edit a checkpoint when they load it: they rename tensors,
stack experts, cast, and drop what they have no place for. Whether a converted
model holds every bit of a *file* is therefore a question of its own. A tensor
of the file is kept if a parameter is that very array, or if its bytes are
found in parameters that the model made of others, in whole or in equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import _ext
from ..model_format import full_name
from ..tensors import DTYPE_NAMES, as_bytes
from .base import LeftOut, Module, SourceError, quoted
from .safetensors_file import (
    StoredTensor,
    data_bytes,
    read_header,
    tensor_bytes,
)

# Shorter parts than this are found anywhere.
_LEAST_PART = 64
_START = 4096
# How a part of a tensor is known: its bytes and their hash.
_Part = tuple[int, int]


@dataclass(frozen=True)
class StoredFiles:
    """The tensors of the weight files of a directory, by name."""

    directory: Path
    tensors: dict[str, StoredTensor]
    _mapped: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[Path]) -> StoredFiles:
        """SourceError names a tensor that two files have differently."""
        tensors: dict[str, StoredTensor] = {}
        directory = Path()
        for file in files:
            directory = file.parent
            for name, stored in read_header(file).items():
                other = tensors.setdefault(name, stored)
                if other is not stored:
                    _check_equal(directory, name, other, stored)
        return cls(directory, tensors)

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor; read as they are used."""
        stored = self.tensors[name]
        if stored.nbytes == 0:
            return np.empty(0, np.uint8)
        if stored.file not in self._mapped:
            path = self.directory / stored.file
            self._mapped[stored.file] = data_bytes(path)
        return self._mapped[stored.file][stored.start : stored.stop]


def _check_equal(
    directory: Path, name: str, one: StoredTensor, other: StoredTensor
) -> None:
    """mlx-lm takes whichever it reads last, so they must be the same."""
    if (one.dtype, one.shape) == (other.dtype, other.shape) and np.array_equal(
        tensor_bytes(directory / one.file, one),
        tensor_bytes(directory / other.file, other),
    ):
        return
    raise SourceError(
        f"{directory}: {one.file} and {other.file} have different tensors "
        f"{quoted(name)}; remove the file that is not part of the model"
    )


def left_out(
    files: StoredFiles, loaded: dict[str, mx.array], modules: list[Module]
) -> tuple[LeftOut, ...]:
    """The tensors of the files whose bytes no parameter of the model holds.

    `loaded` are the arrays that mlx-lm read, by the file's names, `modules`
    the model's. Both are emptied: arrays that the model made of others are
    evaluated one at a time, and nothing may keep what they are made of.
    """
    passed = _passed_on(files, loaded, modules)
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in passed:
        alike.setdefault(_form(files, name), []).append(name)
    unknown = {
        name: stored
        for name, stored in files.tensors.items()
        if name not in passed
        and not _is_copy(files, name, alike.get(_form(files, name), ()))
    }
    types = {
        full_name(module.path, name): array.dtype
        for module in modules
        for name, array in module.tensors.items()
    }
    made = _made(loaded, modules)
    modules.clear()
    loaded.clear()
    parts = _parts_of(made, unknown)
    part_sizes = {size for size, _ in parts}
    return tuple(
        LeftOut(
            name,
            stored.file,
            stored.dtype,
            stored.nbytes,
            _reason(stored, types.get(name)),
        )
        for name, stored in unknown.items()
        if not _is_found(files.data(name), stored, parts, part_sizes)
    )


def _passed_on(
    files: StoredFiles, loaded: dict[str, mx.array], modules: list[Module]
) -> set[str]:
    """Names of the files' tensors that are parameters as they are."""
    quantized: dict[int, bool] = {}
    for module in modules:
        for array in module.tensors.values():
            quantized[id(array)] = module.quantization is not None
    names = set()
    for name, array in loaded.items():
        # MLX has no 8-bit floats: those of a quantized layer are its integers.
        of_its_type = DTYPE_NAMES.get(array.dtype) == files.tensors[name].dtype
        if id(array) in quantized and (of_its_type or quantized[id(array)]):
            names.add(name)
    return names


def _form(files: StoredFiles, name: str) -> tuple[str, tuple[int, ...]]:
    return files.tensors[name].dtype, files.tensors[name].shape


def _is_copy(files: StoredFiles, name: str, alike: Iterable[str]) -> bool:
    """Whether it equals a tensor that is kept, as a tied head does."""
    data = files.data(name)
    return any(_are_equal(data, files.data(other)) for other in alike)


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    # The start nearly always tells, and saves reading the rest.
    return bool(
        np.array_equal(one[:_START], other[:_START])
        and np.array_equal(one, other)
    )


def _made(loaded: dict[str, mx.array], modules: list[Module]) -> list[mx.array]:
    """The parameters that the model made of others."""
    read = {id(array) for array in loaded.values()}
    return [
        array
        for module in modules
        for array in module.tensors.values()
        if id(array) not in read
    ]


def _reason(stored: StoredTensor, dtype: mx.Dtype | None) -> str:
    if dtype is None:
        return "mlx-lm's model does not hold it"
    kind = DTYPE_NAMES.get(dtype, str(dtype))
    if kind != stored.dtype:
        return f"mlx-lm makes {kind} of {stored.dtype} on loading"
    return "mlx-lm changes its values on loading"


def _part_sizes(stored: StoredTensor) -> set[int]:
    """Bytes of the parts that models cut such a tensor into, or make it of.

    The whole, a slice along the first axis (an expert), and half of one (gate
    and up in one matrix).
    """
    sizes = {stored.nbytes}
    first = stored.shape[0] if len(stored.shape) > 1 else 1
    for count in (2, first, 2 * first):
        if count and stored.nbytes % count == 0:
            sizes.add(stored.nbytes // count)
    return {size for size in sizes if size >= _LEAST_PART} | {stored.nbytes}


def _parts_of(
    arrays: list[mx.array], unknown: Mapping[str, StoredTensor]
) -> set[_Part]:
    """Every part of the arrays that may be of an unknown tensor."""
    sizes = {
        size for stored in unknown.values() for size in _part_sizes(stored)
    }
    parts: set[_Part] = set()
    while arrays:
        # Not bound to a name, or it would outlive the evaluation of the next.
        parts.update(_cut(arrays.pop(), sizes))
        mx.clear_cache()
    return parts


def _cut(array: mx.array, sizes: set[int]) -> Iterator[_Part]:
    for size in sizes:
        if size and array.nbytes and array.nbytes % size == 0:
            yield from _hashes(np.frombuffer(as_bytes(array), np.uint8), size)


def _hashes(data: np.ndarray, size: int) -> list[_Part]:
    return [
        (size, _ext.xxh64(data[start : start + size]))
        for start in range(0, data.size, size)
    ]


def _is_found(
    data: np.ndarray,
    stored: StoredTensor,
    parts: set[_Part],
    part_sizes: set[int],
) -> bool:
    """Whether all of a tensor's bytes are among the parts."""
    if stored.nbytes == 0:
        return True
    sizes = sorted(_part_sizes(stored) & part_sizes, reverse=True)
    return any(
        set(_hashes(view, size)) <= parts
        for size in sizes
        for view in _views(data, stored)
    )


def _views(data: np.ndarray, stored: StoredTensor) -> Iterator[np.ndarray]:
    """The bytes in the orders that models store weights in.

    As in the file; rows and columns exchanged; channels last, as MLX has the
    weights of convolutions.
    """
    yield data
    if len(stored.shape) < 2:
        return
    width = stored.nbytes // math.prod(stored.shape)
    values = data.reshape(*stored.shape, width)
    yield _flat(values.swapaxes(-3, -2))
    if len(stored.shape) > 3:
        yield _flat(np.moveaxis(values, 1, -2))


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1)


class RecordedLoads:
    """`mlx.core` for mlx-lm's loader, which keeps what `load` has returned.

    mlx-lm does not say which array became which parameter. Arrays that its
    models pass on are the same Python objects, so this is enough to tell.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, mx.array] = {}

    def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        found = mx.load(file, *args, **kwargs)
        if isinstance(found, dict):
            self.arrays.update(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)
