"""The fused decoder layers compute what mlx-lm's model does."""

import copy
import importlib

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

import mlx_entropy
from helpers import llama
from mlx_entropy import fuse, unfuse

AFFINE = {"group_size": 32, "bits": 4}
TOKENS = mx.array([[5, 299, 0, 17, 17, 1, 2, 3, 4, 250, 9, 8, 7]])
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "grouped_queries": {},
    "own_keys_for_each_head": {"num_key_value_heads": 4},
    "traditional_rope": {"rope_traditional": True},
    "llama3_rope": {"rope_scaling": LLAMA3},
    "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "another_base": {"rope_theta": 500000.0},
    "tied": {"tie_word_embeddings": True},
    "without_biases": {"attention_bias": False},
    "mlp_biases": {"mlp_bias": True},
    "odd_head": {"head_dim": 80},
    "larger_head": {"head_dim": 96},
    "one_layer": {"num_hidden_layers": 1},
}
# Weights, caches and logits are rounded to the type. Products with affine
# weights round their input to integers, where the last bit may decide.
AFFINE_LIMIT = 3e-4
LIMITS = {mx.float32: 1e-5, mx.float16: 3e-3, mx.bfloat16: 2e-2}


def coded(quantization=None, dtype=mx.float32, **changes):
    model, _ = llama.build(quantization, dtype, **changes)
    mlx_entropy.entropy_quantize(model, fused=False)
    model.eval()
    return model


@pytest.fixture
def runs(monkeypatch):
    """Tokens of each call that was fused."""
    from mlx_entropy.nn import fused_llama

    tokens = []
    run = fused_llama._Plan.run

    def spy(self, x, cache):
        tokens.append(x.shape[1])
        return run(self, x, cache)

    monkeypatch.setattr(fused_llama._Plan, "run", spy)
    return tokens


@pytest.fixture
def both(runs, relative_error):
    """Compare what a function of the model does fused and as mlx-lm has it."""

    def compare(model, function, limit=1e-5):
        unfuse(model)
        expected = function(model)
        mx.eval(expected)
        assert not runs
        assert fuse(model)
        actual = function(model)
        assert runs
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) < limit

    return compare


def in_parts(*sizes, tokens=TOKENS):
    """Logits of all tokens, computed a part at a time with a cache."""

    def logits(model):
        cache = make_prompt_cache(model)
        outputs, start = [], 0
        for size in sizes:
            outputs.append(model(tokens[:, start : start + size], cache=cache))
            start += size
        assert start == tokens.shape[1]
        assert all(layer.offset == start for layer in cache)
        return mx.concatenate(outputs, axis=1)

    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(both, variant):
    both(coded(**VARIANTS[variant]), in_parts(9, 1, 1, 2))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_other_models_of_the_family(both, name):
    arch = importlib.import_module(f"mlx_lm.models.{name}")
    config = llama.CONFIG | {
        "model_type": name,
        "head_dim": 48,
        "rope_theta": 1000.0,
    }
    model = arch.Model(arch.ModelArgs.from_dict(config))
    llama.randomize(model, mx.float32)
    for layer in model.layers:
        for norm in ("q_norm", "k_norm"):
            if norm in layer.self_attn:
                layer.self_attn[norm].weight = mx.random.normal((48,))
    mlx_entropy.entropy_quantize(model)
    model.eval()
    both(model, in_parts(9, 1, 3))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("quantization", [AFFINE, None])
def test_types(both, dtype, quantization):
    model = coded(quantization, dtype)
    limit = LIMITS[dtype] if quantization is None else AFFINE_LIMIT
    both(model, in_parts(10, 1, 1, 1), max(LIMITS[dtype], limit))


def test_bfloat16_is_nearer_to_float32_than_mlx_lm(relative_error):
    exact = coded(None, mx.bfloat16)
    exact.set_dtype(mx.float32, lambda dtype: dtype == mx.bfloat16)
    for layer in (
        exact.model.embed_tokens,
        exact.lm_head,
    ):
        layer._dtype = "float32"
    expected = exact.model(TOKENS)
    model = coded(None, mx.bfloat16)
    model.update(
        {
            "model": copy.deepcopy(exact.model.parameters()),
            "lm_head": exact.lm_head.parameters(),
        }
    )
    model.set_dtype(mx.bfloat16, lambda dtype: dtype == mx.float32)
    before = relative_error(model.model(TOKENS), expected)
    assert fuse(model)
    after = relative_error(model.model(TOKENS), expected)
    assert after < before


@pytest.mark.parametrize(
    "sizes", [(13,), (1,) * 13, (4, 4, 4, 1), (12, 1), (1, 12)]
)
def test_parts_of_a_prompt(both, sizes):
    both(coded(), in_parts(*sizes))


def test_without_a_cache(both):
    both(coded(), lambda model: model(TOKENS))


@pytest.mark.parametrize("quantization", [AFFINE, None])
def test_tokens_beyond_the_vocabulary(both, quantization):
    """Zeros go through the layers, on both paths; nothing is thrown."""
    vocabulary = llama.CONFIG["vocab_size"]
    tokens = mx.array([[5, vocabulary, 17, 2**31 - 1, 1]])
    model = coded(quantization)
    limit = AFFINE_LIMIT if quantization else 1e-5
    both(model, lambda model: model(tokens), limit)
    assert mx.isfinite(model(tokens)).all().item()


def test_embeddings_as_input(both):
    both(
        coded(),
        lambda model: model(
            TOKENS, input_embeddings=model.model.embed_tokens(TOKENS)
        ),
    )


def test_caches_grow_like_those_of_mlx_lm(both, relative_error):
    model = coded()
    tokens = mx.random.randint(0, 300, (1, 530))
    both(model, in_parts(250, 5, 1, 1, 260, 13, tokens=tokens))
    caches = []
    for use in (unfuse, fuse):
        use(model)
        cache = make_prompt_cache(model)
        model(tokens[:, :250], cache=cache)
        model(tokens[:, 250:260], cache=cache)
        caches.append(cache)
    for stock, fused in zip(*caches, strict=True):
        # Where 250 is no multiple of 256, mlx-lm leaves out the rest.
        assert fused.keys.shape == (1, 2, 512, 32)
        for name in ("keys", "values"):
            a = getattr(fused, name)
            b = getattr(stock, name)
            assert a.dtype == b.dtype
            assert relative_error(a[..., :260, :], b[..., :260, :]) < 1e-5
            assert not mx.any(a[..., 260:, :]).item()


def test_trimmed_and_continued(both):
    def logits(model):
        cache = make_prompt_cache(model)
        model(TOKENS, cache=cache)
        assert trim_prompt_cache(cache, 6) == 6
        return model(TOKENS[:, 2:6], cache=cache)

    both(coded(), logits)


def test_saved_and_loaded_caches(both, tmp_path):
    def logits(model):
        cache = make_prompt_cache(model)
        model(TOKENS, cache=cache)
        save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
        cache = load_prompt_cache(str(tmp_path / "cache.safetensors"))
        model(TOKENS[:, :2], cache=cache)
        return model(TOKENS[:, 2:3], cache=cache)

    both(coded(), logits)


@pytest.mark.parametrize("lazy", [True, False])
def test_copied_caches_are_independent(both, lazy):
    def logits(model):
        cache = make_prompt_cache(model)
        model(TOKENS, cache=cache)
        if not lazy:
            mx.eval([layer.state for layer in cache])
        branches = [copy.deepcopy(cache) for _ in range(3)]
        outputs = []
        for step in range(3):
            for token, branch in enumerate(branches):
                inputs = mx.array([[20 + 7 * token + step]])
                outputs.append(model(inputs, cache=branch))
        outputs.append(model(TOKENS[:, :1], cache=cache))
        return mx.concatenate(outputs, axis=1)

    both(coded(), logits)


def test_caches_of_the_other_path(both):
    """A cache may go from mlx-lm's layers to the fused ones, and back."""
    model = coded()
    calls = 0

    def logits(model):
        nonlocal calls
        calls += 1
        cache = make_prompt_cache(model)
        outputs = []
        for i in range(4):
            if calls == 2:
                (fuse if i % 2 else unfuse)(model)
            outputs.append(model(TOKENS[:, 3 * i : 3 * i + 3], cache=cache))
        return mx.concatenate(outputs, axis=1)

    both(model, logits)


def address(array):
    mx.eval(array)
    return np.asarray(memoryview(array)).__array_interface__["data"][0]


def test_caches_grow_in_place(runs):
    model = coded()
    assert fuse(model)
    cache = make_prompt_cache(model)
    model(TOKENS, cache=cache)
    start = address(cache[1].keys)
    for _ in range(20):  # Several are under way at the same time.
        mx.async_eval(model(TOKENS[:, :1], cache=cache))
    assert address(cache[1].keys) == start
    # Somebody may look at what was trimmed: from here on, it is another one.
    trim_prompt_cache(cache, 2)
    model(TOKENS[:, :1], cache=cache)
    moved = address(cache[1].keys)
    assert moved != start
    model(TOKENS[:, :1], cache=cache)
    assert address(cache[1].keys) == moved


def test_same_greedy_tokens(runs):
    model = coded(AFFINE, **VARIANTS["llama3_rope"])
    prompt = TOKENS[0]

    def tokens():
        steps = generate_step(prompt, model, max_tokens=40, prefill_step_size=5)
        return [token for token, _ in steps]

    expected = tokens()
    assert not runs
    assert fuse(model)
    assert tokens() == expected
    assert runs[:3] == [5, 5, 2]


@pytest.mark.parametrize("target", mlx_entropy._ext.targets())
def test_every_target(both, runs, target):
    before = mlx_entropy._ext.target()
    mlx_entropy._ext.set_target(target)
    try:
        both(coded(), in_parts(12, 1))
        runs.clear()
        both(coded(AFFINE), in_parts(12, 1), AFFINE_LIMIT)
    finally:
        mlx_entropy._ext.set_target(before)


def test_memory_of_caches_is_freed():
    model = coded()
    assert fuse(model)

    def use():
        cache = make_prompt_cache(model)
        for _ in range(3):
            mx.eval(model(TOKENS, cache=cache))

    use()
    before = mx.get_active_memory()
    for _ in range(5):
        use()
    assert mx.get_active_memory() <= before
