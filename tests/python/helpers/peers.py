"""Small shapes, and stand-ins for llama.cpp's programs."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from benchmarks.cli import main as benchmarks
from benchmarks.shapes import ModelShape

SMALL = ModelShape("small", "nothing", 256, 2, 512, 4, 2, 320, True)
UNTIED = ModelShape("untied", "nothing", 256, 1, 512, 4, 4, 320, False)

# What `llama-bench -o json` printed, shortened.
RECORDED = """[
  {"build_commit": "llama-cpp-python-0.3.36", "cpu_info": "AMD EPYC",
   "model_type": "llama 256M Q4_1", "model_size": 96576768,
   "n_threads": 2, "n_prompt": 32, "n_gen": 0, "avg_ns": 126641929,
   "avg_ts": 252.680927, "samples_ts": [ 252.681 ]},
  {"build_commit": "llama-cpp-python-0.3.36", "cpu_info": "AMD EPYC",
   "model_type": "llama 256M Q4_1", "model_size": 96576768,
   "n_threads": 2, "n_prompt": 0, "n_gen": 8, "avg_ns": 63179286,
   "avg_ts": 126.623780, "samples_ts": [ 126.624 ]}
]"""

# Stands in for ggml-peer: 4.5 bits a weight, a millisecond a row.
GGML_PEER = """
import json, sys
a = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if int(a["--cols"]) % 32:
    sys.exit("ggml-peer: columns must be a multiple of 32")
nbytes = int(a["--rows"]) * int(a["--cols"]) * 9 // 16
about = {"type": a["--type"], "layout": "repack", "nbytes": nbytes}
print(json.dumps(about), flush=True)
for line in sys.stdin:
    batch, threads, products = map(int, line.split())
    print(json.dumps({"seconds": batch / 1e3}), flush=True)
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def run(*argv: object) -> int:
    """The benchmarks' command, in this process."""
    return benchmarks.main([str(argument) for argument in argv])
