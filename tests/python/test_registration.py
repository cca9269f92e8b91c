"""register and unregister: what they change in mlx-lm, and undo."""

import functools

import pytest
from mlx_lm import utils
from mlx_lm.models import llama as stock_llama

import mlx_entropy
from helpers import llama
from mlx_entropy import EntropyCodedLinear


def test_is_idempotent(converted):
    path, _ = converted
    stock = utils.load_model
    mlx_entropy.unregister()
    mlx_entropy.register()
    wrapped = utils.load_model
    assert wrapped is not stock
    mlx_entropy.register()
    assert utils.load_model is wrapped
    mlx_entropy.unregister()
    assert utils.load_model is stock
    mlx_entropy.unregister()
    assert utils.load_model is stock
    with pytest.raises(ValueError, match="trust_remote_code"):
        utils.load_model(path)


def test_runs_no_code_of_the_model(tmp_path):
    model, config = llama.build()
    path = llama.save_coded(
        tmp_path / "model", model, config, model_file="raise SystemExit"
    )
    llama.load_registered(path)
    mlx_entropy.unregister()
    with pytest.raises(SystemExit):
        llama.load_model_file(path)


def test_works_without_a_model_file(tmp_path):
    model, config = llama.build()
    path = llama.save_coded(tmp_path / "model", model, config, model_file=None)
    _, loaded = llama.load_registered(path)
    assert "model_file" not in loaded


def test_passes_other_models_through(tmp_path):
    model, config = llama.build(num_hidden_layers=1)
    llama.save(tmp_path, model, config)
    calls = []

    def classes(config):
        calls.append(config)
        return stock_llama.Model, stock_llama.ModelArgs

    mlx_entropy.register()
    loaded, config = utils.load_model(
        tmp_path,
        True,
        strict=False,
        model_config={"rope_theta": 5.0},
        get_model_classes=classes,
    )
    assert type(loaded) is stock_llama.Model
    assert (config["rope_theta"], len(calls)) == (5.0, 1)
    assert "model_file" not in config


def test_errors_of_mlx_lm_stay_its_own(tmp_path):
    mlx_entropy.register()
    with pytest.raises(FileNotFoundError):
        utils.load_model(tmp_path)
    with pytest.raises(TypeError):
        utils.load_model(tmp_path, no_such_argument=1)


def test_merges_the_callers_arguments(converted):
    path, _ = converted
    seen = []

    class Mine(stock_llama.Model):
        pass

    def classes(config):
        seen.append(config["rope_theta"])
        return Mine, stock_llama.ModelArgs

    mlx_entropy.register()
    model, config = utils.load_model(
        path,
        lazy=True,
        model_config={"rope_theta": 7.0},
        get_model_classes=classes,
    )
    assert isinstance(model, Mine)
    assert (seen, config["rope_theta"]) == ([7.0], 7.0)
    assert isinstance(model.lm_head, EntropyCodedLinear)


@pytest.mark.parametrize("updated", [(), functools.WRAPPER_UPDATES])
def test_under_another_wrapper(converted, updated, relative_error):
    path, expected = converted
    stock = utils.load_model
    mlx_entropy.register()
    ours = utils.load_model

    @functools.wraps(ours, updated=updated)
    def other(*args, **kwargs):
        return ours(*args, **kwargs)

    utils.load_model = other
    mlx_entropy.register()
    model, _ = utils.load_model(path)
    assert relative_error(model(llama.TOKENS), expected) <= 1e-4
    mlx_entropy.unregister()
    assert utils.load_model is other
    with pytest.raises(ValueError, match="trust_remote_code"):
        utils.load_model(path)
    utils.load_model = stock
