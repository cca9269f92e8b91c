"""config.json through a conversion: what changes, and what it said before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .coding import ModuleRecord
from .model_format import CONFIG_KEY, MODEL_FILE, OWN_MODEL_FILE, Config

KEY = "source_config"
"""The entry of `CONFIG_KEY` that `remembered` is for."""

# What conversion changes, beside `model_file`, which has an entry of its own.
_CHANGED = ("quantization", "quantization_config")
# Of these methods' `quantization_config` mlx-lm builds layers of their own.
_LAYER_METHODS = ("bitnet",)
_TEXT = "text_config"
_QUANTIZER = ("group_size", "bits", "mode")


def converted(config: Config, records: list[ModuleRecord]) -> Config:
    """The source's config with the quantization that still applies.

    mlx-lm quantizes the layers that `quantization` describes and refuses
    those it no longer knows, so entries of coded modules must go. It also
    acts on `quantization_config`, here or in `text_config`, and of some
    methods builds layers that nothing else describes.
    """
    result = _without_spent_method(config)
    if isinstance(text := result.get(_TEXT), dict):
        result[_TEXT] = _without_spent_method(text)
    quantization = result.pop("quantization", None)
    raw = [record for record in records if record.quantization is not None]
    if raw:
        remaining = _remaining_quantization(quantization, raw, records)
        result["quantization"] = remaining
        result["quantization_config"] = remaining
    return result


def _without_spent_method(config: dict[str, Any]) -> dict[str, Any]:
    """Without a `quantization_config` whose tensors mlx-lm has unpacked."""
    given = config.get("quantization_config")
    if isinstance(given, dict) and given.get("quant_method") in _LAYER_METHODS:
        return dict(config)
    return {k: v for k, v in config.items() if k != "quantization_config"}


def _remaining_quantization(
    quantization: dict[str, Any] | None,
    raw: list[ModuleRecord],
    records: list[ModuleRecord],
) -> dict[str, Any]:
    coded = {record.path for record in records if record.coded}
    if not quantization or "bits" not in quantization:
        quantization = {**(raw[0].quantization or {}), **(quantization or {})}
    remaining = {k: v for k, v in quantization.items() if k not in coded}
    for record in raw:
        own = _quantizer(record.quantization or {})
        # An entry may leave out what is mlx-lm's default, and others read it.
        if record.path in remaining or own != _quantizer(remaining):
            remaining[record.path] = record.quantization
    return remaining


def _quantizer(quantization: dict[str, Any]) -> tuple[Any, ...]:
    return (
        quantization["group_size"],
        quantization["bits"],
        quantization.get("mode", "affine"),
    )


def remembered(config: Config) -> Config:
    """The entries of a source's config that conversion changes or drops."""
    kept = {key: config[key] for key in _CHANGED if key in config}
    text = config.get(_TEXT)
    if isinstance(text, dict) and "quantization_config" in text:
        kept[_TEXT] = {"quantization_config": text["quantization_config"]}
    return kept


def restored(
    config: Config, quantized: Callable[[], Mapping[str, dict[str, Any]]]
) -> Config:
    """The source's config from that of a converted model.

    `quantized` describes every module that is quantized in the source; it is
    called for models of versions that did not remember.
    """
    entry = config[CONFIG_KEY]
    result = {k: v for k, v in config.items() if k != CONFIG_KEY}
    if result.get("model_file") == MODEL_FILE:
        del result["model_file"]
        if OWN_MODEL_FILE in entry:
            result["model_file"] = entry[OWN_MODEL_FILE]
    if not isinstance(known := entry.get(KEY), dict):
        return _derived(result, quantized())
    for key in _CHANGED:
        result.pop(key, None)
        if key in known:
            result[key] = known[key]
    if isinstance(text := known.get(_TEXT), dict):
        result[_TEXT] = {**result.get(_TEXT, {}), **text}
    return result


def _derived(config: Config, quantized: Mapping[str, dict[str, Any]]) -> Config:
    """With a quantization in which the commonest kind is the default."""
    if not quantized:
        return config
    kinds = Counter(
        tuple(kind[key] for key in _QUANTIZER) for kind in quantized.values()
    )
    default = dict(zip(_QUANTIZER, kinds.most_common(1)[0][0], strict=True))
    old = config.get("quantization") or {}
    quantization = {
        **default,
        **{k: v for k, v in old.items() if k not in _QUANTIZER},
        **{path: kind for path, kind in quantized.items() if kind != default},
    }
    return {
        **config,
        "quantization": quantization,
        "quantization_config": quantization,
    }
