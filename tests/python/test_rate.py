"""What coding costs above the entropy, and the tables that decide it."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_entropy import _ext

BITS = [2, 3, 4, 5, 6, 8]


def entropy(values):
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return -(shares * np.log2(shares)).sum()


# Stored bits above the zero-order entropy of all planes: tables, states,
# offsets, coarse frequencies. At 5 and 8 bits a class holds several codes.
RATE_ABOVE_ENTROPY = {2: 0.02, 3: 0.02, 4: 0.02, 5: 0.02, 6: 0.02, 8: 0.025}


@pytest.mark.parametrize("bits", BITS)
def test_rate_of_quantized_gaussian(bits):
    weights = (mx.random.normal((1024, 4096)) * 0.02).astype(mx.bfloat16)
    coded = _ext.encode_affine(*mx.quantize(weights, 64, bits), 64, bits)
    info = _ext.validate(coded)
    assert info.nbytes == coded.nbytes
    entropies = _ext.plane_entropies(coded)
    ideal = sum(entropies[plane.name] * plane.count for plane in info.planes)
    excess = (8 * coded.nbytes - ideal) / weights.size
    assert 0 <= excess <= RATE_ABOVE_ENTROPY[bits]


def gaussian_symbols(sigma):
    random = np.random.default_rng(3)
    symbols = np.clip(random.normal(128, sigma, (1024, 4096)), 0, 255)
    return np.rint(symbols).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5, 6.0, 20.0])
def test_rate_of_symbols(sigma):
    symbols = gaussian_symbols(sigma)
    coded = _ext.entropy_encode(mx.array(symbols))
    ideal, rate = entropy(symbols), 8 * coded.nbytes / symbols.size
    # The fast coder is chosen unless it costs more than a hundredth.
    assert ideal < rate <= max(ideal + 0.02, 1.01 * ideal)
    planes = _ext.plane_entropies(coded)
    assert planes["codes"] == pytest.approx(ideal, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5, 6.0, 20.0])
def test_rate_of_symbols_with_a_table(sigma):
    symbols = gaussian_symbols(sigma)
    counts = np.bincount(symbols.reshape(-1), minlength=256).tolist()
    table = _ext.RANSTable.from_counts(counts)
    coded = _ext.entropy_encode(mx.array(symbols), table)
    rate = 8 * coded.nbytes / symbols.size
    assert table.cost(counts) < rate <= table.cost(counts) + 0.01
    assert rate <= entropy(symbols) + 0.02


@pytest.mark.parametrize("alphabet", [2, 5, 16])
def test_rate_of_small_alphabets_with_a_table(alphabet):
    random = np.random.default_rng(4)
    symbols = random.geometric(0.4, (1024, 4096)) - 1
    symbols = np.minimum(symbols, alphabet - 1).astype(np.uint8)
    counts = np.bincount(symbols.reshape(-1), minlength=alphabet).tolist()
    table = _ext.RANSTable.from_counts(counts)
    coded = _ext.entropy_encode(mx.array(symbols), table)
    rate = 8 * coded.nbytes / symbols.size
    assert table.cost(counts) < rate <= table.cost(counts) + 0.015
    # Tails are dear with frequencies of 8 bits.
    assert rate <= max(entropy(symbols) + 0.02, 1.01 * entropy(symbols))


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(
        st.one_of(st.integers(0, 50), st.integers(0, 2**50)),
        min_size=1,
        max_size=256,
    ).filter(any)
)
def test_table_properties(counts):
    table = _ext.RANSTable.from_counts(counts)
    frequencies, precision = table.frequencies, table.precision_bits
    assert precision == (8 if len(counts) <= 16 else 12)
    assert len(frequencies) == len(counts)
    assert sum(frequencies) == 1 << precision
    present = np.array(counts) > 0
    assert not np.any(np.array(frequencies)[~present])
    kept = np.array(frequencies) > 0
    if kept.sum() > 1:
        assert max(frequencies) < 1 << precision
    # A symbol that is not rare for the precision is never escaped.
    often = np.array(counts, dtype=float) * (1 << precision) >= sum(counts)
    assert np.all(kept[often])
    shares = np.array(counts, dtype=float)[present] / sum(counts)
    assert table.cost(counts) >= -(shares * np.log2(shares)).sum() - 1e-9


def test_table_orders_frequencies_like_counts():
    table = _ext.RANSTable.from_counts([5, 90, 40, 40, 1, 700])
    f = table.frequencies
    assert f[4] <= f[0] <= f[2] == f[3] <= f[1] <= f[5]
    assert _ext.RANSTable.from_counts([1]).frequencies == [256]
    assert _ext.RANSTable.from_counts([0, 7]).frequencies == [0, 256]
    uniform = _ext.RANSTable.from_counts([3] * 256)
    assert uniform.frequencies == [16] * 256
    assert uniform.cost([3] * 256) == 8.0
    assert uniform.cost([0] * 256) == 0.0


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ([], "1 to 256"),
        ([1] * 257, "1 to 256"),
        ([0, 0], "all counts are zero"),
        ([2**63, 2**63], "overflow"),
    ],
)
def test_table_refuses(counts, error):
    with pytest.raises(ValueError, match=error):
        _ext.RANSTable.from_counts(counts)
