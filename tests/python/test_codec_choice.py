"""The automatic codec: the same in every process, whatever others do."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

LOADS = 5
CHOOSE = """
import json
import mlx.core as mx
from mlx_entropy import _ext

weight = mx.random.normal((512, 2048), key=mx.random.key(1)) * 0.02
parts = mx.quantize(weight.astype(mx.float16), 64, 4)
choice = _ext.rank_codecs(_ext.encode_affine(*parts, 64, 4))[0]
print(json.dumps([choice.codec, choice.pass_cost, _ext.machine_model()]))
"""


def choose(cache):
    """Codec, cost of a merge and machine model, as a new process has them."""
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def busy():
    """Another process on every core."""
    with contextlib.ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            process = subprocess.Popen([sys.executable, "-c", "while 1: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def test_measured_once(tmp_path):
    codec, cost, model = choose(tmp_path)
    file = tmp_path / "mlx-entropy" / "machine-model.txt"
    assert model["file"] == str(file)
    kept = file.read_bytes()
    again_codec, again_cost, again = choose(tmp_path)
    assert (again_codec, again_cost) == (codec, cost)
    for name, value in model.items():
        same = value if isinstance(value, str) else pytest.approx(value, 1e-5)
        assert again[name] == same
    assert file.read_bytes() == kept
    # Another measurement would not hit these.
    start = kept.decode().split("\t")[:4]
    file.write_text("\t".join([*start, "3.5", "0.25", "0.5", "1000"]) + "\n")
    codec, _, model = choose(tmp_path)
    assert codec == "flat"
    assert model["rans_nanoseconds"] == 3.5


def test_a_folder_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    codec, _, model = choose(blocker)
    assert model["file"] == ""
    assert codec in ("rans", "tree", "flat")


def test_the_same_choice_on_a_busy_machine(tmp_path, busy):
    """Each process measures for itself, with nothing to remember."""
    choices = [choose(tmp_path / str(i))[:2] for i in range(LOADS)]
    assert choices == [choices[0]] * LOADS
