"""A minimal GGUF writer, and ggml's block formats written out in numpy.

Independent of mlx_entropy: what it writes is what the reader is tested on.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16 = 0, 1, 2, 3, 8, 14, 30
U32, I32, FLOAT, BOOL, STRING, ARRAY, U64, DOUBLE = 4, 5, 6, 7, 8, 9, 10, 12

_LAYOUTS = {U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?", U64: "<Q"}
_LAYOUTS[DOUBLE] = "<d"


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value: Any) -> int:
    """The GGUF type that a Python value is written as."""
    kinds = {bool: BOOL, int: U32, float: FLOAT, str: STRING, list: ARRAY}
    return kinds[type(value)]


def encode(value: Any, kind: int) -> bytes:
    """A metadata value as it is stored, without its type."""
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        # Token types are signed, as llama.cpp's converter writes them.
        inner = STRING if value and isinstance(value[0], str) else I32
        items = b"".join(encode(item, inner) for item in value)
        return struct.pack("<IQ", inner, len(value)) + items
    return struct.pack(_LAYOUTS[kind], value)


class GgufWriter:
    """Collects metadata and tensors; `build` gives the file's bytes."""

    def __init__(self, alignment: int = 32, version: int = 3) -> None:
        self.alignment = alignment
        self.version = version
        self.metadata: dict[str, tuple[int, Any]] = {}
        self.tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}

    def set(self, key: str, value: Any, kind: int | None = None) -> None:
        self.metadata[key] = (_kind(value) if kind is None else kind, value)

    def update(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.set(key, value)

    def tensor(
        self, name: str, kind: int, shape: tuple[int, ...], data: bytes
    ) -> None:
        self.tensors[name] = (kind, shape, data)

    def values(self, name: str, values: np.ndarray, kind: int) -> None:
        """Adds `values` stored as ggml type `kind`."""
        self.tensor(name, kind, values.shape, quantize(values, kind))

    def build(self) -> bytes:
        head = b"GGUF" + struct.pack(
            "<IQQ", self.version, len(self.tensors), len(self.metadata)
        )
        for key, (kind, value) in self.metadata.items():
            head += string(key) + struct.pack("<I", kind) + encode(value, kind)
        body = b""
        for name, (kind, shape, data) in self.tensors.items():
            head += string(name) + struct.pack("<I", len(shape))
            head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
            head += struct.pack("<IQ", kind, len(body))
            body += data + bytes(-len(data) % self.alignment)
        return head + bytes(-len(head) % self.alignment) + body


def quantize(values: np.ndarray, kind: int) -> bytes:
    """`values` as ggml's blocks, rounding as simply as possible."""
    values = np.ascontiguousarray(values, np.float32)
    if kind == F32:
        return values.tobytes()
    if kind == F16:
        return values.astype(np.float16).tobytes()
    if kind == BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = [_block(block, kind) for block in values.reshape(-1, 32)]
    return b"".join(blocks)


def _block(x: np.ndarray, kind: int) -> bytes:
    low, peak = float(x.min()), float(np.abs(x).max()) or 1.0
    if kind == Q8_0:
        d = np.float16(peak / 127)
        codes = np.clip(np.rint(x / np.float32(d)), -128, 127)
        return d.tobytes() + codes.astype(np.int8).tobytes()
    if kind == Q4_0:
        d = np.float16(peak / 7)
        codes = np.clip(np.rint(x / np.float32(d)) + 8, 0, 15)
        head = d.tobytes()
    else:
        d = np.float16((float(x.max()) - low) / 15 or 1.0)
        m = np.float16(low)
        codes = np.clip(np.rint((x - np.float32(m)) / np.float32(d)), 0, 15)
        head = d.tobytes() + m.tobytes()
    codes = codes.astype(np.uint8)
    return head + (codes[:16] | codes[16:] << 4).tobytes()


def dequantize(data: bytes, shape: tuple[int, ...], kind: int) -> np.ndarray:
    """float64 values of ggml blocks, after the comments in ggml-quants.c."""
    size = {Q4_0: 18, Q4_1: 20, Q8_0: 34}[kind]
    values = []
    for start in range(0, math.prod(shape) // 32 * size, size):
        block = data[start : start + size]
        d = float(np.frombuffer(block[:2], np.float16)[0])
        if kind == Q8_0:
            values += [d * q for q in np.frombuffer(block[2:], np.int8)]
            continue
        codes = block[size - 16 :]
        nibbles = [q & 15 for q in codes] + [q >> 4 for q in codes]
        if kind == Q4_0:
            values += [d * (q - 8) for q in nibbles]
        else:
            m = float(np.frombuffer(block[2:4], np.float16)[0])
            values += [d * q + m for q in nibbles]
    return np.array(values, np.float64).reshape(shape)


# A byte-level BPE tokenizer of 272 tokens.

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = "<tool>"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d", "Ġw or"]
MERGES += ["Ġwor ld", "1 2", "1 3", "' s"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = iter(range(256, 512))
    return [chr(b if b in printable else next(stand_ins)) for b in range(256)]


def tokenizer_metadata(pre: str = "smollm") -> dict[str, Any]:
    tokens = SPECIAL + byte_alphabet() + [m.replace(" ", "") for m in MERGES]
    types = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)) + [4]
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens, USER_DEFINED],
        "token_type": types,
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "unknown_token_id": 0,
    }
    values = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    values["tokenizer.chat_template"] = CHAT_TEMPLATE
    return values


VOCABULARY = 272
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS = 64, 4, 2, 16, 96, 2


def llama_metadata() -> dict[str, Any]:
    keys = {
        "context_length": 512,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": INTERMEDIATE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10000.0,
    }
    values: dict[str, Any] = {"general.architecture": "llama"}
    values.update({f"llama.{key}": value for key, value in keys.items()})
    return values


def llama_shapes(tied: bool = True) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name -> shape of the tiny model, in llama.cpp's order."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN)
    }
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        part = {
            "attn_norm": (HIDDEN,),
            "ffn_down": (HIDDEN, INTERMEDIATE),
            "ffn_gate": (INTERMEDIATE, HIDDEN),
            "ffn_up": (INTERMEDIATE, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "attn_k": (keys, HIDDEN),
            "attn_output": (HIDDEN, queries),
            "attn_q": (queries, HIDDEN),
            "attn_v": (keys, HIDDEN),
        }
        for name, shape in part.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes["output_norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["output.weight"] = (VOCABULARY, HIDDEN)
    return shapes


def tiny_llama(
    kind: int = Q4_1,
    embedding_kind: int = Q8_0,
    tied: bool = True,
    alignment: int = 32,
    seed: int = 0,
) -> GgufWriter:
    """A random model of two layers, its norms in F32."""
    writer = GgufWriter(alignment)
    writer.update(llama_metadata())
    writer.update(tokenizer_metadata())
    if alignment != 32:
        writer.set("general.alignment", alignment)
    random = np.random.default_rng(seed)
    for name, shape in llama_shapes(tied).items():
        values = random.normal(0, 0.1, shape)
        if len(shape) == 1:
            writer.values(name, 1 + values, F32)
        elif name in ("token_embd.weight", "output.weight"):
            writer.values(name, values, embedding_kind)
        else:
            writer.values(name, values, kind)
    return writer
