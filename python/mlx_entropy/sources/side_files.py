"""What a model directory holds beside config.json and its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..mlx_lm_files import import_mlx_lm
from .base import Assets, SourceError, quoted, read_bytes
from .safetensors_file import StoredTensor

INDEX = "model.safetensors.index.json"

# Beside what mlx-lm downloads: SentencePiece files have many names, and
# transformers looks for templates in a folder.
_MORE_PATTERNS = ("*.model", "*/*.jinja")
# config.json is rewritten; hf_quant_config.json describes weights that
# mlx-lm's loader has already changed.
_NOT_ASSETS = ("config.json", "hf_quant_config.json")

# Of these one is enough to make tokens.
_TOKENIZERS = (
    "tokenizer.json",
    "*.model",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "tokenization*.py",
)
# Left out only with an error: without them a model has no tokenizer.
_NEEDED = (*_TOKENIZERS, "merges.txt", "tokenizer_config.json", "*.jinja")
_NEEDED_LIMIT = 256 << 20
_OTHER_LIMIT = 32 << 20


def read_side_files(folder: Path, model_file: str | None = None) -> Assets:
    """The files that mlx-lm or a tokenizer may read, and what is odd.

    `model_file` is the model's own Python file, which may be in a folder.
    SourceError for links to nothing and for files that cannot be read or are
    too large; data sets, which no tokenizer reads, are left out with a
    warning.
    """
    assets = Assets()
    own = () if model_file is None else (folder / model_file,)
    for file in _candidates(folder, own):
        name = file.relative_to(folder).as_posix()
        size = file.stat().st_size
        if size > _limit(name):
            if _limit(name) == _NEEDED_LIMIT:
                raise SourceError(f"{file} is too large for a side file")
            assets.warnings.append(
                f"{name} ({size / 1e6:.0f} MB) is left out: it is too large "
                "to be a tokenizer's"
            )
            continue
        assets.files[name] = read_bytes(file)
        if problem := _damage(name, assets.files[name]):
            assets.warnings.append(f"{file} {problem}")
    if not any(_matches(name, _TOKENIZERS) for name in assets.files):
        assets.warnings.append(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZERS[:3])}, ...), "
            "so neither it nor the converted model can generate text"
        )
    return assets


def _candidates(folder: Path, own: Iterable[Path]) -> Iterable[Path]:
    """Files that a pattern selects; SourceError for a link to nothing."""
    import_mlx_lm()
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    patterns = (*DEFAULT_ALLOW_PATTERNS, *_MORE_PATTERNS)
    # A set, because one file may match several of them.
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    for file in sorted(found.union(own)):
        if (
            file.name in _NOT_ASSETS
            or file.name.endswith(".index.json")
            or file.suffix == ".safetensors"
        ):
            continue
        refuse_broken_link(file)
        if file.is_file():
            yield file


def refuse_broken_link(file: Path) -> None:
    """SourceError if `file` is a link to nothing."""
    if file.is_symlink() and not file.exists():
        raise SourceError(
            f"{file} is a link to {quoted(os.readlink(file))}, which does not "
            "exist: the download is incomplete"
        )


def _limit(name: str) -> int:
    return _NEEDED_LIMIT if _matches(name, _NEEDED) else _OTHER_LIMIT


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _damage(name: str, content: bytes) -> str | None:
    """Why a JSON file cannot be read, None if it can or is none."""
    if not name.endswith(".json"):
        return None
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}"
    return None


class WeightIndex:
    """model.safetensors.index.json, which mlx-lm never reads.

    It may be of the model before quantization, so it decides nothing; when
    parameters are missing, it tells which file they should be in.
    """

    def __init__(
        self, folder: Path, stored: Mapping[str, StoredTensor]
    ) -> None:
        self.warning: str | None = None
        """How it differs from the files; None if it is right or absent."""
        self.missing: str | None = None
        """The first file that it names and that is not there."""
        file = folder / INDEX
        if not os.path.lexists(file):
            return
        mapping = self._weight_map(file)
        if mapping is None:
            self.warning = f"{file} is damaged and not used"
            return
        absent = {shard for shard in mapping.values() if isinstance(shard, str)}
        absent = {each for each in absent if not (folder / each).is_file()}
        if absent:
            self.missing = min(absent)
        if mapping != {name: each.file for name, each in stored.items()}:
            self.warning = (
                f"{file} is of other files and not used; the converted model "
                "gets a right one"
            )

    def _weight_map(self, file: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(read_bytes(file))
        except (ValueError, RecursionError):  # SourceError is a ValueError.
            return None
        mapping = content.get("weight_map") if isinstance(content, dict) else 0
        return mapping if isinstance(mapping, dict) else None
