"""The benchmarks' command: one file a verb, errors as `mlx-entropy` has."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_entropy.cli import main as cli

_VERBS = (
    "gemv",
    "encode",
    "dispatch",
    "sweep",
    "model",
    "synthetic",
    "demo",
)

_EXAMPLES = """\
Examples:
  python -m benchmarks gemv --bits 3 --dtype bfloat16
  python -m benchmarks gemv --sweep
  python -m benchmarks encode --json
  python -m benchmarks sweep --shapes 8b --plot roofline.png
  python -m benchmarks synthetic 1b --out ./1b --gguf 1b.gguf
  python -m benchmarks model ./1b-ec --gguf 1b.gguf
  python -m benchmarks dispatch
  python -m benchmarks demo
"""

_DESCRIPTION = """\
Measure speed and size beside peers, which are timed in turns with ours.
Figures are medians; the spread is the range of the middle half of the
samples, in medians.
"""


PROGRAM = cli.Program(
    "python -m benchmarks",
    _DESCRIPTION,
    _EXAMPLES,
    __name__.rpartition(".")[0],
    _VERBS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns its exit status and raises nothing."""
    return cli.main(argv, PROGRAM)
