"""Round trips, targets and threads of the codec."""

import threading

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import reference
from mlx_entropy import _ext

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
WIDTH = {mx.float32: 32, mx.float16: 16, mx.bfloat16: 16}
FRACTION = {mx.float32: 23, mx.float16: 10, mx.bfloat16: 7}
BITS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]


@pytest.fixture(autouse=True)
def restore():
    target = _ext.target()
    yield
    _ext.set_target(target)
    _ext.set_num_threads(0)


def assert_decodes(coded, expected, check_reference=True):
    """Library (all targets) and reference decode to the expected arrays."""
    _ext.validate(coded)
    for target in _ext.targets():
        _ext.set_target(target)
        arrays = reference.library_arrays(coded)
        reference.assert_same_arrays(arrays, expected)
    if check_reference:
        decoded = reference.decode.decode(reference.to_bytes(coded))
        reference.assert_same_arrays(decoded.arrays, expected)


# Shapes with every kind of remainder, and what tiles may be asked for.
SHAPES = st.tuples(
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 7, 31, 32, 63, 64, 65, 96, 100, 128, 200]),
)
TILE_ROWS = st.sampled_from([0, 0, 1, 2, 3, 16, 64, 1000])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def symbol_matrices(draw):
    shape, random = draw(SHAPES), np.random.default_rng(draw(SEEDS))
    alphabet = draw(st.integers(1, 256))
    names = random.permutation(256)[:alphabet]
    # Shares fall by a factor from symbol to symbol: 1 is uniform.
    shares = draw(st.sampled_from([1.0, 0.98, 0.7, 0.3, 1e-3])) ** np.arange(
        alphabet
    )
    drawn = random.choice(alphabet, size=shape, p=shares / shares.sum())
    return names[drawn].astype(np.uint8)


@SETTINGS
@given(symbols=symbol_matrices(), tile_rows=TILE_ROWS)
def test_symbols_round_trip(symbols, tile_rows):
    coded = _ext.entropy_encode(mx.array(symbols), tile_rows=tile_rows)
    assert_decodes(coded, {"symbols": symbols})


@SETTINGS
@given(
    symbols=symbol_matrices(),
    counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=256),
    own=st.booleans(),
    tile_rows=TILE_ROWS,
)
def test_symbols_round_trip_with_table(symbols, counts, own, tile_rows):
    """Symbols that the table does not have are escaped."""
    if own:
        counts = np.bincount(symbols.reshape(-1)).tolist()
    elif sum(counts) == 0:
        counts[0] = 1
    table = _ext.RANSTable.from_counts(counts)
    coded = _ext.entropy_encode(mx.array(symbols), table, tile_rows=tile_rows)
    assert_decodes(coded, {"symbols": symbols})
    known = np.flatnonzero(table.frequencies)
    escapes = np.isin(symbols, known, invert=True).sum()
    assert _ext.describe(coded).planes[0].exceptions == escapes


def test_symbols_of_one_kind_cost_nothing_each():
    symbols = mx.full((512, 512), 200, dtype=mx.uint8)
    coded = _ext.entropy_encode(symbols)
    assert coded.nbytes <= 512
    assert _ext.validate(coded).codec == "raw"
    assert mx.array_equal(_ext.entropy_decode(coded), symbols)


def test_symbols_of_every_small_alphabet():
    random = np.random.default_rng(1)
    for alphabet in range(1, 257):
        symbols = random.integers(0, alphabet, (3, 65), dtype=np.uint8)
        coded = _ext.entropy_encode(mx.array(symbols))
        decoded = np.array(_ext.entropy_decode(coded))
        np.testing.assert_array_equal(decoded, symbols)


def patterns(random, kind, dtype, shape):
    """Bit patterns of floats: ordinary, any, special or all the same."""
    width, fraction = WIDTH[dtype], FRACTION[dtype]
    top = 1 << (width - 1)
    exponent = top - (1 << fraction)
    if kind == "any":
        return random.integers(0, 2 * top, shape, dtype=np.uint64)
    if kind == "same":
        one = random.integers(0, 2 * top, dtype=np.uint64)
        return np.full(shape, one, dtype=np.uint64)
    if kind == "special":
        # Zeros, subnormals, infinities and NaNs of both kinds, both signs.
        quiet = exponent | 1 << (fraction - 1)
        some = [0, 1, (1 << fraction) - 1, 1 << fraction, exponent - 1]
        some += [exponent, exponent | 1, quiet, quiet | 5, top - 1]
        some += [x | top for x in some]
        return random.choice(np.array(some, dtype=np.uint64), shape)
    values = (random.normal(size=shape) * 0.02).astype(np.float32)
    if dtype == mx.float16:
        return values.astype(np.float16).view(np.uint16).astype(np.uint64)
    return (values.view(np.uint32) >> (32 - width)).astype(np.uint64)


KINDS = st.sampled_from(["ordinary", "any", "special", "same"])


@SETTINGS
@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    kind=KINDS,
    seed=SEEDS,
    tile_rows=TILE_ROWS,
)
def test_floats_round_trip(shape, dtype, kind, seed, tile_rows):
    words = patterns(np.random.default_rng(seed), kind, dtype, shape)
    array = reference.float_array(words, dtype)
    coded = _ext.encode_float(array, tile_rows=tile_rows)
    assert_decodes(coded, {"floats": reference.bits(array)})
    assert _ext.describe(coded).dtype == dtype


@st.composite
def affine_matrices(draw):
    """(codes, bits, group size, scales, biases), all of it possible."""
    bits, dtype = draw(st.sampled_from(BITS)), draw(st.sampled_from(DTYPES))
    group = draw(st.sampled_from(GROUPS))
    rows, groups = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(SEEDS))
    top = (1 << bits) - 1
    shape = (rows, groups * group)
    codes = {
        "gauss": lambda: (random.normal(size=shape) / 6 + 0.5) * top,
        "uniform": lambda: random.integers(0, top + 1, shape),
        "constant": lambda: np.full(shape, random.integers(0, top + 1)),
    }[draw(st.sampled_from(["gauss", "uniform", "constant"]))]()
    codes = np.clip(np.rint(codes), 0, top).astype(np.uint8)
    words = patterns(random, draw(KINDS), dtype, (rows, groups))
    scales = reference.float_array(words, dtype)
    kind = draw(st.sampled_from(["related", "edge", "zero", "any", "special"]))
    if kind in ("any", "special"):
        words = patterns(random, kind, dtype, (rows, groups))
        return codes, bits, group, scales, reference.float_array(words, dtype)
    k = mx.array(random.integers(-top - 3, 3, (rows, groups)))
    if kind == "zero":  # of both signs
        k = k * 0.0
    biases = (scales.astype(mx.float32) * k).astype(dtype)
    if kind == "edge":  # far from the window of offsets
        biases = (scales.astype(mx.float32) * (k * 1000)).astype(dtype)
    return codes, bits, group, scales, biases


@SETTINGS
@given(matrix=affine_matrices(), tile_rows=TILE_ROWS)
def test_affine_round_trip(matrix, tile_rows):
    codes, bits, group, scales, biases = matrix
    packed = reference.pack_codes(codes, bits)
    coded = _ext.encode_affine(
        packed, scales, biases, group, bits, tile_rows=tile_rows
    )
    expected = {
        "codes": codes,
        "scales": reference.bits(scales),
        "biases": reference.bits(biases),
    }
    assert_decodes(coded, expected)
    assert mx.array_equal(_ext.decode_affine(coded)[0], packed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_affine_of_stock_quantize(bits, dtype, same_bits):
    for group in GROUPS:
        weights = (mx.random.normal((24, 384)) * 0.05).astype(dtype)
        stock = mx.quantize(weights, group, bits)
        coded = _ext.encode_affine(*stock, group, bits)
        for ours, theirs in zip(_ext.decode_affine(coded), stock, strict=True):
            assert same_bits(ours, theirs)
        whole = _ext.entropy_dequantize(coded, 24, 384, dtype)
        assert same_bits(whole, mx.dequantize(*stock, group, bits))


def test_affine_flattens_leading_axes(same_bits):
    stock = mx.quantize(mx.random.normal((3, 4, 128)), 64, 4)
    coded = _ext.encode_affine(*stock, 64, 4)
    assert (_ext.describe(coded).rows, _ext.describe(coded).cols) == (12, 128)
    for ours, theirs in zip(_ext.decode_affine(coded), stock, strict=True):
        assert same_bits(ours, theirs.reshape(12, -1))


@SETTINGS
@given(matrix=affine_matrices(), tile_rows=TILE_ROWS, data=st.data())
def test_row_ranges(matrix, tile_rows, data):
    codes, bits, group, scales, biases = matrix
    start = data.draw(st.integers(0, len(codes)))
    stop = data.draw(st.integers(start, len(codes)))
    coded = {
        "affine": _ext.encode_affine(
            reference.pack_codes(codes, bits),
            scales,
            biases,
            group,
            bits,
            tile_rows=tile_rows,
        ),
        "float": _ext.encode_float(scales, tile_rows=tile_rows),
        "symbols": _ext.entropy_encode(mx.array(codes), tile_rows=tile_rows),
    }
    for each in coded.values():
        whole = reference.library_arrays(each)
        part = reference.library_arrays(each, row_start=start, row_stop=stop)
        expected = {name: a[start:stop] for name, a in whole.items()}
        reference.assert_same_arrays(part, expected)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 2), (6, 6)])
def test_row_ranges_outside(start, stop):
    coded = _ext.entropy_encode(mx.zeros((5, 8), dtype=mx.uint8))
    with pytest.raises(ValueError, match="not within 5"):
        _ext.entropy_decode(coded, row_start=start, row_stop=stop)


@pytest.mark.parametrize("cols", [1, 3, 48, 64, 100])
def test_tile_rows(cols):
    """Tiles start on a step of 64 and are not smaller than asked for."""
    symbols = mx.random.randint(0, 9, (90, cols)).astype(mx.uint8)
    unit = 64 // np.gcd(cols, 64)
    for wanted in (1, 2, 5, 40, 1000):
        coded = _ext.entropy_encode(symbols, tile_rows=wanted)
        info = _ext.validate(coded)
        assert info.tile_rows == min(90, -(-wanted // unit) * unit)
        assert info.tiles == -(-90 // info.tile_rows)
        assert mx.array_equal(_ext.entropy_decode(coded), symbols)
    with pytest.raises(ValueError, match="tile_rows"):
        _ext.entropy_encode(symbols, tile_rows=-1)


# The reference encoder writes tables that the library's never chooses.
@st.composite
def foreign_matrices(draw):
    state_bits = draw(st.sampled_from([16, 32]))
    total, most = (256, 16) if state_bits == 16 else (4096, 256)
    random = np.random.default_rng(draw(SEEDS))
    classes = draw(st.integers(1, min(most, 40)))
    frequencies = [total]
    if classes > 1:
        cuts = np.sort(random.integers(0, total - 1, classes - 1)) + 1
        frequencies = np.diff([0, *cuts, total]).tolist()
    raw_bits = draw(st.integers(0, 16 - (classes - 1).bit_length()))
    left = 16 - raw_bits - (classes - 1).bit_length()
    shift = draw(st.integers(0, left))
    highest = ((classes << raw_bits) - 1) << shift
    base = draw(st.integers(0, (1 << 16) - 1 - highest))
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([1, 20, 64, 130])))
    owners = random.choice(classes, shape, p=np.array(frequencies) / total)
    raw = random.integers(0, 1 << raw_bits, shape)
    values = base + (((owners << raw_bits) | raw) << shift)
    escaped = random.random(shape) < draw(st.sampled_from([0, 0.1]))
    values = np.where(escaped, random.integers(0, 1 << 16, shape), values)
    plane = reference.encode.Plane(
        "floats", values, frequencies, raw_bits, shift, base
    )
    return reference.encode.encode(
        [plane],
        scheme=2,
        cols=shape[1],
        bits=16,
        float_type=draw(st.sampled_from([2, 3])),
        state_bits=state_bits,
        tile_rows=draw(st.sampled_from([None, 64])),
    ), values


@SETTINGS
@given(foreign=foreign_matrices())
def test_decodes_what_others_encode(foreign):
    data, values = foreign
    values = values.astype(np.uint16)
    words = values >> 1 | values << 15
    assert_decodes(reference.to_array(data), {"floats": words})


def test_encoders_refuse_wrong_arrays():
    weight, scales, biases = mx.quantize(mx.zeros((4, 128)), 64, 4)
    cases = [
        lambda: _ext.entropy_encode(mx.zeros((2, 2))),
        lambda: _ext.entropy_encode(mx.zeros((0, 2), dtype=mx.uint8)),
        lambda: _ext.encode_float(mx.zeros((2, 2), dtype=mx.int32)),
        lambda: _ext.encode_float(mx.zeros((2, 0))),
        lambda: _ext.encode_affine(weight, scales, biases, 64, 7),
        lambda: _ext.encode_affine(weight, scales, biases, 16, 4),
        lambda: _ext.encode_affine(weight, scales, biases, 32, 4),
        lambda: _ext.encode_affine(weight, scales, biases[:, :1], 64, 4),
        lambda: _ext.encode_affine(weight, scales, None, 64, 4),
        lambda: _ext.encode_affine(scales, scales, biases, 64, 4),
        lambda: _ext.encode_affine(
            weight, scales, biases.astype(mx.float16), 64, 4
        ),
    ]
    for case in cases:
        with pytest.raises(ValueError, match=r"^\[e"):
            case()


def products_on(target, coded, x, rows):
    _ext.set_target(target)
    y = _ext.entropy_coded_matmul(x, coded, rows)
    mx.eval(y)
    return np.array(y, dtype=np.float64)


# From a single row to more than any block of any target.
BATCHES = [1, 2, 4, 7, 16, 33]


@pytest.mark.parametrize("target", _ext.targets()[:-1])
@pytest.mark.parametrize("bits", [*BITS, "float32", "float16", "bfloat16"])
def test_targets_agree_with_scalar(target, bits):
    rows, cols = 77, 512
    weights = mx.random.normal((rows, cols)) * 0.03
    if isinstance(bits, int):
        stock = mx.quantize(weights.astype(mx.float16), 64, bits)
        coded = _ext.encode_affine(*stock, 64, bits, tile_rows=8)
    else:
        coded = _ext.encode_float(
            weights.astype(getattr(mx, bits)), tile_rows=8
        )
    for batch in BATCHES:
        x = mx.random.normal((batch, cols))
        expected = products_on("scalar", coded, x, rows)
        actual = products_on(target, coded, x, rows)
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        # A fused multiply-add may round an activation to the next integer,
        # which is 2^-16 of the largest in its group.
        assert error <= 1e-5
    for dtype in DTYPES:
        values = []
        for name in ("scalar", target):
            _ext.set_target(name)
            whole = _ext.entropy_dequantize(coded, rows, cols, dtype)
            some = _ext.entropy_coded_embedding(
                mx.array([76, 0, 9, 9]), coded, cols, dtype
            )
            values.append((reference.bits(whole), reference.bits(some)))
        np.testing.assert_array_equal(values[0][0], values[1][0])
        np.testing.assert_array_equal(values[0][1], values[1][1])


def test_set_target():
    assert _ext.targets()[-1] == "scalar"
    for name in _ext.targets():
        _ext.set_target(name)
        assert _ext.target() == name
    with pytest.raises(ValueError, match=r"abacus.*scalar"):
        _ext.set_target("abacus")
    assert _ext.target() == "scalar"


def test_set_num_threads():
    symbols = mx.random.randint(0, 9, (300, 640)).astype(mx.uint8)
    weights = mx.random.normal((300, 640))
    x = mx.random.normal((1, 640))
    results = []
    for threads in (1, 2, 5):
        _ext.set_num_threads(threads)
        assert _ext.num_threads() == threads
        coded = _ext.entropy_encode(symbols, tile_rows=10)
        floats = _ext.encode_float(weights, tile_rows=10)
        assert mx.array_equal(_ext.entropy_decode(coded), symbols)
        y = _ext.entropy_coded_matmul(x, floats, 300)
        results.append([reference.to_bytes(a) for a in (coded, floats, y)])
    assert results[0] == results[1] == results[2]
    _ext.set_num_threads(0)
    assert _ext.num_threads() >= 1
    for wrong in (-1, 5000):
        with pytest.raises(ValueError, match="set_num_threads"):
            _ext.set_num_threads(wrong)


def test_python_threads():
    """Each thread with its own matrix, stream and results."""
    failures = []

    def work(seed):
        random = np.random.default_rng(seed)
        stream = mx.new_stream(mx.cpu)
        try:
            for _ in range(8):
                symbols = random.integers(0, 12, (40, 96), dtype=np.uint8)
                words = patterns(random, "ordinary", mx.float16, (48, 128))
                with mx.stream(stream):
                    coded = _ext.entropy_encode(mx.array(symbols), tile_rows=4)
                    decoded = np.array(_ext.entropy_decode(coded))
                    weights = reference.float_array(words, mx.float16)
                    floats = _ext.encode_float(weights, tile_rows=4)
                    x = mx.array(random.normal(size=(3, 128)), mx.float32)
                    y = _ext.entropy_coded_matmul(x, floats, 48, stream=stream)
                    mx.eval(y)
                np.testing.assert_array_equal(decoded, symbols)
                exact = (
                    np.array(x)
                    @ words.astype(np.uint16)
                    .view(np.float16)
                    .astype(np.float32)
                    .T
                )
                np.testing.assert_allclose(np.array(y), exact, rtol=1e-4,
                                           atol=1e-5)  # fmt: skip
        except Exception as error:  # reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_streams_at_once():
    """One evaluation that runs on several streams, sharing a matrix."""
    weights = mx.random.normal((256, 512)) * 0.05
    stock = mx.quantize(weights, 64, 4)
    shared = _ext.encode_affine(*stock, 64, 4, tile_rows=16)
    expected = mx.quantized_matmul
    streams = [mx.new_stream(mx.cpu) for _ in range(4)]
    inputs = [mx.random.normal((2, 512)) for _ in range(24)]
    mx.eval(shared, inputs)
    outputs = [
        _ext.entropy_coded_matmul(x, shared, 256, stream=streams[i % 4])
        for i, x in enumerate(inputs)
    ]
    mx.eval(outputs)
    for x, y in zip(inputs, outputs, strict=True):
        stock_y = expected(x, *stock, transpose=True, group_size=64, bits=4)
        assert mx.allclose(y, stock_y, rtol=1e-4, atol=1e-4)
