"""MLX and Hugging Face model directories, through mlx-lm's own loader."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Assets, Layout, Module, SourceError, read_bytes
from .gguf_file import quoted

# What mlx-lm downloads beside the weights.
_ASSET_PATTERNS = (
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.py",
    "*.txt",
    "*.tiktoken",
    "tokenizer.model",
)
# config.json is rewritten; hf_quant_config.json describes weights that
# mlx-lm's loader has already changed.
_NOT_ASSETS = ("config.json", "hf_quant_config.json")
_ASSET_LIMIT = 256 << 20

# The safetensors library refuses longer headers, too.
_HEADER_LIMIT = 100_000_000
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


class DirectorySource:
    """A Source over config.json and model*.safetensors, never written to.

    Raises SourceError when the files are missing, broken or truncated, when
    mlx-lm cannot load the model, or when it is an mlx-entropy model already.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        self._path = path
        self._stored_config = _read_config(path)
        digest = hashlib.sha256(read_bytes(path / "config.json"))
        for file in _weight_files(path):
            header = check_safetensors(file)
            status = file.stat()
            identity = (file.name, status.st_size, status.st_mtime_ns)
            digest.update(repr(identity).encode())
            digest.update(header)
        self.fingerprint = digest.hexdigest()
        modules, config = self._load()
        self._layout = [Layout(each.path, each.nbytes) for each in modules]
        # mlx-lm turns other packages' quantization into its own on loading,
        # and the modules are those after loading.
        self.config = dict(self._stored_config)
        for key in ("quantization", "quantization_config"):
            if key in config:
                self.config[key] = config[key]

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
        """The files mlx-lm needs beside config.json and the weights."""
        files = {}
        for pattern in _ASSET_PATTERNS:
            for file in sorted(self._path.glob(pattern)):
                if (
                    file.name in _NOT_ASSETS
                    or file.name.endswith(".index.json")
                    or not file.is_file()
                ):
                    continue
                if file.stat().st_size > _ASSET_LIMIT:
                    raise SourceError(f"{file} is too large for a side file")
                files[file.name] = read_bytes(file)
        return Assets(files)

    def _load(self) -> tuple[list[Module], dict[str, Any]]:
        """Every module with lazy arrays, and the config after loading."""
        try:
            from mlx_lm.utils import load_model

            model, config = load_model(self._path, lazy=True)
        except Exception as error:  # Models' own code may raise anything.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceError(
                f"mlx-lm cannot load {self._path}: {reason[:300]}"
            ) from error
        return _modules(model), config


def _modules(model: Any) -> list[Module]:
    """The model's modules that hold parameters, in parameter order."""
    from mlx.utils import tree_flatten

    owners = dict(model.named_modules())
    modules: dict[str, Module] = {}
    for name, array in tree_flatten(model.parameters()):
        path = name
        while path not in owners:
            path = path.rpartition(".")[0]
        if path not in modules:
            kind, quantization = _kind(owners[path])
            modules[path] = Module(path, kind, {}, quantization)
        parameter = name[len(path) :].lstrip(".")
        modules[path].tensors[parameter] = array
    return list(modules.values())


def _kind(module: Any) -> tuple[str, dict[str, Any] | None]:
    """A module's kind and quantization.

    Subclasses are "other": a coded layer would lose what they override.
    """
    import mlx.nn as nn

    kinds = {
        nn.Linear: "linear",
        nn.QuantizedLinear: "linear",
        nn.Embedding: "embedding",
        nn.QuantizedEmbedding: "embedding",
    }
    kind = kinds.get(type(module), "other")
    if kind == "other" or module.weight.ndim != 2:
        return "other", None
    if not hasattr(module, "bits"):
        return kind, None
    mode = getattr(module, "mode", "affine")
    if mode != "affine":
        return "other", None
    return kind, {
        "group_size": module.group_size,
        "bits": module.bits,
        "mode": mode,
    }


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        present = sorted(each.name for each in path.glob("*.gguf"))
        hint = f" (to read {present[0]}, name that file)" if present else ""
        raise SourceError(f"{path} has no config.json{hint}")
    config = _read_json(file)
    if not isinstance(config, dict) or "model_type" not in config:
        raise SourceError(f"{file} is not a model's configuration")
    if "mlx_entropy" in config:
        raise SourceError(f"{path} is already converted by mlx-entropy")
    return config


def _weight_files(path: Path) -> list[Path]:
    """model*.safetensors, as mlx-lm selects them; none of them missing."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise SourceError(f"{path} has no model*.safetensors")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        content = _read_json(index)
        shards = content.get("weight_map") if isinstance(content, dict) else 0
        if not isinstance(shards, dict):
            raise SourceError(f"{index} has no weight_map")
        missing = {str(shard) for shard in shards.values()}
        missing -= {file.name for file in files}
        if missing:
            raise SourceError(f"{path} lacks {quoted(min(missing))}")
    return files


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} is not valid JSON: {error}") from error


def check_safetensors(file: Path) -> bytes:
    """The JSON header of a safetensors file, after checking it.

    Every tensor must lie inside the file, be as long as its shape says and
    overlap no other; otherwise SourceError names the file.
    """

    def fail(reason: str) -> None:
        raise SourceError(f"{file} is damaged: {reason}")

    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                fail("its header is truncated")
            header = stream.read(length)
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from error
    try:
        entries = json.loads(header, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        fail("its header is not valid JSON")
    if len(header) != length or not isinstance(entries, dict):
        fail("its header is not a JSON object")
    data_size = size - 8 - length
    extents = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        extent = _extent(entry)
        if extent is None:
            fail(f"the entry of tensor {quoted(name)} is wrong")
        extents.append((*extent, name))
    previous = 0
    for begin, end, name in sorted(extents):
        if end > data_size:
            fail(
                f"tensor {quoted(name)} ends {end - data_size} bytes after "
                "the end of the file"
            )
        if begin < previous:
            fail(f"tensor {quoted(name)} overlaps another one")
        previous = end
    return header


def _extent(entry: Any) -> tuple[int, int] | None:
    """A tensor's bytes [begin, end) after the header; None if impossible."""
    if not isinstance(entry, dict):
        return None
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(
            type(number) is not int or number < 0 for number in numbers
        ):
            return None
    if len(offsets) != 2 or not isinstance(entry.get("dtype"), str):
        return None
    begin, end = offsets
    width = _DTYPE_BYTES.get(entry["dtype"])
    if end < begin or (
        width is not None and end - begin != math.prod(shape) * width
    ):
        return None
    return begin, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content
