#!/usr/bin/env python3
"""Change random bytes of a converted model: each must be noticed, or harmless.

    scripts/corrupt_model.py MODEL [--count 500] [--seed 1] [--tokens 8]

Each turn changes one byte of one file of a copy of MODEL: half of the turns in
any byte of all files alike, the others in the headers and side files, of which
there are few bytes. Loading and generating must then either end in one error
that names the file, or give the same tokens as the undamaged model. Exits with
1 if a damaged model gave other tokens, or crashed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx
from mlx_lm import generate

import mlx_entropy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8)
    return parser.parse_args()


def answer(model: Path, tokens: int) -> str:
    """What the model says; ValueError if it cannot be loaded."""
    loaded, tokenizer = mlx_entropy.load(model, codec="rans")
    text: str = generate(
        loaded, tokenizer, "The capital of France is", max_tokens=tokens
    )
    mx.clear_cache()
    return text


class Damage:
    """Chooses the byte to change."""

    def __init__(self, model: Path, seed: int) -> None:
        self._choose = random.Random(seed)
        # Zero bytes of an empty file cannot change.
        self._sizes = {
            file: file.stat().st_size
            for file in sorted(model.rglob("*"))
            if file.is_file() and file.stat().st_size
        }
        self._small = {
            file: header_bytes(file) if file.suffix == ".safetensors" else size
            for file, size in self._sizes.items()
        }

    def __call__(self, turn: int) -> tuple[Path, int, int]:
        """File, offset, and what to combine its byte with."""
        if turn % 2:
            file = self._choose.choice(sorted(self._small))
            at = self._choose.randrange(self._small[file])
        else:
            sizes = self._sizes
            file = self._choose.choices(list(sizes), list(sizes.values()))[0]
            at = self._choose.randrange(sizes[file])
        change = self._choose.choice([1 << self._choose.randrange(8), 255])
        return file, at, change


def header_bytes(file: Path) -> int:
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


def flip(file: Path, at: int, change: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ change]))


def outcome(model: Path, file: Path, expected: str, tokens: int) -> str:
    try:
        found = answer(model, tokens)
    except (ValueError, RuntimeError) as error:
        named = file.name in str(error)
        return "refused" if named else f"refused without its name: {error}"
    except Exception as error:
        return f"CRASHED: {type(error).__name__}: {error}"
    return "same answer" if found == expected else "SILENT"


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(options.model, model)
        expected = answer(model, options.tokens)
        damage = Damage(model, options.seed)
        counts: Counter[str] = Counter()
        for turn in range(options.count):
            file, at, change = damage(turn)
            flip(file, at, change)
            found = outcome(model, file, expected, options.tokens)
            flip(file, at, change)
            kind = found.partition(":")[0]
            counts[kind] += 1
            if kind not in ("refused", "same answer"):
                print(f"{file.name} byte {at} ^ {change}: {found}", flush=True)
    print(json.dumps(dict(counts)))
    return 1 if counts["SILENT"] + counts["CRASHED"] else 0


if __name__ == "__main__":
    sys.exit(main())
