"""Shapes of real models, to measure with weights that nobody downloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a llama-family model."""

    name: str
    like: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_rows(self) -> int:
        """Rows of the key and value projections."""
        return self.kv_heads * self.head_dim

    def layer(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of one layer's matrices, by mlx-lm's names."""
        hidden, wide = self.hidden, self.intermediate
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (self.kv_rows, hidden),
            "self_attn.v_proj": (self.kv_rows, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }

    def products(self) -> dict[str, tuple[int, int]]:
        """The distinct products of a layer, each under what it multiplies.

        A model with 8 key-value heads has a narrow one for keys and values.
        """
        hidden, wide = self.hidden, self.intermediate
        return {
            "attention": (hidden, hidden),
            "keys": (self.kv_rows, hidden),
            "up": (wide, hidden),
            "down": (hidden, wide),
        }

    @property
    def weights(self) -> int:
        """Weights in all matrices."""
        layer = sum(rows * cols for rows, cols in self.layer().values())
        tables = 1 if self.tied else 2
        return self.layers * layer + tables * self.vocabulary * self.hidden

    def config(self, layers: int) -> dict[str, Any]:
        """mlx-lm's config.json, before what quantization adds."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "num_hidden_layers": layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


_SHAPES = (
    ModelShape(
        "135m", "SmolLM2-135M", 576, 30, 1536, 9, 3, 49152, True
    ),
    ModelShape(
        "1b", "Llama-3.2-1B", 2048, 16, 8192, 32, 8, 128256, True
    ),
    ModelShape(
        "8b", "Llama-3.1-8B", 4096, 32, 14336, 32, 8, 128256, False
    ),
    ModelShape(
        "70b", "Llama-3.1-70B", 8192, 80, 28672, 64, 8, 128256, False
    ),
)  # fmt: skip

SHAPES = {shape.name: shape for shape in _SHAPES}


def find_shape(name: str) -> ModelShape:
    """ValueError for a name that is not in `SHAPES`."""
    try:
        return SHAPES[name.lower()]
    except KeyError:
        known = ", ".join(SHAPES)
        raise ValueError(f"no shape {name!r}; there are {known}") from None
