"""Products of real models' shapes over batches, bits and threads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_entropy import _ext
from mlx_entropy.bench.report import Report, Result, make_report
from mlx_entropy.bench.timing import Timing, settings

from .contenders import CODECS, Contender, Dense, Ggml, Stock, our_contenders
from .llama_cpp import LlamaCpp
from .noise import Noise
from .shapes import ModelShape
from .weights import WeightKind

PEERS = ("mlx", "llama.cpp", "numpy")
PRODUCTS = ("attention", "keys", "up", "down")

# A sample shorter than this counts the clock and the wake-up of threads.
_SAMPLE_SECONDS = 0.01
_MOST_PRODUCTS = 64
_DEFAULT_CACHE = 32 << 20
_CACHES = 4  # Matrices take this many times the last cache.

# (done, total, what is next)
Notify = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SweepOptions:
    shapes: tuple[ModelShape, ...]
    products: tuple[str, ...]
    kinds: tuple[WeightKind, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    peers: tuple[str, ...] = PEERS
    llama: LlamaCpp | None = None
    target: str | None = None
    repeat: int = 15
    # Seconds for the rounds of one measurement, and the longest product that
    # a contender is asked for.
    budget: float = 1.5
    limit: float = 2.0


@dataclass(frozen=True)
class _Case:
    shape: ModelShape
    product: str
    kind: WeightKind

    @property
    def dimensions(self) -> tuple[int, int]:
        return self.shape.products()[self.product]

    @property
    def title(self) -> str:
        rows, cols = self.dimensions
        return f"{self.shape.name} {self.product} {rows}x{cols}"


@dataclass
class _Run:
    """What a whole sweep collects."""

    options: SweepOptions
    notify: Notify | None
    total: int
    bandwidth: dict[int, float] = field(default_factory=dict)
    results: list[Report] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: int = 0

    def tell(self, what: str) -> None:
        if self.notify is not None:
            self.notify(self.done, self.total, what)

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def bench_sweep(
    options: SweepOptions, *, notify: Notify | None = None
) -> Report:
    """Measure every case with every contender.

    A product that would take a contender longer than the limit, to judge by a
    smaller batch, is left out. ValueError for a shape and group size that do
    not go together.
    """
    cases = [
        _Case(shape, product, kind)
        for shape in options.shapes
        for product in options.products
        for kind in options.kinds
    ]
    points = len(options.batches) * len(options.threads)
    run = _Run(options, notify, len(cases) * points)
    noise = Noise()
    with settings(None, options.target):
        run.tell("measuring the memory")
        run.bandwidth = measure_bandwidth(options.threads)
        for case in cases:
            _measure_case(run, case)
        again = measure_bandwidth(options.threads)
        bandwidth = {
            threads: max(found, again[threads])
            for threads, found in run.bandwidth.items()
        }
        for row in run.results:
            share = row["bytes_per_second"] / bandwidth[row["setting_threads"]]
            row["bandwidth_share"] = share
        about = {
            "ours": list(CODECS),
            "batches": list(options.batches),
            "bandwidth": {str(key): rate for key, rate in bandwidth.items()},
            "peak_flops": measure_peak(),
            "llama_cpp": options.llama and options.llama.version,
            "others_cpu_share": noise.share(),
            "notes": run.notes,
        }
        return make_report("sweep", about, run.results)


def _measure_case(run: _Run, case: _Case) -> None:
    run.tell(f"{case.title}, {case.kind.label}: preparing")
    with ExitStack() as stack:
        ours_and_peers = list(_contenders(run, case, stack))
        # Apart: its threads spin for a while after each product.
        dense = [c for c in ours_and_peers if isinstance(c, Dense)]
        others = [c for c in ours_and_peers if not isinstance(c, Dense)]
        for threads in run.options.threads:
            with settings(threads):
                pace: dict[str, float] = {}
                for batch in run.options.batches:
                    run.tell(
                        f"{case.title}, {case.kind.label}, batch {batch}, "
                        f"{threads} threads"
                    )
                    found: dict[Contender, Timing] = {}
                    for group in (others, dense):
                        found |= _measure(run, group, batch, threads, pace)
                    _record(run, case, batch, threads, found)
                    run.done += 1


def _contenders(
    run: _Run, case: _Case, stack: ExitStack
) -> Iterator[Contender]:
    options = run.options
    rows, cols = case.dimensions
    kind = case.kind
    parts = kind.make(rows, cols)
    group_size = kind.group_size_for(cols)
    far = _CACHES * last_cache_bytes()
    yield from our_contenders(parts, kind, rows, cols, far)
    if "mlx" in options.peers:
        yield Stock(parts, group_size, kind.bits, (rows, cols), far)
    if "llama.cpp" in options.peers and options.llama is not None:
        for name in kind.llama_types(cols):
            try:
                peer = Ggml(options.llama, name, rows, cols, far)
            except ValueError as error:
                run.note(f"llama.cpp {name}, {case.title}: {error}")
                continue
            yield stack.enter_context(closing(peer))
    if "numpy" in options.peers:
        yield Dense(parts, group_size, kind.bits, far)


def _measure(
    run: _Run,
    contenders: Sequence[Contender],
    batch: int,
    threads: int,
    pace: dict[str, float],
) -> dict[Contender, Timing]:
    """Rounds in which each contender takes a sample in turn.

    `pace` has the seconds a row that each took at the last batch.
    """
    options = run.options
    products: dict[Contender, int] = {}
    for each in contenders:
        if pace.get(each.name, 0.0) * batch > options.limit:
            run.note(
                f"{each.name} is left out where a product would take it more "
                f"than {options.limit:g} s"
            )
            continue
        products[each] = _products(each, batch, threads, options.budget)
    samples: dict[Contender, list[float]] = {each: [] for each in products}
    started = time.perf_counter()
    for done in range(1, options.repeat + 1):
        for each, count in products.items():
            samples[each].append(each.sample(batch, threads, count))
        elapsed = time.perf_counter() - started
        if elapsed * (done + 1) / done > options.budget:
            break
    found = {
        each: Timing(tuple(taken), products[each])
        for each, taken in samples.items()
    }
    pace |= {each.name: found[each].seconds / batch for each in found}
    return found


def _products(
    contender: Contender, batch: int, threads: int, budget: float
) -> int:
    """Warm up; returns how many products make a sample."""
    once = contender.sample(batch, threads, 1)
    if once > budget / 4:
        return 1
    once = min(contender.sample(batch, threads, 1) for _ in range(3))
    return max(1, min(_MOST_PRODUCTS, math.ceil(_SAMPLE_SECONDS / once)))


def _record(
    run: _Run,
    case: _Case,
    batch: int,
    threads: int,
    found: dict[Contender, Timing],
) -> None:
    rows, cols = case.dimensions
    ours = {
        each.name: timing.seconds
        for each, timing in found.items()
        if each.name in CODECS
    }
    for each, timing in found.items():
        result = Result(each.name, timing, rows * cols * batch, each.nbytes)
        moved = each.nbytes + 4 * batch * (rows + cols)
        flops = 2 * rows * cols * batch
        run.results.append(
            {
                **result.to_dict(),
                "shape": case.shape.name,
                "product": case.product,
                "rows": rows,
                "cols": cols,
                "weights_are": case.kind.label,
                "batch": batch,
                "setting_threads": threads,
                "bits_per_weight": each.bits_per_weight,
                "layout": _layout(each),
                "bytes_moved": moved,
                "bytes_per_second": moved / timing.seconds,
                "flops_per_second": flops / timing.seconds,
                "intensity": flops / moved,
                # How much faster each of ours is.
                "ratios": {
                    name: timing.seconds / seconds
                    for name, seconds in ours.items()
                },
            }
        )


def _layout(contender: Contender) -> str | None:
    """Whether llama.cpp has its blocks rearranged for such a matrix."""
    if isinstance(contender, Ggml):
        return str(contender.about["layout"])
    return None


def measure_bandwidth(threads: Sequence[int]) -> dict[int, float]:
    """The best bytes a second at which so many threads read memory."""
    nbytes = 8 * last_cache_bytes()
    found = {}
    for count in threads:
        with settings(count):
            found[count] = max(_ext.read_bandwidth(nbytes, 8))
    return found


def measure_peak() -> float:
    """Operations a second of a large float32 product in numpy: the roof."""
    size = 1536
    matrix = np.ones((size, size), np.float32)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)


def last_cache_bytes() -> int:
    """Size of the largest cache, where the system tells."""
    sizes = [
        _cache_size(file.read_text())
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob(
            "index*/size"
        )
    ]
    return max(sizes, default=_DEFAULT_CACHE)


def _cache_size(text: str) -> int:
    """Bytes of e.g. "32768K"."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    if text and text[-1] in units:
        return int(text[:-1]) * units[text[-1]]
    return int(text or 0)
