"""A converted model of which any byte has changed is refused, by name."""

import json
import random

import mlx.core as mx
import pytest
import xxhash

import mlx_entropy
from helpers import llama, tiny
from mlx_entropy.cli.main import main
from mlx_entropy.model_format import CHECKSUM_FILE

UP = "model.layers.1.mlp.up_proj"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checksums")
    source = tiny.write_model(
        folder / "src", dtype=mx.float16, quantization=tiny.affine(4)
    )
    tiny.write_tokenizer(source)
    mlx_entropy.convert(source, folder / "dst")
    return folder / "dst"


@pytest.fixture
def model(pristine, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in pristine.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(params=llama.ROUTES)
def load(request):
    return request.param


def refused(load, model):
    with pytest.raises(ValueError, match=r".") as caught:
        load(model)
    return str(caught.value)


def attempt(model):
    """The model, or the message with which it was refused."""
    try:
        return mlx_entropy.load(model)[0], None
    except ValueError as error:
        return None, str(error)


def test_digests_as_documented(pristine):
    content = json.loads((pristine / CHECKSUM_FILE).read_text())
    assert content["algorithm"] == "xxh64"
    array = mx.load(str(pristine / "model.safetensors"))[NORM]
    inner = xxhash.xxh64_hexdigest(memoryview(array.view(mx.uint8)))
    text = f'["{NORM}","F16",[{array.size}],"{inner}"]'
    assert content["tensors"][NORM] == xxhash.xxh64_hexdigest(text.encode())
    config = (pristine / "config.json").read_bytes()
    assert content["files"]["config.json"] == xxhash.xxh64_hexdigest(config)
    everything = {file.name for file in pristine.iterdir()}
    named = {CHECKSUM_FILE, "model.safetensors", *content["files"]}
    assert named == everything


@pytest.mark.parametrize("name", [NORM, "lm_head.coded", f"{UP}.coded"])
def test_changed_tensor(model, load, name):
    tiny.flip_byte(model, name, 41)
    message = refused(load, model)
    assert "model.safetensors" in message
    assert name in message


@pytest.mark.parametrize(
    "names",
    [
        ("model.layers.0.mlp.up_proj.coded", f"{UP}.coded"),
        (NORM, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_swapped_tensors(model, load, names):
    weights = llama.weights_of(model)
    first, second = names
    weights[first], weights[second] = weights[second], weights[first]
    llama.save_weights(model, weights)
    message = refused(load, model)
    assert "2 " not in message.split("tensor")[0]
    assert names[0] in message or names[1] in message


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "mlx_entropy_model.py"]
)
def test_changed_file(model, load, name):
    content = (model / name).read_bytes()
    (model / name).write_bytes(content + b"\n")
    message = refused(load, model)
    assert name in message
    assert "mlx-entropy seal" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_missing_file(model, load, name):
    (model / name).unlink()
    assert f"{name} is missing" in refused(load, model)


def test_damaged_checksums(model, load):
    file = model / CHECKSUM_FILE
    whole = file.read_bytes()
    for damaged in (
        b"",
        whole[:-20],
        whole.replace(b"xxh64", b"xxh32"),
        whole.replace(b'"tensors"', b'"tensor"'),
        b"[" * 100_000,
        b'{"algorithm": "xxh64", "tensors": [], "files": {}, "digest": ""}',
        whole.replace(b"1", b"2", 1),
    ):
        file.write_bytes(damaged)
        assert CHECKSUM_FILE in refused(load, model)


def test_config_that_lost_its_mark(model):
    path = model / "config.json"
    text = path.read_text()
    path.write_text(text.replace("mlx_entropy", "mlx-entropy"))
    assert "config.json" in refused(llama.load_registered, model)


def test_seal(model, load):
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": 5e4}))
    refused(load, model)
    report = mlx_entropy.seal(model)
    assert report.changed == ("config.json is not what was written",)
    load(model)
    assert mlx_entropy.seal(model).changed == ()


def test_seal_mends_damaged_checksums(model, load):
    (model / CHECKSUM_FILE).write_bytes(b"?")
    mlx_entropy.seal(model)
    load(model)


def test_seal_refuses_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no converted model"):
        mlx_entropy.seal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not entropy-coded"):
        mlx_entropy.seal(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json"]


def test_seal_verb(model, capsys):
    tiny.flip_byte(model, NORM, 3)
    assert main(["seal", str(model)]) == 0
    out = capsys.readouterr().out
    assert f"accepted: model.safetensors: tensor '{NORM}'" in out
    assert main(["seal", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == []


def test_can_be_switched_off(model, monkeypatch):
    tiny.flip_byte(model, NORM, 3)
    with pytest.raises(ValueError, match="is not what was written"):
        mlx_entropy.load(model)
    mlx_entropy.load(model, checksums=False)
    monkeypatch.setenv("MLX_ENTROPY_CHECKSUMS", "0")
    mlx_entropy.load(model)


def test_models_without_checksums_load(model, load):
    (model / CHECKSUM_FILE).unlink()
    load(model)


@pytest.mark.parametrize("verb", ["generate", "inspect"])
def test_verbs_name_file_and_tensor(model, verb, capsys):
    tiny.flip_byte(model, NORM, 43)
    more = ["--prompt", "ab"] if verb == "generate" else []
    assert main([verb, str(model), *more]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.safetensors" in err
    assert NORM in err
    assert err.count("\n") == 1


def test_random_corruptions(model, pristine):
    """Any byte of any file: an error, or the same model all the same."""
    choose = random.Random(7)
    files = sorted(file.name for file in pristine.iterdir())
    expected, _ = mlx_entropy.load(model)
    tokens = mx.array([[3, 1, 4, 1, 5]])
    logits = expected(tokens)
    refusals = 0
    for turn in range(60):
        name = files[turn % len(files)]
        whole = (pristine / name).read_bytes()
        content = bytearray(whole)
        at = choose.randrange(len(content))
        content[at] ^= choose.randrange(1, 256)
        (model / name).write_bytes(content)
        found, error = attempt(model)
        if error is not None:
            refusals += 1
            assert name in error, (name, at)
        else:
            assert mx.array_equal(found(tokens), logits), (name, at)
        (model / name).write_bytes(whole)
    assert refusals > 30
