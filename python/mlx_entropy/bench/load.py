"""Loading a model: seconds, bytes read and memory, in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..destination import is_converted
from ..loading import register
from ..mlx_lm_files import readable
from ..nn.coded import EntropyCoded
from ..sources.hub import model_directory
from .memory import bytes_read, peak_resident_bytes, resident_bytes
from .report import CODED, STOCK, Report, Result, make_report
from .timing import Timing

_TRUST = "--trust-remote-code"


def bench_load(
    model: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    repeat: int = 3,
    notify: Callable[[str], None] | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Load each directory `repeat` times in turns, a new process each time.

    The time is that of mlx-lm's `load_model` until all weights are in memory
    and, where they are coded, validated; imports and the tokenizer are left
    out. The files are read once before, so they come from the page cache.
    ValueError if a model does not load. `trust_remote_code` lets a model's own
    Python file run.
    """
    directories = {CODED: model_directory(model)}
    if against is not None:
        directories[STOCK] = model_directory(against)
    runs: dict[str, list[Report]] = {name: [] for name in directories}
    for directory in directories.values():
        _warm(directory)
    for number in range(1, repeat + 1):
        for name, directory in directories.items():
            run = _in_new_process(directory, trust_remote_code)
            runs[name].append(run)
            if notify is not None:
                notify(
                    f"loading {name}, run {number} of {repeat}: "
                    f"{run['seconds']:.2f} s"
                )
    results = [_summary(name, found) for name, found in runs.items()]
    ratio = None
    if against is not None:
        ratio = results[1]["seconds"] / results[0]["seconds"]
    return make_report("load", {}, results, ratio=ratio)


def _warm(directory: Path) -> None:
    """Bring the weights into the page cache."""
    for file in directory.glob("model*.safetensors"):
        with open(file, "rb") as stream:
            while stream.read(1 << 24):
                pass


def _in_new_process(directory: Path, trust_remote_code: bool) -> Report:
    command = [sys.executable, "-m", __name__, str(directory)]
    if trust_remote_code:
        command.append(_TRUST)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"cannot load {directory}: {lines[-1]}")
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


def _summary(name: str, runs: list[Report]) -> Report:
    timing = Timing(tuple(run["seconds"] for run in runs), 1)
    first = runs[0]
    result = Result(name, timing, first["weights"], first["nbytes"])
    medians = {
        key: statistics.median(run[key] for run in runs)
        for key in ("peak_resident_bytes", "resident_before", "bytes_read")
        if all(run[key] is not None for run in runs)
    }
    return {
        **result.to_dict(),
        "active_bytes": first["active_bytes"],
        **medians,
    }


def measure_load(directory: str, trust_remote_code: bool = False) -> Report:
    """Load a model in this process and tell what it took."""
    import mlx_lm.utils

    path = Path(directory)
    if is_converted(path):
        register()
    resident, read = resident_bytes(), bytes_read()
    started = time.perf_counter()
    with readable(path) as plain:
        model, _ = mlx_lm.utils.load_model(
            plain, trust_remote_code=trust_remote_code
        )
        mx.eval(model.parameters())
    seconds = time.perf_counter() - started
    after = bytes_read()
    return {
        "seconds": seconds,
        "bytes_read": None if read is None or after is None else after - read,
        "nbytes": sum(
            f.stat().st_size for f in path.glob("model*.safetensors")
        ),
        "weights": count_weights(model),
        "active_bytes": mx.get_active_memory(),
        "resident_before": resident,
        "peak_resident_bytes": peak_resident_bytes(),
    }


def count_weights(model: nn.Module, multiplied: bool = False) -> int:
    """Weights in the matrices of a model, coded, packed or plain.

    With `multiplied`, those that one token is multiplied with: a table of
    embeddings only counts where it is the output projection, too.
    """
    tied = getattr(model, "lm_head", None) is None
    total = 0
    for _, module in model.named_modules():
        if multiplied and not tied and _is_embedding(module):
            continue
        total += _matrix_weights(module)
    return total


def _is_embedding(module: nn.Module) -> bool:
    return hasattr(module, "as_linear")


def _matrix_weights(module: nn.Module) -> int:
    if isinstance(module, EntropyCoded):
        info = module.info
        return info.rows * info.cols
    weight = module.get("weight")
    if not isinstance(weight, mx.array) or weight.ndim < 2:
        return 0
    if weight.dtype == mx.uint32 and hasattr(module, "bits"):
        return weight.size * 32 // module.bits
    return weight.size


if __name__ == "__main__":
    print(json.dumps(measure_load(sys.argv[1], _TRUST in sys.argv[2:])))
