"""`synthetic`: a model of random weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mlx_entropy.cli.arguments import (
    add_json,
    add_quiet,
    add_verb,
    positive_int,
)

from .options import SHAPE_NAMES, say

_SYNTHETIC = """\
Write a model of a real model's shape with Gaussian weights: an MLX directory
for mlx-entropy convert, a GGUF file for llama.cpp, or both. Nothing is
downloaded. The text that such a model writes is noise.
"""

_SYNTHETIC_EXAMPLES = """\
  python -m benchmarks synthetic 1b --out 1b-stock --gguf 1b.gguf
  python -m benchmarks synthetic 8b --bits 3 --out 8b-stock
  python -m benchmarks synthetic 8b --gguf 8b-q2.gguf --gguf-type q2_k
  python -m benchmarks synthetic 70b --layers 4 --out part-of-70b
"""

# Those of BLOCK_TYPES in synthetic_gguf, which takes long to import.
_GGUF_TYPES = (
    "q4_0", "q4_1", "q8_0", "q2_k", "q3_k", "q4_k", "q6_k", "iq2_s",
)  # fmt: skip


def configure(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "synthetic",
        "write a model of random weights",
        _SYNTHETIC,
        _SYNTHETIC_EXAMPLES,
    )
    add = parser.add_argument
    add("shape", choices=SHAPE_NAMES, help="of SmolLM2-135M or of Llama 3")
    add("--out", metavar="DIR", help="MLX directory to write")
    add("--gguf", metavar="FILE", help="GGUF file to write")
    add(
        "--bits",
        type=int,
        choices=(2, 3, 4, 5, 6, 8),
        default=4,
        help="of the MLX directory (default: 4)",
    )
    add(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="of the MLX directory (default: 64)",
    )
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="type of the activations (default: float32)",
    )
    add(
        "--gguf-type",
        choices=_GGUF_TYPES,
        help="default: q4_k, or q4_0 where the shape does not fit its blocks",
    )
    add(
        "--layers",
        type=positive_int,
        metavar="N",
        help="fewer layers than the real model has",
    )
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add_quiet(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..shapes import SHAPES
    from ..synthetic import write_model
    from ..synthetic_gguf import write_gguf

    if args.out is None and args.gguf is None:
        raise ValueError("nothing to write: give --out, --gguf or both")
    shape = SHAPES[args.shape]
    common = {
        "layers": args.layers,
        "seed": args.seed,
        "notify": None if args.quiet or args.json else say,
    }
    report: dict[str, Any] = {"shape": shape.like}
    lines = []
    if args.out is not None:
        folder = write_model(
            shape,
            args.out,
            bits=args.bits,
            group_size=args.group_size,
            dtype=args.dtype,
            **common,
        )
        report |= {"directory": str(folder), "bits": args.bits}
        lines.append(f"{folder}: the shape of {shape.like}, {args.bits} bits")
    if args.gguf is not None:
        file = write_gguf(shape, args.gguf, kind=args.gguf_type, **common)
        size = file.stat().st_size
        report |= {"gguf": str(file), "gguf_bytes": size}
        lines.append(f"{file}: the shape of {shape.like}, {size / 1e9:.2f} GB")
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines))
    return 0
