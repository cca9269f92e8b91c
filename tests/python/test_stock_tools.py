"""Every program and entry point of mlx-lm that takes a model, on a coded one.

Those that train, fuse and dequantize are in test_adapters.py and
test_stock_export.py.
"""

from __future__ import annotations

import shutil
import sys

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import utils
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache

import mlx_entropy
from helpers import stock
from mlx_entropy.cli.main import main
from mlx_entropy.model_format import CHECKSUM_FILE
from mlx_entropy.nn.coded import EntropyCoded

TRUST = "--trust-remote-code"
PROMPT = "abc"


@pytest.fixture
def kind():
    return "llama"


@pytest.fixture
def source(tmp_path, kind):
    return stock.write(tmp_path / "source", stock.MODELS[kind])


@pytest.fixture
def coded(tmp_path, source):
    mlx_entropy.convert(source, tmp_path / "coded")
    return tmp_path / "coded"


def run(capsys, *arguments):
    """What a program prints that is started by our command."""
    capsys.readouterr()
    status = main(["run", *map(str, arguments)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def generated(output):
    """The text in the output of mlx_lm.generate, without its timings."""
    return output.split("==========")[1]


GENERATE = ("--prompt", PROMPT, "--max-tokens", 8, "--temp", 0)


every_kind = pytest.mark.parametrize("kind", stock.MODELS)


@every_kind
def test_generate(monkeypatch, capsys, source, coded):
    texts = []
    for model in (source, coded):
        stock.run(monkeypatch, "generate", "--model", model, *GENERATE, TRUST)
        texts.append(generated(capsys.readouterr().out))
    texts.append(
        generated(run(capsys, "mlx_lm.generate", "--model", coded, *GENERATE))
    )
    assert texts[0].strip()
    assert len(set(texts)) == 1


@pytest.mark.parametrize("draft", ["source", "coded"])
@pytest.mark.parametrize("model", ["source", "coded"])
def test_draft_models(capsys, tmp_path, source, coded, model, draft):
    expected = generated(
        run(capsys, "mlx_lm.generate", "--model", source, *GENERATE)
    )
    pair = ("--model", tmp_path / model, "--draft-model", tmp_path / draft)
    found = generated(run(capsys, "generate", *pair, *GENERATE))
    assert found == expected


@pytest.mark.parametrize("draft", ["source", "coded"])
def test_trust_reaches_draft_models(
    monkeypatch, capsys, tmp_path, source, coded, draft
):
    """Of a coded model; mlx-lm itself trusts no draft model."""
    pair = ("--model", coded, "--draft-model", tmp_path / draft)
    stock.run(monkeypatch, "generate", *pair, *GENERATE, TRUST)
    assert generated(capsys.readouterr().out).strip()
    mlx_entropy.unregister()
    pair = ("--model", source, "--draft-model", coded)
    with pytest.raises(ValueError, match="trust_remote_code") as caught:
        stock.run(monkeypatch, "generate", *pair, *GENERATE, TRUST)
    assert "\n" not in str(caught.value)


@every_kind
def test_perplexity(monkeypatch, capsys, source, coded):
    from mlx_lm import perplexity

    data = mx.random.randint(3, 128, (4, 16))
    monkeypatch.setattr(perplexity, "load_data", lambda *_, **__: data)
    figures = []
    for model in (source, coded):
        arguments = ("--model", model, "--sequence-length", 16, TRUST)
        stock.run(monkeypatch, "perplexity", *arguments)
        lines = capsys.readouterr().out.splitlines()
        line = next(each for each in lines if "Perplexity" in each)
        figures.append(float(line.split()[1]))
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)


@every_kind
def test_batch_generate(source, coded):
    answers = []
    for model, tokenizer in (
        mlx_lm.load(str(source)),
        mlx_entropy.load(coded),
    ):
        prompts = [tokenizer.encode(text) for text in ("abc", "hello", "x")]
        response = mlx_lm.batch_generate(
            model, tokenizer, prompts, max_tokens=6
        )
        answers.append(response.texts)
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]


def test_prompt_caches(monkeypatch, capsys, tmp_path, source, coded):
    """Made by mlx_lm.cache_prompt, continued by mlx_lm.generate."""
    texts = []
    for model in (source, coded):
        file = tmp_path / f"{model.name}.safetensors"
        stock.run(
            monkeypatch, "cache_prompt", "--model", model, "--prompt", "hello",
            "--prompt-cache-file", file, TRUST,
        )  # fmt: skip
        stock.run(
            monkeypatch, "generate", "--model", model,
            "--prompt-cache-file", file, *GENERATE, TRUST,
        )  # fmt: skip
        texts.append(generated(capsys.readouterr().out))
    assert texts[0].strip()
    assert texts[0] == texts[1]


@every_kind
def test_prompt_caches_of_the_other(source, coded, tmp_path, relative_error):
    """A stock model goes on where a coded one stopped, and the reverse."""
    models = [mlx_lm.load(str(source))[0], mlx_entropy.load(coded)[0]]
    first, rest = stock.TOKENS[:1, :4], stock.TOKENS[:1, 4:]
    expected = models[0](stock.TOKENS[:1])[:, 4:]
    for one, other in (models, reversed(models)):
        cache = make_prompt_cache(one)
        one(first, cache=cache)
        file = str(tmp_path / "cache.safetensors")
        mlx_lm.models.cache.save_prompt_cache(file, cache)
        found = other(rest, cache=load_prompt_cache(file))
        assert relative_error(found, expected) <= 2e-3


def test_benchmark(monkeypatch, capsys, coded):
    output = run(
        capsys, "mlx_lm.benchmark", "--model", coded, "-p", 8, "-g", 4, "-n", 1
    )
    assert "generation_tps" in output


def test_chat(monkeypatch, capsys, coded):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (coded / "chat_template.jinja").write_text(template)
    lines = iter(["abc", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    assert run(capsys, "mlx_lm.chat", "--model", coded, "--max-tokens", 4)


@every_kind
def test_parameters_are_counted_as_weights(source, coded):
    """Training and quantizing print how many there are."""
    models = [mlx_lm.load(str(source))[0], mlx_entropy.load(coded)[0]]
    counts = [utils.get_total_parameters(model) for model in models]
    assert counts[0] == counts[1]
    bits = [utils.compute_bits_per_weight(model) for model in models]
    assert 3 < bits[1] < bits[0] + 1


class Group:
    """One of several processes, which are not there."""

    def __init__(self, rank, size):
        self._rank, self._size = rank, size

    def rank(self):
        return self._rank

    def size(self):
        return self._size


@pytest.fixture
def sharded(tmp_path):
    """A coded model of four layers in many files."""
    config = stock.LLAMA | {"model_type": "qwen2", "num_hidden_layers": 4}
    source = stock.write(tmp_path / "long", config)
    mlx_entropy.convert(source, tmp_path / "sharded", shard_bytes=40_000)
    return tmp_path / "sharded"


@pytest.fixture(params=["registered", "trusted"])
def sharded_load(request):
    if request.param == "registered":
        mlx_entropy.register()
        return utils.sharded_load

    def load(*args, **kwargs):
        mlx_entropy.unregister()  # What the model's file does in between.
        return utils.sharded_load(*args, trust_remote_code=True, **kwargs)

    return load


def test_pipelines(sharded, sharded_load, relative_error):
    model, _ = sharded_load(str(sharded), mx.distributed.init())
    expected = mlx_entropy.load(sharded)[0](stock.TOKENS)
    assert relative_error(model(stock.TOKENS), expected) <= 1e-5


@pytest.mark.parametrize("rank", [0, 1])
def test_part_of_a_pipeline(sharded, sharded_load, rank):
    """A process needs, and may have, the files of its own layers only."""
    mine = ("layers.2.", "layers.3.") if rank == 0 else ("layers.0", "layers.1")
    for file in sharded.glob("model-*.safetensors"):
        names = mx.load(str(file)).keys()
        if all(
            ".layers." in n and not any(m in n for m in mine) for n in names
        ):
            file.unlink()
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    model, _ = sharded_load(str(sharded), Group(rank, 2))
    layers = model.model.pipeline_layers
    assert len(layers) == 2
    assert all(type(layer).__name__ == "TransformerBlock" for layer in layers)
    for layer in layers:
        assert isinstance(layer.mlp.up_proj, EntropyCoded)
    # Nobody else may load the rest.
    with pytest.raises(ValueError, match="missing"):
        mlx_entropy.load(sharded)


def test_what_mlx_lm_does_not_download_may_be_missing(sharded):
    """A copy from a hub has what mlx-lm's patterns select, and no more."""
    (sharded / "spiece.model").write_bytes(b"x")
    mlx_entropy.seal(sharded)
    assert "spiece.model" in (sharded / CHECKSUM_FILE).read_text()
    (sharded / "spiece.model").unlink()
    mlx_entropy.load(sharded)
    (sharded / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing"):
        mlx_entropy.load(sharded)


def test_tensor_parallelism_is_refused(sharded, sharded_load):
    with pytest.raises(ValueError, match="tensor parallelism") as caught:
        sharded_load(str(sharded), None, mx.distributed.init())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("program", ["awq", "dynamic_quant", "gptq"])
def test_quantizers_refuse(monkeypatch, capsys, tmp_path, coded, program):
    from mlx_lm.quant import awq, dynamic_quant, gptq

    data = mx.random.randint(3, 128, (4, 16))
    for module in (awq, dynamic_quant, gptq):
        monkeypatch.setattr(module, "load_data", lambda *_, **__: data)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["run", program, "--model", str(coded), "--mlx-path", str(out)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "mlx-entropy restore" in error
    assert not out.exists()


def test_evaluate(coded):
    pytest.importorskip("lm_eval")
    mlx_entropy.register()
    from mlx_lm.evaluate import MLXLM

    MLXLM(str(coded))


def test_run_needs_a_program(capsys):
    assert main(["run"]) == 2
    assert main(["run", "mlx_lm.upload"]) == 2
    error = capsys.readouterr().err
    assert "mlx_lm.upload" in error
    assert "perplexity" in error


def test_run_passes_status_and_arguments_on(monkeypatch, capsys, source):
    before = list(sys.argv)
    assert main(["run", "mlx_lm.generate", "--help"]) == 0
    assert "usage: mlx_lm.generate" in capsys.readouterr().out
    assert main(["run", "generate", "--modle", "x"]) == 2
    capsys.readouterr()
    shutil.rmtree(source)
    source.mkdir()
    line = ["run", "generate", "--model", str(source), "--prompt", "a"]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert error.startswith("mlx-entropy: error: ")
    assert error.count("\n") == 1
    assert sys.argv == before
