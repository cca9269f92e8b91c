"""MLX and Hugging Face model directories, through mlx-lm's own loader."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..damage import find_damage
from ..files import without_bytecode
from ..mlx_lm_files import import_mlx_lm, readable
from ..model_format import MODEL_FILE, full_name, is_marked
from ..nn.layers import kind_of, quantization_of
from ..tensors import DTYPE_NAMES, unpacked_shape
from . import hub
from .accounting import RecordedLoads, StoredFiles, left_out
from .base import (
    Assets,
    Contents,
    Layout,
    Module,
    SourceError,
    quoted,
    read_bytes,
    stays_inside,
)
from .side_files import WeightIndex, read_side_files, refuse_broken_link

# Two threads must not record into each other's loads.
_loading = threading.Lock()

_CHANGED = "mlx-lm changes it on loading"


class DirectorySource:
    """A Source over config.json and model*.safetensors, never written to.

    Raises SourceError when the files are missing, broken or truncated, when
    mlx-lm cannot load the model, or when it is an mlx-entropy model already.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        as_loaded: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name or str(path)
        self._path = path
        self._stored_config = _read_config(path)
        self._model_file = _model_file(path, self._stored_config)
        if self._model_file is not None and not trust_remote_code:
            raise SourceError(
                f"{path} is built by Python code of its own "
                f"({self._model_file}); trust_remote_code "
                "(--trust-remote-code) runs it"
            )
        digest = hashlib.sha256(read_bytes(path / "config.json"))
        weight_files = _weight_files(path)
        for file in weight_files:
            refuse_broken_link(file)
            status = file.stat()
            identity = (file.name, status.st_size, status.st_mtime_ns)
            digest.update(repr(identity).encode())
        files = StoredFiles.read(weight_files)
        digest.update(repr(files.tensors).encode())
        self.fingerprint = digest.hexdigest()
        self._index = WeightIndex(path, files.tensors)
        with _recorded_loads() as loaded:
            modules, config = self._load()
        self._layout = [Layout(each.path, each.nbytes) for each in modules]
        self.contents = Contents(
            len(files.tensors),
            sum(stored.nbytes for stored in files.tensors.values()),
            left_out(files, loaded, modules),
        )
        if not as_loaded:
            self._refuse_other_types()
        # mlx-lm turns other packages' quantization into its own on loading,
        # and the modules are those after loading.
        self.config = dict(self._stored_config)
        for key in ("quantization", "quantization_config"):
            if key in config:
                self.config[key] = config[key]

    def _refuse_other_types(self) -> None:
        """A copy in another type is no copy; MLX lacks 8-bit floats."""
        for tensor in self.contents.left_out:
            if tensor.dtype not in DTYPE_NAMES.values():
                raise SourceError(
                    f"{self._path / tensor.file}: tensor "
                    f"{quoted(tensor.name)} is {tensor.dtype} and cannot be "
                    f"kept as it is: {tensor.reason}; as_loaded (--as-loaded) "
                    "converts what mlx-lm makes of the model"
                )

    def layout(self) -> list[Layout]:
        """Every module in mlx-lm's parameter order."""
        return list(self._layout)

    def modules(self, skip: frozenset[str] = frozenset()) -> Iterator[Module]:
        """Modules in `layout` order; nothing is read before it is evaluated.

        Each module leaves this source's hands when it is yielded, so that
        its memory is free once the caller drops it.
        """
        modules, _ = self._load()
        modules.reverse()
        while modules:
            if modules[-1].path in skip:
                modules.pop()
            else:
                yield modules.pop()

    def assets(self) -> Assets:
        """The files that a loader may want beside config.json and weights."""
        assets = read_side_files(self._path, self._model_file)
        if self._index.warning is not None:
            assets.warnings.insert(0, self._index.warning)
        return assets

    def _load(self) -> tuple[list[Module], dict[str, Any]]:
        """Every module with lazy arrays, and the config after loading."""
        import_mlx_lm()
        from mlx_lm.utils import load_model

        path = self._path
        try:
            with readable(self._path) as path, without_bytecode():
                model, config = load_model(
                    path,
                    lazy=True,
                    # Only if it was trusted does it come to this.
                    trust_remote_code=self._model_file is not None,
                )
            modules = _modules(model)
            changed = _changed_on_loading(model, modules)
        except Exception as error:  # Models' own code may raise anything.
            if (damage := find_damage(self._path)) is not None:
                raise SourceError(damage) from error
            reason = str(error).replace(str(path), str(self._path))
            reason = " ".join(reason.split()) or type(error).__name__
            if self._index.missing is not None:
                reason = f"it lacks {quoted(self._index.missing)}; {reason}"
            raise SourceError(
                f"mlx-lm cannot load {self._path}: {reason[:300]}"
            ) from error
        return [
            replace(m, obstacle=_CHANGED) if m.path in changed else m
            for m in modules
        ], config


@contextmanager
def _recorded_loads() -> Iterator[dict[str, mx.array]]:
    """Lists the arrays that mlx-lm's loader reads from files, by name."""
    import_mlx_lm()
    from mlx_lm import utils

    loads = RecordedLoads()
    with _loading:
        stock, utils.mx = utils.mx, loads  # type: ignore[assignment]
        try:
            yield loads.arrays
        finally:
            utils.mx = stock


def _modules(model: Any) -> list[Module]:
    """The model's modules that hold parameters, in parameter order."""
    from mlx.utils import tree_flatten

    owners = dict(model.named_modules())
    modules: dict[str, Module] = {}
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        path = name
        while path not in owners:
            path = path.rpartition(".")[0]
        if path not in modules:
            owner = owners[path]
            kind = kind_of(owner) if "weight" in owner else None
            modules[path] = Module(
                path,
                "other" if kind is None else kind.name,
                {},
                quantization_of(owner),
            )
        parameter = name[len(path) :].lstrip(".")
        modules[path].tensors[parameter] = array
    return list(modules.values())


def _changed_on_loading(model: Any, modules: list[Module]) -> set[str]:
    """Paths of the weights that `sanitize` does not pass on as they are.

    It runs again when a converted model is loaded. Some models' changes a
    weight unless it has scales beside it, which a coded one has not.
    """
    weights: dict[str, mx.array] = {}
    stand_ins: dict[str, mx.array] = {}
    for module in modules:
        tensors = module.tensors
        if module.kind != "other":
            stand_ins[module.path] = _stand_in(module)
            tensors = {**tensors, "weight": stand_ins[module.path]}
            tensors.pop("scales", None)
            tensors.pop("biases", None)
        for name, array in tensors.items():
            weights[full_name(module.path, name)] = array
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    return {
        path
        for path, array in stand_ins.items()
        if weights.get(full_name(path, "weight")) is not array
    }


def _stand_in(module: Module) -> mx.array:
    """An array like the weight before quantization; it is never evaluated."""
    weight = module.tensors["weight"]
    if module.quantization is None:
        return mx.zeros(weight.shape, weight.dtype)
    shape = unpacked_shape(weight.shape, module.quantization["bits"])
    return mx.zeros(shape, module.tensors["scales"].dtype)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    refuse_broken_link(file)
    if not file.is_file():
        present = sorted(each.name for each in path.glob("*.gguf"))
        hint = f" (to read {present[0]}, name that file)" if present else ""
        hint = hint or hub.inside(path)
        raise SourceError(f"{path} has no config.json{hint}")
    config = _read_json(file)
    if not isinstance(config, dict) or "model_type" not in config:
        raise SourceError(f"{file} is not a model's configuration")
    if is_marked(config):
        raise SourceError(f"{path} is already converted by mlx-entropy")
    return config


def _model_file(path: Path, config: dict[str, Any]) -> str | None:
    """The Python file of the model, which mlx-lm runs; None if it has none."""
    name = config.get("model_file")
    if name is None:
        return None
    if not isinstance(name, str) or not stays_inside(name):
        raise SourceError(
            f"{path / 'config.json'}: model_file is no file of the model"
        )
    if name == MODEL_FILE:
        raise SourceError(f"{path / name}: a converted model has such a file")
    refuse_broken_link(path / name)
    if not (path / name).is_file():
        raise SourceError(f"{path / name}, the model_file, is missing")
    return name


def _weight_files(path: Path) -> list[Path]:
    """model*.safetensors, as mlx-lm selects them."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise SourceError(f"{path} has no model*.safetensors")
    return files


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} is not valid JSON: {error}") from error
