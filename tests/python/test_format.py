"""Conformance: the golden files, the document, and what readers refuse."""

import hashlib
import json
import re
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from helpers import reference
from helpers.reference import VECTORS
from mlx_entropy import _ext

MANIFEST = json.loads((VECTORS / "manifest.json").read_text())
# MLX may rethrow what fails at evaluation as RuntimeError.
REFUSALS = (ValueError, RuntimeError)
VALID, INVALID = MANIFEST["valid"], MANIFEST["invalid"]


def read(kind, name):
    return (VECTORS / kind / f"{name}.mxec").read_bytes()


@pytest.fixture(params=_ext.targets())
def target(request):
    before = _ext.target()
    _ext.set_target(request.param)
    assert _ext.target() == request.param
    yield request.param
    _ext.set_target(before)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["valid", "invalid"])
def test_manifest_is_complete(kind):
    files = {path.stem for path in (VECTORS / kind).glob("*")}
    assert files == MANIFEST[kind].keys()
    for name, entry in MANIFEST[kind].items():
        assert sha256(read(kind, name)) == entry["sha256"], name


def test_vectors_are_small():
    sizes = [path.stat().st_size for path in VECTORS.rglob("*.mxec")]
    assert max(sizes) <= 20_000
    assert sum(sizes) <= 400_000


@pytest.mark.parametrize("name", VALID)
def test_reference_decodes_valid(name):
    arrays = reference.decode.decode(read("valid", name)).arrays
    assert arrays.keys() == VALID[name]["arrays"].keys()
    for key, expected in VALID[name]["arrays"].items():
        assert list(arrays[key].shape) == expected["shape"]
        assert arrays[key].dtype.name == expected["dtype"]
        assert sha256(arrays[key].tobytes()) == expected["sha256"]


@pytest.mark.parametrize("name", VALID)
def test_library_decodes_valid(name, target):
    data = read("valid", name)
    coded = reference.to_array(data)
    _ext.validate(coded)
    arrays = reference.library_arrays(coded)
    reference.assert_same_arrays(arrays, reference.decode.decode(data).arrays)


@pytest.mark.parametrize("name", VALID)
def test_header_of_valid(name):
    data = read("valid", name)
    expected = reference.decode.decode(data)
    info = _ext.describe(reference.to_array(data))
    for field in ("scheme", "rows", "cols", "bits", "group_size"):
        assert getattr(info, field) == getattr(expected, field)
    assert (info.tile_rows, info.tiles) == (expected.tile_rows, expected.tiles)
    assert info.nbytes == len(data)
    dtype = "uint8" if info.scheme == "symbols" else expected.float_type
    assert str(info.dtype).endswith(f".{dtype}")
    if info.codec != "raw":
        codecs = {0: "tree", 16: "rans16", 32: "rans32"}
        assert info.codec == codecs[expected.coder]


@pytest.mark.parametrize("name", INVALID)
def test_reference_refuses_invalid(name):
    with pytest.raises(ValueError, match=INVALID[name]["error"]):
        reference.decode.decode(read("invalid", name))


@pytest.mark.parametrize("name", INVALID)
def test_library_refuses_invalid(name, target):
    coded = reference.to_array(read("invalid", name))
    error = rf"\[validate\] .*({INVALID[name]['error']})"
    with pytest.raises(ValueError, match=error):
        _ext.validate(coded)


# Whatever reads coded bytes validates them, lazily or not.
@pytest.mark.parametrize(
    "read_it",
    [
        _ext.entropy_decode,
        _ext.decode_affine,
        _ext.decode_float,
        _ext.plane_entropies,
        lambda c: mx.eval(_ext.entropy_coded_matmul(mx.ones((1, 384)), c, 6)),
        lambda c: mx.eval(
            _ext.entropy_coded_embedding(mx.array([0]), c, 384, mx.float16)
        ),
        lambda c: mx.eval(_ext.entropy_dequantize(c, 6, 384, mx.float16)),
    ],
)
def test_every_reader_refuses_damage(read_it):
    data = bytearray(read("valid", "affine-4bit-g32-f16"))
    data[-300] ^= 1
    with pytest.raises(REFUSALS, match="checksum mismatch"):
        read_it(reference.to_array(bytes(data)))


def test_readers_refuse_other_schemes():
    symbols = reference.to_array(read("valid", "symbols-narrow"))
    floats = reference.to_array(read("valid", "float-f16"))
    with pytest.raises(ValueError, match="another scheme"):
        _ext.entropy_decode(floats)
    with pytest.raises(ValueError, match="another scheme"):
        _ext.decode_float(symbols)
    with pytest.raises(ValueError, match="another scheme"):
        _ext.decode_affine(floats)
    with pytest.raises(REFUSALS, match="symbols, not weights"):
        mx.eval(_ext.entropy_coded_matmul(mx.ones((1, 100)), symbols, 20))


def test_readers_refuse_other_arrays():
    coded = reference.to_array(read("valid", "float-f16"))
    for wrong in (coded.astype(mx.uint16), coded[None], mx.array(1, mx.uint8)):
        with pytest.raises(ValueError, match="uint8 vector"):
            _ext.validate(wrong)
        with pytest.raises(ValueError, match="uint8 vector"):
            _ext.describe(wrong)
    with pytest.raises(ValueError, match="too short"):
        _ext.validate(mx.zeros((0,), dtype=mx.uint8))


def test_reads_views():
    """Coded bytes may be a slice of something larger, or strided."""
    data = read("valid", "float-f16")
    expected = reference.decode.decode(data).arrays
    padded = mx.array(np.frombuffer(b"x" * 7 + data + b"y" * 9, np.uint8))
    twice = mx.array(np.repeat(np.frombuffer(data, np.uint8), 2))
    for view in (padded[7 : 7 + len(data)], twice[::2]):
        actual = reference.library_arrays(view)
        reference.assert_same_arrays(actual, expected)


def constant_matrix(rows, cols, tile_rows):
    """Any number of equal symbols in a few bytes for each tile."""
    plane = reference.encode.Plane("codes", np.zeros((1, 1)), [256], base=7)
    tiles = -(-rows // tile_rows)
    head = {
        "scheme": 0,
        "coder": 16,
        "rows": rows,
        "cols": cols,
        "tile_rows": tile_rows,
        "tiles": tiles,
        "bits": 8,
        "float_type": 0,
        "group_size": 0,
    }
    return reference.encode.assemble(
        head, [plane.descriptor()], [bytes(4)] * tiles
    )


def test_more_rows_than_an_array_can_have():
    rows = (1 << 32) - 64
    coded = reference.to_array(constant_matrix(rows, 1, 1 << 26))
    assert _ext.validate(coded).rows == rows
    last = _ext.entropy_decode(coded, row_start=rows - 3, row_stop=rows)
    assert last.tolist() == [[7]] * 3
    with pytest.raises(ValueError, match="decode them in ranges"):
        _ext.entropy_decode(coded)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_more_weights_than_memory(tmp_path):
    """2^40 weights, read by a process that may not have that much memory."""
    path = tmp_path / "huge.mxec"
    path.write_bytes(constant_matrix(1 << 20, 1 << 20, 64))
    program = """if True:
        import resource, sys
        import mlx.core as mx, numpy as np
        from mlx_entropy import _ext
        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
        coded = mx.array(np.fromfile(sys.argv[1], np.uint8))
        _ext.validate(coded)
        try:
            _ext.entropy_decode(coded)
        except MemoryError:
            print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "refused\n", done.stderr


def run_script(name, *arguments):
    return subprocess.run(
        [sys.executable, reference.ROOT / "scripts" / name, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_example_of_the_document():
    done = run_script("format_example.py", "--check")
    assert done.returncode == 0, done.stderr


def test_current_encoder_reproduces_vectors():
    """May be relaxed when the encoder gets better; decoding may not."""
    done = run_script("make_vectors.py", "--check")
    assert done.returncode == 0, done.stderr


def test_reference_decoder_is_independent_and_short():
    source = (reference.ROOT / "tests/reference/decode.py").read_text()
    imports = re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    assert set(imports) == {"numpy", "pathlib", "struct", "sys", "types"} | {
        "tree",
        "xxhash",
    }
    assert len([line for line in source.splitlines() if line]) <= 260
