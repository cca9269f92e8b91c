"""GGUF files of the llama family, as mlx-lm's `llama` model."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np

from . import tokenizer
from .base import Assets, Contents, Layout, LeftOut, Module, SourceError, quoted
from .gguf_file import GgufFile
from .gguf_header import GROUP_SIZE, TensorInfo

# (GGUF, mlx-lm) names inside a layer, in mlx-lm's parameter order.
_LAYER_LINEARS = (
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_up", "mlp.up_proj"),
)
_LAYER_NORMS = (
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
)
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Entry:
    """A module's tensors before they are read: parameter name -> entry."""

    path: str
    kind: str
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return sum(info.array_nbytes for info in self.tensors.values())

    @property
    def quantization(self) -> dict[str, Any] | None:
        bits = self.tensors["weight"].format.bits
        if bits == 0:
            return None
        return {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}


class GgufSource:
    """A Source over one GGUF file; reads a module's tensors when it is due.

    Raises SourceError for anything that mlx-lm's llama could not run exactly:
    other architectures, tensor types or tokenizers, missing tensors.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        self._file = GgufFile(path)
        if self._file.metadata.get("split.count", 0) not in (0, 1):
            raise SourceError(
                f"{path} is one part of a split GGUF; merge the parts with "
                "llama-gguf-split --merge"
            )
        architecture = self._file.metadata.get("general.architecture")
        if architecture != "llama":
            raise SourceError(
                f"{path}: architecture {quoted(str(architecture))} is not "
                "supported for GGUF (only 'llama' is); use its MLX or Hugging "
                "Face directory"
            )
        self._file.refuse_unsupported_types()
        self._shape = _ModelShape(self._file)
        self._entries = _entries(self._file, self._shape)
        infos = self._file.tensors
        self.contents = Contents(
            len(infos),
            sum(info.stored_nbytes for info in infos.values()),
            tuple(
                LeftOut(
                    name,
                    path.name,
                    info.format.name,
                    info.stored_nbytes,
                    "config.json has it as rope_scaling",
                )
                for name, info in infos.items()
                if name == _ROPE_FACTORS
            ),
        )
        self._tokens = tokenizer.Tokens(
            self._file.metadata, self._shape.vocab_size, path
        )
        self.config = self._config()
        identity = (self._file.size, self._file.mtime_ns)
        self.fingerprint = hashlib.sha256(
            f"gguf {identity} {self._file.header_digest}".encode()
        ).hexdigest()

    def layout(self) -> list[Layout]:
        """Every module in order; bytes are those of its MLX arrays."""
        return [Layout(entry.path, entry.nbytes) for entry in self._entries]

    def modules(self, skip: frozenset[str] = frozenset()) -> Iterator[Module]:
        """Modules in `layout` order; each is read when it is asked for."""
        for entry in self._entries:
            if entry.path not in skip:
                # Not bound to a name: the generator must not keep it alive.
                yield self._read(entry)

    def assets(self) -> Assets:
        """tokenizer.json, tokenizer_config.json, generation_config.json."""
        return Assets(self._tokens.files(self._shape.context_length))

    def _read(self, entry: _Entry) -> Module:
        arrays: dict[str, mx.array] = {}
        for parameter, info in entry.tensors.items():
            parts = self._file.read(info)
            arrays[parameter] = parts.pop("weight")
            arrays.update(parts)
        return Module(entry.path, entry.kind, arrays, entry.quantization)

    def _config(self) -> dict[str, Any]:
        config = self._shape.config()
        paths = {entry.path for entry in self._entries}
        config["tie_word_embeddings"] = "lm_head" not in paths
        first = {
            entry.path.removeprefix("model.layers.0."): "bias" in entry.tensors
            for entry in self._entries
        }
        config["attention_bias"] = first["self_attn.q_proj"]
        config["mlp_bias"] = first["mlp.gate_proj"]
        config.update(self._tokens.ids())
        quantized = {
            entry.path: entry.quantization
            for entry in self._entries
            if entry.quantization is not None
        }
        if quantized:
            bits = Counter(each["bits"] for each in quantized.values())
            common = bits.most_common(1)[0][0]
            config["quantization"] = {
                "group_size": GROUP_SIZE,
                "bits": common,
                "mode": "affine",
            }
            for path, each in quantized.items():
                if each["bits"] != common:
                    config["quantization"][path] = each
        return config


class _ModelShape:
    """The model's dimensions, from metadata that may be wrong or missing."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.hidden = self._integer("embedding_length")
        self.layers = self._integer("block_count")
        self.intermediate = self._integer("feed_forward_length")
        self.heads = self._integer("attention.head_count")
        self.kv_heads = self._integer("attention.head_count_kv", self.heads)
        self.context_length = self._integer("context_length")
        if self._integer("expert_count", 0):
            self._refuse("mixture of experts is not supported for GGUF")
        default = self.hidden // self.heads
        self.head_dim = self._integer("attention.key_length", default)
        if self._integer("attention.value_length", default) != self.head_dim:
            self._refuse("keys and values of different lengths")
        rotated = self._integer("rope.dimension_count", self.head_dim)
        if rotated != self.head_dim:
            self._refuse(f"RoPE on {rotated} of {self.head_dim} dimensions")
        if "token_embd.weight" not in file.tensors:
            self._refuse("tensor token_embd.weight is missing")
        self.vocab_size = file.tensors["token_embd.weight"].shape[0]

    def config(self) -> dict[str, Any]:
        """The part of config.json that follows from these dimensions."""
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", 10000.0),
            # GGUF's llama keeps rotated pairs adjacent in the rows of q and k.
            "rope_traditional": True,
        }
        scaling = self._rope_scaling(config["rope_theta"])
        if scaling is not None:
            config["rope_scaling"] = scaling
        return config

    def linear(self, name: str) -> tuple[int, int]:
        """Rows and columns of a linear layer by its GGUF name."""
        queries = self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        return {
            "attn_q": (queries, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, queries),
            "ffn_gate": (self.intermediate, self.hidden),
            "ffn_up": (self.intermediate, self.hidden),
            "ffn_down": (self.hidden, self.intermediate),
        }[name]

    def _rope_scaling(self, theta: float) -> dict[str, Any] | None:
        kind = self._value("rope.scaling.type", "linear")
        factor = self._number(
            "rope.scaling.factor", self._number("rope.scale_linear", 1.0)
        )
        if kind not in ("none", "linear"):
            self._refuse(f"RoPE scaling {quoted(str(kind))} is not supported")
        if kind == "none":
            factor = 1.0
        if _ROPE_FACTORS in self.file.tensors:
            if factor != 1.0:
                self._refuse("two kinds of RoPE scaling at once")
            return self._llama3_scaling(theta)
        if factor == 1.0:
            return None
        return {"rope_type": "linear", "factor": factor}

    def _llama3_scaling(self, theta: float) -> dict[str, Any]:
        """Llama 3's parameters, recovered from the stored period factors.

        mlx-lm takes the parameters only, so they must give back the factors.
        """
        info = self.file.tensors[_ROPE_FACTORS]
        if info.format.bits or info.shape != (self.head_dim // 2,):
            self._refuse(f"tensor {_ROPE_FACTORS} has an unexpected shape")
        weight = self.file.read(info)["weight"]
        stored = np.array(weight.astype(mx.float32), dtype=np.float64)
        scaling = {
            "rope_type": "llama3",
            "factor": float(stored.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if not np.allclose(
            stored, llama3_factors(self.head_dim, theta, scaling), rtol=1e-3
        ):
            self._refuse(f"the factors in {_ROPE_FACTORS} are not Llama 3's")
        return scaling

    def _value(self, key: str, default: Any) -> Any:
        return self.file.metadata.get(f"llama.{key}", default)

    def _integer(self, key: str, default: int | None = None) -> int:
        """A positive integer, or zero where that is the `default`."""
        value = self._value(key, default)
        if value is None:
            self._refuse(f"metadata key llama.{key} is missing")
        if type(value) is not int or value < (0 if default == 0 else 1):
            self._refuse(f"metadata key llama.{key} has a bad value")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        """A positive number, the shortest decimal of the stored float32."""
        value = self._value(key, default)
        if value is None:
            self._refuse(f"metadata key llama.{key} is missing")
        if not (
            type(value) in (int, float) and math.isfinite(value) and value > 0
        ):
            self._refuse(f"metadata key llama.{key} has a bad value")
        return float(str(np.float32(value)))

    def _refuse(self, reason: str) -> NoReturn:
        raise SourceError(f"{self.file.path}: {reason}")


def llama3_factors(
    head_dim: int, theta: float, scaling: dict[str, Any]
) -> np.ndarray:
    """Llama 3's multipliers of the RoPE periods, [head_dim / 2] float64."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    periods = 2 * math.pi * theta**exponents
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    blend = np.clip((context / periods - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / factor + blend)


def _entries(file: GgufFile, shape: _ModelShape) -> list[_Entry]:
    """Every module in mlx-lm's order; SourceError unless all tensors fit."""
    tensors = _Unplaced(file, shape)
    vocabulary = (shape.vocab_size, shape.hidden)
    entries = [tensors.matrix("token_embd", "model.embed_tokens", vocabulary)]
    for layer in range(shape.layers):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        entries += [
            tensors.linear(theirs, name, f"{ours}.{path}")
            for name, path in _LAYER_LINEARS
        ]
        entries += [
            tensors.norm(f"{theirs}.{name}", f"{ours}.{path}")
            for name, path in _LAYER_NORMS
        ]
    entries.append(tensors.norm("output_norm", "model.norm"))
    if "output.weight" in tensors.left:
        entries.append(tensors.matrix("output", "lm_head", vocabulary))
    if tensors.left:
        raise SourceError(
            f"{file.path}: tensor {quoted(min(tensors.left))} has no place in "
            "mlx-lm's llama"
        )
    return entries


class _Unplaced:
    """The file's tensors, until each has found its module."""

    def __init__(self, file: GgufFile, shape: _ModelShape) -> None:
        self.left = dict(file.tensors)
        self.left.pop(_ROPE_FACTORS, None)
        self._file = file
        self._shape = shape
        if shape.layers > len(self.left):
            self._refuse(f"{shape.layers} layers are not there")
        # mlx-lm has one switch for the biases of each block's part.
        self._biased = {
            "attn": "blk.0.attn_q.bias" in self.left,
            "ffn": "blk.0.ffn_gate.bias" in self.left,
        }

    def matrix(
        self, name: str, path: str, shape: tuple[int, int], bias: bool = False
    ) -> _Entry:
        tensors = {"weight": self._take(f"{name}.weight", shape)}
        if bias:
            tensors["bias"] = self._take(f"{name}.bias", shape[:1])
        kind = "embedding" if name == "token_embd" else "linear"
        return _Entry(path, kind, tensors)

    def linear(self, block: str, name: str, path: str) -> _Entry:
        bias = self._biased[name.partition("_")[0]]
        shape = self._shape.linear(name)
        return self.matrix(f"{block}.{name}", path, shape, bias)

    def norm(self, name: str, path: str) -> _Entry:
        weight = self._take(f"{name}.weight", (self._shape.hidden,))
        return _Entry(path, "other", {"weight": weight})

    def _take(self, name: str, expected: tuple[int, ...]) -> TensorInfo:
        if name not in self.left:
            self._refuse(f"tensor {name} is missing")
        info = self.left.pop(name)
        if info.shape != expected:
            self._refuse(
                f"tensor {name} is {_by(info.shape)}, but the metadata says "
                f"{_by(expected)}"
            )
        if len(expected) == 1 and info.format.bits:
            self._refuse(f"tensor {name} is quantized")
        return info

    def _refuse(self, reason: str) -> NoReturn:
        raise SourceError(f"{self._file.path}: {reason}")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
