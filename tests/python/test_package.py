"""Importing the package: what it costs, and what is said when it fails."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mlx_entropy

NO_NATIVE_MODULE = "import sys\nsys.modules['mlx_entropy._ext'] = None\n"
OTHER_MLX = "import mlx.core as mx\nmx.__version__ = '0.31.0'\n"
COMMAND = "from mlx_entropy.cli.main import main\nraise SystemExit(main())\n"


def python(program: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True
    )


def test_import_is_light() -> None:
    done = python(
        "import sys, mlx_entropy\n"
        "assert not {'mlx', 'numpy'} & sys.modules.keys()\n"
        "from mlx_entropy import *\n"
        "assert not {'mlx_lm', 'transformers'} & sys.modules.keys()\n"
    )
    assert done.stderr == ""


def test_functions_stay_functions() -> None:
    """No submodule takes the name of an export, whatever is imported."""
    done = python(
        "import importlib, pkgutil, mlx_entropy\n"
        "for found in pkgutil.walk_packages(\n"
        "    mlx_entropy.__path__, 'mlx_entropy.'\n"
        "):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "for name in mlx_entropy.__all__:\n"
        "    value = getattr(mlx_entropy, name)\n"
        "    assert callable(value) or name == '__version__', name\n"
    )
    assert done.stderr == ""


def test_exports_are_listed() -> None:
    assert set(mlx_entropy.__all__) <= set(dir(mlx_entropy))
    assert mlx_entropy.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mlx_entropy.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (NO_NATIVE_MODULE, "native module of mlx-entropy does not load"),
        (OTHER_MLX, "built for mlx 0.32.4, found 0.31.0"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        "from mlx_entropy import load",
        "import mlx_entropy; mlx_entropy.entropy_encode",
        "import mlx_entropy.nn.linear",
    ],
)
def test_broken_installation(broken: str, reason: str, use: str) -> None:
    done = python(broken + use)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert reason in last
    assert "pip install" in last


@pytest.mark.parametrize("broken", [NO_NATIVE_MODULE, OTHER_MLX])
def test_command_in_a_broken_installation(broken: str) -> None:
    program = broken + COMMAND
    for argv in (["--help"], ["--version"], ["convert", "--help"]):
        done = python(program, *argv)
        assert (done.returncode, done.stderr) == (0, "")
    doctor = python(program, "doctor")
    assert (doctor.returncode, doctor.stderr) == (1, "")
    assert "problem: " in doctor.stdout
    assert "pip install" in doctor.stdout
    done = python(program, "inspect", "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "doctor" in done.stderr


def test_package_is_typed() -> None:
    assert (Path(mlx_entropy.__file__).parent / "py.typed").is_file()


def test_measurement_stays_out_of_the_wheel() -> None:
    """Converting and running a model needs no plots and no peers."""
    requirements = metadata.requires("mlx-entropy") or []
    needed = [each for each in requirements if "extra ==" not in each]
    assert needed
    assert not [each for each in needed if each.startswith("matplotlib")]
    for file in Path(mlx_entropy.__file__).parent.rglob("*.py"):
        text = file.read_text()
        assert "matplotlib" not in text, file
        assert not re.search(r"(from|import) benchmarks", text), file
