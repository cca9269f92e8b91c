"""llama.cpp, built by scripts/build_llama_cpp.sh, as a peer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

DEFAULT_DIRECTORY = Path("build/llama.cpp")
NAME = "llama.cpp"


@dataclass(frozen=True)
class LlamaCpp:
    """A folder with llama.cpp's programs."""

    folder: Path

    @property
    def version(self) -> str:
        try:
            return (self.folder / "VERSION").read_text().strip()
        except OSError:
            return "llama.cpp of unknown version"

    def program(self, name: str) -> Path:
        return self.folder / name


def find_llama_cpp(
    directory: str | os.PathLike[str] | None = None, target: str | None = None
) -> LlamaCpp | None:
    """The programs under what the script was given, or None.

    With our kernels forced to avx2, the build without AVX-512.
    """
    root = DEFAULT_DIRECTORY if directory is None else Path(directory)
    suffix = "-avx2" if target == "avx2" else ""
    for folder in (root / f"bin{suffix}", root):
        if (folder / "ggml-peer").is_file():
            return LlamaCpp(folder.resolve())
    return None


def missing_message(
    directory: str | os.PathLike[str] | None, target: str | None
) -> str:
    """Why there is no llama.cpp, and what to do about it."""
    root = DEFAULT_DIRECTORY if directory is None else Path(directory)
    flag = "--avx2 " if target == "avx2" else ""
    return (
        f"no llama.cpp in {root}; "
        f"scripts/build_llama_cpp.sh {flag}{root} builds it"
    )


class GgmlProduct:
    """A running ggml-peer: one shape and type, products on demand."""

    def __init__(
        self, llama: LlamaCpp, kind: str, rows: int, cols: int, copies: int
    ) -> None:
        command = [str(llama.program("ggml-peer")), "--serve"]
        command += ["--type", kind, "--rows", str(rows), "--cols", str(cols)]
        command += ["--copies", str(copies)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        try:
            self.about = self._answer()
        except ValueError:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of one matrix."""
        return int(self.about["nbytes"])

    def seconds(self, batch: int, threads: int, products: int) -> float:
        """Seconds of a product, timed by ggml-peer over `products`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{batch} {threads} {products}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # What it said is in the answer's message.
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip().splitlines()
            raise ValueError(said[-1] if said else "ggml-peer died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> GgmlProduct:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Speeds:
    """What llama-bench measured, in tokens a second; None where not asked."""

    generation: float | None
    prompt: float | None
    model_bytes: int
    model_type: str


def run_llama_bench(
    llama: LlamaCpp,
    model: str | os.PathLike[str],
    *,
    threads: int,
    prompt_tokens: int,
    max_tokens: int,
    repeat: int = 1,
) -> Speeds:
    """One run of llama-bench. ValueError if it does not load the model."""
    command = [str(llama.program("llama-bench")), "-m", str(model)]
    command += ["-t", str(threads), "-r", str(repeat), "-o", "json"]
    command += ["-p", str(prompt_tokens), "-n", str(max_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"llama-bench failed on {model}: {lines[-1]}")
    return parse_llama_bench(done.stdout)


def parse_llama_bench(text: str) -> Speeds:
    """`llama-bench -o json`; ValueError for anything else."""
    try:
        rows = json.loads(text)
        return Speeds(
            _speed(rows, "n_gen"),
            _speed(rows, "n_prompt"),
            int(rows[0]["model_size"]),
            str(rows[0]["model_type"]),
        )
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise ValueError(
            f"llama-bench printed something else: {error}"
        ) from None


def _speed(rows: list[Mapping[str, Any]], count: str) -> float | None:
    """Tokens a second of the test that has tokens of one kind alone."""
    other = "n_prompt" if count == "n_gen" else "n_gen"
    for row in rows:
        if row[count] > 0 and row[other] == 0:
            return float(row["avg_ts"])
    return None
