"""mlx_lm.server on converted models, with and without a draft model."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

import mlx_entropy
from helpers import stock

SECONDS = 90
PROMPT = "abc"

STOCK, CODED = 0, 1
OURS = ["-m", "mlx_entropy", "run", "mlx_lm.server"]
THEIRS = ["-m", "mlx_lm", "server", "--trust-remote-code"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("server")
    mx.random.seed(7)
    source = stock.write(folder / "source")
    mlx_entropy.convert(source, folder / "coded")
    return source, folder / "coded"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(*arguments: Any):
    """The address of a server, and its process."""
    port = free_port()
    command = [*arguments, "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield wait_for(f"http://127.0.0.1:{port}", process), process
        finally:
            process.kill()


def wait_for(address: str, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        with contextlib.suppress(urllib.error.URLError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return address
        time.sleep(0.1)
    pytest.fail("the server does not answer")


def post(address: str, path: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def test_sigterm_ends_it(models):
    """As it ends mlx_lm.server, whose threads wait for more requests."""
    with serving(*OURS, "--model", models[CODED]) as (address, process):
        post(address, "/v1/completions", prompt=PROMPT, max_tokens=2)
        process.terminate()
        assert process.wait(SECONDS) == -signal.SIGTERM


def test_requests_at_once(models):
    """They are generated in one batch, which mlx-lm's own layers compute."""
    prompts = ["abc", "hello there", "x", "abc"]
    model, tokenizer = mlx_lm.load(str(models[STOCK]))
    expected = [
        mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
        for prompt in prompts
    ]
    with serving(*OURS, "--model", models[CODED]) as (address, _):

        def answer(prompt):
            return post(
                address,
                "/v1/completions",
                prompt=prompt,
                max_tokens=8,
                temperature=0,
            )["choices"][0]["text"]

        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(answer, prompts)) == expected


@pytest.mark.parametrize(
    ("program", "model", "draft"),
    [
        (OURS, CODED, None),
        (OURS, STOCK, CODED),
        (OURS, CODED, STOCK),
        (THEIRS, CODED, None),
        (THEIRS, CODED, CODED),
    ],
)
def test_server(models, program, model, draft):
    line = [*program, "--model", models[model]]
    if draft is not None:
        line += ["--draft-model", models[draft]]
    expected = mlx_lm.generate(
        *mlx_lm.load(str(models[0])), PROMPT, max_tokens=8
    )
    # mlx-lm's server continues from caches that do not fit when it has a draft
    # model, stock or not: only the first answer is right.
    requests = 2 if draft is None else 1
    with serving(*line) as (address, _):
        for _ in range(requests):
            answer = post(
                address,
                "/v1/completions",
                prompt=PROMPT,
                max_tokens=8,
                temperature=0,
            )
            assert answer["choices"][0]["text"] == expected
