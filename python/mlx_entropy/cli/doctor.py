"""`mlx-entropy doctor`: what this machine runs, and what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import version
from .arguments import add_json, add_verb

THREADS_VARIABLE = "MLX_ENTROPY_NUM_THREADS"

_EXAMPLES = """\
  mlx-entropy doctor
  MLX_ENTROPY_TARGET=scalar mlx-entropy doctor --json
  MLX_ENTROPY_NUM_THREADS=1 mlx-entropy doctor
"""

_DESCRIPTION = """\
Show the kernels' target, the CPU features they need, threads and versions,
and check that the native module works. Exits with 1 if something is wrong.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "doctor",
        "check the installation and show the target in use",
        _DESCRIPTION,
        _EXAMPLES,
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """The report as JSON types; "problems" is empty when all is well."""
    problems: list[str] = []
    report: dict[str, Any] = {
        "versions": _versions(problems),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "forced_target": os.environ.get("MLX_ENTROPY_TARGET"),
        "extension": None,
        "target": None,
        "targets": [],
        "cpu_features": {},
        "threads": None,
        "threads_source": None,
        "machine_model": None,
        "codec": None,
        "problems": problems,
    }
    try:
        from .. import _ext
    except Exception as error:  # Whatever it is, it is the diagnosis.
        problems.append(str(error))
        return report
    report["extension"] = Path(str(getattr(_ext, "__file__", ""))).name
    try:
        report["cpu_features"] = _ext.cpu_features()
        report["targets"] = _ext.targets()
        report["threads"] = _ext.num_threads()
        report["threads_source"] = _ext.threads_source()
        report["target"] = _ext.target()
        _check_target(report, problems)
        _check_threads(report, problems)
        _check_kernels(_ext, problems)
        report["machine_model"] = _ext.machine_model()
        report["codec"] = _codec(_ext)
    except Exception as error:
        problems.append(f"the native module does not work: {error}")
    return report


def _versions(problems: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "mlx-entropy": version(),
        "python": platform.python_version(),
    }
    for package in ("mlx", "mlx-lm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
            problems.append(f"{package} is not installed")
    return found


def _check_target(report: dict[str, Any], problems: list[str]) -> None:
    forced = report["forced_target"]
    if forced and forced != report["target"]:
        problems.append(
            f"MLX_ENTROPY_TARGET={forced}, but {report['target']} is in use; "
            f"this machine can run {', '.join(report['targets'])}"
        )


def _check_threads(report: dict[str, Any], problems: list[str]) -> None:
    forced = os.environ.get(THREADS_VARIABLE)
    # set_num_threads() is stronger.
    if forced and report["threads_source"] not in (
        THREADS_VARIABLE,
        "set_num_threads",
    ):
        problems.append(
            f"{THREADS_VARIABLE}={forced} is not a number from 1 to 4096; "
            f"{report['threads']} threads are in use"
        )


def _check_kernels(ext: Any, problems: list[str]) -> None:
    """Code a small matrix, get it back, multiply by it."""
    import mlx.core as mx

    dense = mx.random.normal((64, 128), key=mx.random.key(0))
    parts = mx.quantize(dense, group_size=64, bits=4)
    coded = ext.encode_affine(*parts, 64, 4)
    decoded = ext.decode_affine(coded)
    if not all(map(mx.array_equal, parts, decoded)):
        problems.append("the coder does not return what it was given")
    x = mx.random.normal((1, 128), key=mx.random.key(1))
    want = x @ mx.dequantize(*parts, group_size=64, bits=4).T
    got = ext.entropy_coded_matmul(x, coded, 64)
    # False for a NaN, too.
    if not mx.abs(got - want).max() <= 1e-3 * mx.abs(want).max():
        problems.append(f"the product is wrong on target {ext.target()}")


def _codec(ext: Any) -> str:
    """What loading would choose for normally distributed weights of 4 bits."""
    import mlx.core as mx

    weight = mx.random.normal((256, 1024), key=mx.random.key(0))
    parts = mx.quantize(weight.astype(mx.float16), group_size=64, bits=4)
    best: str = ext.rank_codecs(ext.encode_affine(*parts, 64, 4))[0].codec
    return best


def _describe_model(model: dict[str, Any]) -> str:
    return (
        f"rans {model['rans_nanoseconds']:.2g}, "
        f"tree {model['tree_nanoseconds']:.2g} and "
        f"{model['merge_nanoseconds']:.2g} a merge, ns a weight; memory "
        f"{model['bytes_per_nanosecond']:.3g} GB/s"
    )


def _print(report: dict[str, Any]) -> None:
    for name, value in report["versions"].items():
        print(f"{name:<14}{value or 'missing'}")
    features = [n for n, enabled in report["cpu_features"].items() if enabled]
    lines = {
        "platform": report["platform"],
        "extension": report["extension"] or "does not load",
        "target": report["target"] or "none",
        "available": " ".join(report["targets"]) or "none",
        "cpu features": " ".join(features) or "none",
        "threads": "unknown"
        if report["threads"] is None
        else f"{report['threads']} (from {report['threads_source']})",
    }
    model = report["machine_model"]
    if model is not None:
        lines["decoding"] = _describe_model(model)
        lines["kept in"] = model["file"] or "no file"
        lines["codec"] = f"{report['codec']} (for weights of 4 bits)"
    for name, value in lines.items():
        print(f"{name:<14}{value}")
    for problem in report["problems"]:
        print(f"problem: {problem}")
    if not report["problems"]:
        print("no problems found")
