"""The demonstration: convert a real model, prove it, run it, compare it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mlx_entropy._version import version
from mlx_entropy.bench.generate import bench_generate, encode_prompt
from mlx_entropy.bench.load import bench_load
from mlx_entropy.bench.memory import (
    peak_resident_bytes,
    resident_bytes,
    restart_peak,
)
from mlx_entropy.bench.report import CODED, STOCK, machine
from mlx_entropy.conversion import convert
from mlx_entropy.destination import is_converted
from mlx_entropy.inspection import ModelReport, inspect
from mlx_entropy.loading import load
from mlx_entropy.model_format import FORMAT_VERSION
from mlx_entropy.progress import ProgressCallback
from mlx_entropy.sources import open_source
from mlx_entropy.sources.base import Source
from mlx_entropy.sources.safetensors_file import read_header
from mlx_entropy.stock import is_stock_copy, write_stock
from mlx_entropy.tensors import bits_per_weight
from mlx_entropy.verification import VerifyReport, verify

QUESTION = "What is the capital of France?"
# Long enough an answer to time, and to disagree about.
STORY = "Write a short story about a lighthouse keeper."

_CONVERSION = "conversion.json"
_RUNS = 2
_LOADS = 3

Report = dict[str, Any]
ProgressBars = Callable[[str], AbstractContextManager[ProgressCallback | None]]


class Demo:
    """One run of the demonstration; its files are in `output`.

    `say` gets lines for the user, `write` pieces of the model's answer, and
    `progress` makes a callback for a step with that title.
    """

    def __init__(
        self,
        source: str,
        output: Path,
        max_tokens: int,
        say: Callable[[str], None],
        write: Callable[[str], None],
        progress: ProgressBars,
    ) -> None:
        self.stock = output / "stock"
        self.coded = output / "coded"
        self._spec = source
        self._output = output
        self._max_tokens = max_tokens
        self._say = say
        self._write = write
        self._progress = progress

    def run(self) -> Report:
        """All steps; "comparison" is missing if verification fails.

        SourceError or ValueError where the source, or what is in the output
        directory, cannot be used.
        """
        self._say(f"source: {self._spec}")
        source = open_source(self._spec, self._say)
        self._output.mkdir(parents=True, exist_ok=True)
        self._copy(source)
        report: Report = {
            "source": self._spec,
            "machine": machine(),
            "conversion": self._convert(source),
        }
        verified = self._verify(source)
        report["verified"] = verified.to_dict()
        if not verified.identical:
            return report
        with self._progress("measuring sizes") as progress:
            inspected = inspect(self.coded, progress=progress)
        report["answer"] = self._answer()
        generated = self._generate()
        loaded = bench_load(
            self.coded, self.stock, repeat=_LOADS, notify=self._say
        )
        report["memory_forms"] = inspected.to_dict()["memory_forms"]
        report["comparison"] = compare(inspected, self.stock, generated, loaded)
        report["agreement"] = generated["agreement"]
        return report

    def _copy(self, source: Source) -> None:
        if is_stock_copy(source, self.stock):
            self._say(f"stock MLX copy: {self.stock} is there, reused")
            return
        with self._progress("writing the stock MLX copy") as progress:
            copy = write_stock(source, self.stock, progress=progress)
        self._say(
            f"stock MLX copy: {copy.nbytes / 1e6:.1f} MB in {self.stock}, "
            f"{copy.seconds:.1f} s"
        )

    def _convert(self, source: Source) -> Report:
        earlier = self._earlier_conversion(source)
        if earlier is not None:
            self._say(
                f"conversion: {self.coded} is there, reused "
                "(delete it to convert again)"
            )
            return {**earlier, "reused": True}
        self._record.unlink(missing_ok=True)
        measurable = restart_peak()
        before = resident_bytes()
        with self._progress("converting") as progress:
            done = convert(
                source, self.coded, progress=progress, overwrite=True
            )
        report = {
            "seconds": done.seconds,
            "weights": done.weights,
            "source_bytes": done.source_bytes,
            "coded_bytes": done.coded_bytes,
            "resident_before": before,
            "peak_resident_bytes": (
                peak_resident_bytes() if measurable else None
            ),
        }
        record = {**_identity(source), "report": report}
        self._record.write_text(json.dumps(record, indent=4) + "\n")
        self._say(f"conversion: {done.summary()}")
        self._say(_memory_line(report))
        return {**report, "reused": False}

    @property
    def _record(self) -> Path:
        return self._output / _CONVERSION

    def _earlier_conversion(self, source: Source) -> Report | None:
        """The report of a finished conversion of this very source."""
        try:
            record: Report = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return None
        if not is_converted(self.coded):
            return None
        report: Report = record.pop("report", {})
        return report if record == _identity(source) else None

    def _verify(self, source: Source) -> VerifyReport:
        with self._progress("verifying") as progress:
            report = verify(self.coded, source, progress=progress)
        if report.identical:
            self._say(
                f"verified: all {report.tensors} tensors are bit-identical"
            )
        for found in report.mismatches:
            self._say(f"NOT identical: {found.name} {found.problem}")
        if not report.identical:
            self._say(f"to convert again, delete {self.coded}")
        return report

    def _answer(self) -> Report:
        from mlx_lm import stream_generate

        model, tokenizer = load(self.coded)
        self._say(f"\n> {QUESTION}")
        text, started = "", time.perf_counter()
        for piece in stream_generate(
            model,
            tokenizer,
            encode_prompt(tokenizer, QUESTION),
            max_tokens=self._max_tokens,
        ):
            text += piece.text
            self._write(piece.text)
        self._write("\n\n")
        seconds = time.perf_counter() - started
        return {"prompt": QUESTION, "text": text, "seconds": seconds}

    def _generate(self) -> Report:
        self._say(
            f"comparing with stock MLX: {self._max_tokens} tokens each, "
            f"{_RUNS} times, in turns"
        )
        return bench_generate(
            self.coded,
            self.stock,
            STORY,
            self._max_tokens,
            repeat=_RUNS,
            notify=self._say,
        )


def _identity(source: Source) -> Report:
    """What must be equal for a conversion to be used again."""
    return {
        "fingerprint": source.fingerprint,
        "format_version": FORMAT_VERSION,
        "mlx_entropy_version": version(),
    }


def _memory_line(conversion: Report) -> str:
    peak, before = (
        conversion["peak_resident_bytes"],
        conversion["resident_before"],
    )
    if peak is None or before is None:
        return "memory while converting: not known on this system"
    return (
        f"memory while converting: {(peak - before) / 1e6:.0f} MB at most, "
        f"beside the {before / 1e6:.0f} MB of Python and MLX"
    )


def compare(
    inspected: ModelReport, stock: Path, generated: Report, loaded: Report
) -> Report:
    """Figures of both models by name, and ours over stock's as ratios."""
    sizes = {
        CODED: {
            "bits_per_weight": inspected.total.bits_per_weight,
            "linear_bits_per_weight": inspected.linear.bits_per_weight,
        },
        STOCK: _stock_bits(inspected, stock),
    }
    models: dict[str, Report] = {}
    for made, opened in zip(
        generated["results"], loaded["results"], strict=True
    ):
        name = made["name"]
        models[name] = {
            "file_bytes": opened["nbytes"],
            **sizes[name],
            "tokens_per_second": made["tokens_per_second"],
            "prompt_tokens_per_second": made["prompt_tokens_per_second"],
            "load_seconds": opened["seconds"],
            "weights_bytes": opened["active_bytes"],
            "peak_resident_bytes": opened.get("peak_resident_bytes"),
        }
    ratios = {
        key: models[CODED][key] / value
        for key, value in models[STOCK].items()
        if value and models[CODED][key]
    }
    return {"coded": models[CODED], "stock": models[STOCK], "ratios": ratios}


def _stock_bits(inspected: ModelReport, stock: Path) -> Report:
    stored = read_header(stock / "model.safetensors")
    linear = 0
    for row in inspected.tensors:
        if row.kind == "linear":
            path = row.name.removesuffix(".weight")
            names = (
                f"{path}.{part}" for part in ("weight", "scales", "biases")
            )
            linear += sum(stored[n].nbytes for n in names if n in stored)
    return {
        "bits_per_weight": bits_per_weight(
            sum(tensor.nbytes for tensor in stored.values()),
            inspected.total.weights,
        ),
        "linear_bits_per_weight": bits_per_weight(
            linear, inspected.linear.weights
        ),
    }


def plot(report: Report, file: Path) -> None:
    """Bars of size and speed, coded beside stock MLX, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    comparison = report["comparison"]
    peer, ours = comparison["stock"], comparison["coded"]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.2))
    panels = (
        ("Weight file, MB", "file_bytes", 1e6, "{:.1f}"),
        ("Tokens a second", "tokens_per_second", 1, "{:.1f}"),
    )
    for axis, (title, key, unit, form) in zip(axes, panels, strict=True):
        values = [peer[key] / unit, ours[key] / unit]
        bars = axis.bar(
            ("stock MLX", "mlx-entropy"),
            values,
            width=0.6,
            color=("#b8bcc4", "#2f6fbb"),
        )
        axis.bar_label(
            bars, [form.format(value) for value in values], padding=3
        )
        axis.set_title(f"{title} ({values[1] / values[0]:.2f}x)", fontsize=11)
        axis.set_ylim(0, 1.15 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
    about = report["machine"]
    name = Path(report["source"]).name
    figure.suptitle(f"{name}: bit-identical weights", fontsize=13)
    figure.text(
        0.5,
        0.02,
        f"{about['cpus']} CPUs, {about['platform']}, {about['target']} · "
        f"mlx {about['mlx']}, mlx-lm {about['mlx_lm']}",
        ha="center",
        fontsize=8,
        color="#666666",
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
