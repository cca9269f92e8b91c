"""The `weight` of coded layers, and what of mlx-lm reads or needs it."""

import copy
import importlib
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.nn.layers.distributed import shard_linear
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils
from mlx_lm.tuner.utils import linear_to_lora_layers

import mlx_entropy
from helpers import llama, tiny
from mlx_entropy import EntropyCodedEmbedding, EntropyCodedLinear
from mlx_entropy.nn import EntropyCoded

Q4 = {"group_size": 64, "bits": 4}
LORA = {"rank": 4, "scale": 2.0, "dropout": 0.0}

# Models that multiply by `embed_tokens.weight` instead of calling as_linear.
READERS = {
    "seed_oss": {"head_dim": 32},
    "llama4_text": {
        "head_dim": 32,
        "intermediate_size_mlp": 192,
        "rope_theta": 1e4,
        "no_rope_layers": [1, 0],
        "use_qk_norm": True,
    },
}


@pytest.fixture(params=[mx.float32, mx.float16, mx.bfloat16])
def dtype(request):
    return request.param


@pytest.fixture
def table(dtype):
    return (mx.random.normal((96, 128)) * 0.1).astype(dtype)


def test_of_quantized_layers(table, dtype, same_bits):
    parts = mx.quantize(table, **Q4)
    arrays = dict(zip(("weight", "scales", "biases"), parts, strict=True))
    expected = mx.dequantize(*parts, **Q4)
    for kind in (EntropyCodedLinear, EntropyCodedEmbedding):
        layer = kind.from_quantized(**arrays)
        assert layer.dtype == dtype
        assert same_bits(layer.weight, expected)


def test_of_float_layers(table, dtype, same_bits):
    for layer in (
        EntropyCodedLinear.from_linear(weight=table),
        EntropyCodedEmbedding.from_embedding(weight=table),
    ):
        assert layer.dtype == dtype
        assert same_bits(layer.weight, table)


def test_is_no_parameter(table):
    layer = EntropyCodedLinear.from_linear(weight=table, bits=4)
    assert "weight" not in layer
    assert [name for name, _ in tree_flatten(layer)] == ["coded"]
    assert list(layer.parameters()) == ["coded"]
    assert sum(array.size for _, array in tree_flatten(layer)) == (
        layer.coded_bytes
    )
    assert not hasattr(layer, "bits")
    assert not hasattr(layer, "scales")


def test_shape_and_type_cost_nothing(table, dtype):
    # A placeholder, which nothing can be decoded from.
    layer = EntropyCodedLinear(128, 96, 64, dtype=dtype)
    assert (layer.weight.shape, layer.weight.dtype) == ((96, 128), dtype)
    with pytest.raises((ValueError, RuntimeError), match="entropy_dequantize"):
        mx.eval(layer.weight)


def test_cannot_be_set(table):
    layer = EntropyCodedLinear.from_linear(weight=table)
    with pytest.raises(AttributeError, match="replace the layer"):
        layer.weight = table
    with pytest.raises(ValueError, match="weight"):
        layer.load_weights([("weight", table)])


def test_copies_of_layers(table, same_bits):
    layer = EntropyCodedEmbedding.from_embedding(weight=table)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same_bits(again.weight, layer.weight)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("quantization", [None, Q4], ids=["float", "q4"])
def test_tied_models_that_read_it(name, quantization, tmp_path, relative_error):
    changes = {"model_type": name, "tie_word_embeddings": True}
    config = llama.CONFIG | changes | READERS[name]
    stock = importlib.import_module(f"mlx_lm.models.{name}")
    model = stock.Model(stock.ModelArgs.from_dict(config))
    llama.randomize(model, mx.float32)
    if quantization is not None:
        # Stock mlx-lm cannot run them with a quantized table: dequantized,
        # it has the same values.
        nn.quantize(model, **quantization)
        config["quantization"] = quantization
    path = llama.save(tmp_path / "stock", model, config)
    if quantization is not None:
        packed = model.model.embed_tokens
        model.model.embed_tokens = nn.Embedding(300, 128)
        model.model.embed_tokens.weight = mx.dequantize(
            packed.weight, packed.scales, packed.biases, **quantization
        )
    expected = model(llama.TOKENS)
    mlx_entropy.convert(path, tmp_path / "coded")
    coded, _ = llama.load_registered(tmp_path / "coded")
    assert isinstance(coded.model.embed_tokens, EntropyCodedEmbedding)
    assert relative_error(coded(llama.TOKENS), expected) <= 1e-4


class TestLora:
    """Adapters on coded layers, as mlx-lm makes them."""

    @pytest.fixture
    def model(self):
        model, _ = llama.build(Q4)
        mlx_entropy.entropy_quantize(model)
        model.freeze()
        return model

    def test_trains(self, model):
        linear_to_lora_layers(model, 1, LORA)
        names = dict(tree_flatten(model.trainable_parameters())).keys()
        assert len(names) == 14
        assert all("layers.1." in n and "lora_" in n for n in names)

        def loss(model):
            logits = model(llama.TOKENS[:, :-1])
            return nn.losses.cross_entropy(logits, llama.TOKENS[:, 1:]).mean()

        optimizer = optim.Adam(1e-3)
        state = [model.state, optimizer.state]

        def step():
            value, gradient = nn.value_and_grad(model, loss)(model)
            optimizer.update(model, gradient)
            return value

        step = mx.compile(step, inputs=state, outputs=state)
        losses = [step().item() for _ in range(20)]
        assert losses[-1] < losses[0] - 0.1

    def test_fuses_to_floats(self, model, relative_error):
        linear_to_lora_layers(model, 2, LORA)
        model.apply_to_modules(
            lambda _, module: (
                module.update({"lora_b": module.lora_b + 0.01})
                if "lora_b" in module
                else None
            )
        )
        expected = model(llama.TOKENS)
        fused = [
            (name, module.fuse(dequantize=True))
            for name, module in model.named_modules()
            if hasattr(module, "fuse")
        ]
        model.update_modules(tree_unflatten(fused))
        assert type(model.layers[0].mlp.up_proj) is nn.Linear
        assert relative_error(model(llama.TOKENS), expected) <= 1e-4

    def test_adapters_of_a_directory(self, converted, tmp_path):
        path, _ = converted
        tiny.write_tokenizer(path)
        model, _ = mlx_entropy.load(path)
        linear_to_lora_layers(model, 2, LORA)
        model.layers[0].mlp.up_proj.lora_b += 0.1
        expected = model(llama.TOKENS)
        adapters = tmp_path / "adapters"
        adapters.mkdir()
        weights = {
            name: array
            for name, array in tree_flatten(model.parameters())
            if "lora_" in name
        }
        mx.save_safetensors(str(adapters / "adapters.safetensors"), weights)
        utils.save_config(
            {
                "fine_tune_type": "lora",
                "num_layers": 2,
                "lora_parameters": LORA,
            },
            adapters / "adapter_config.json",
        )
        again, _ = mlx_entropy.load(path, adapter_path=str(adapters))
        assert mx.array_equal(again(llama.TOKENS), expected)


class TestSharding:
    """Tensor parallelism is refused with one sentence."""

    def test_of_a_loaded_model(self, converted):
        path, _ = converted
        model, _ = llama.load_registered(path)
        with pytest.raises(ValueError, match="tensor parallelism"):
            model.shard()
        tiny.write_tokenizer(path)
        with pytest.raises(ValueError, match="tensor parallelism"):
            utils.sharded_load(str(path), None, mx.distributed.init())

    def test_of_a_layer(self):
        layer = EntropyCodedLinear.from_linear(nn.Linear(64, 64))
        for sharding in ("all-to-sharded", "sharded-to-all"):
            with pytest.raises(AttributeError, match="decode"):
                shard_linear(layer, sharding)

    def test_other_missing_attributes(self):
        layer = EntropyCodedLinear.from_linear(nn.Linear(64, 64))
        assert isinstance(layer, EntropyCoded)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            layer.nonsense  # noqa: B018
