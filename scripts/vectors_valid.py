"""Matrices of every kind for scripts/make_vectors.py."""

import mlx.core as mx
import numpy as np
from encode import Plane, encode

from mlx_entropy import _ext

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
FLOAT_TYPE = {"f32": 1, "f16": 2, "bf16": 3}
WIDTH = {"f32": 32, "f16": 16, "bf16": 16}


def noise(seed, *shape):
    """Uniform uint64 by SplitMix64, the same on every machine."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 32)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).reshape(shape)


def bell(seed, high, *shape):
    """Integers 0 .. high - 1, likeliest in the middle."""
    parts = noise(seed, *shape, 4) % np.uint64(high)
    return (parts.sum(axis=-1) + np.uint64(2)) // np.uint64(4) % np.uint64(high)


def skewed(seed, high, *shape):
    """Integers 0 .. high - 1, each half as likely as the one before."""
    bits = noise(seed, *shape)[..., None] >> np.arange(
        high - 1, dtype=np.uint64
    )
    ones = np.cumprod(bits & np.uint64(1), axis=-1, dtype=np.uint64)
    return ones.sum(axis=-1)


def pack_codes(codes, bits):
    """MLX's packing: `bits` bits each, lowest first, in uint32 words."""
    planes = codes[..., None].astype(np.uint8) >> np.arange(
        bits, dtype=np.uint8
    )
    packed = np.packbits((planes & 1).reshape(len(codes), -1), axis=1,
                         bitorder="little")  # fmt: skip
    return mx.array(packed.view(np.uint32))


def patterns(values, dtype):
    """An mx.array of a float type from bit patterns."""
    values = np.asarray(values, dtype=np.uint64)
    words = values.astype(np.uint32 if WIDTH[dtype] == 32 else np.uint16)
    return mx.array(words).view(DTYPES[dtype])


# Largest mantissa, and exponent field of the values near 2^-7.
FRACTION = {"f32": 23, "f16": 10, "bf16": 7}
EXPONENT = {"f32": 120, "f16": 8, "bf16": 120}


def scale_patterns(seed, dtype, *shape):
    """Bit patterns around 2^-7, a quarter of them negative."""
    fraction = FRACTION[dtype]
    mantissa = noise(seed, *shape) % np.uint64(1 << fraction)
    exponent = bell(seed + 1, 4, *shape) + np.uint64(EXPONENT[dtype])
    sign = (noise(seed + 2, *shape) % np.uint64(4) == 0).astype(np.uint64)
    sign <<= np.uint64(WIDTH[dtype] - 1)
    return sign | exponent << np.uint64(fraction) | mantissa


def related_biases(scales, bits):
    """-scale * k with an exact k, off by one unit now and then."""
    dtype = scales.dtype
    k = -float(1 << (bits - 1))
    biases = (scales.astype(mx.float32) * k).astype(dtype)
    word = mx.uint32 if dtype == mx.float32 else mx.uint16
    off = mx.arange(biases.size).reshape(biases.shape) % 7 == 3
    return (biases.view(word) + off.astype(word)).view(dtype)


def affine(seed, rows, cols, bits, group, dtype, biases=None, **options):
    codes = bell(seed, 1 << bits, rows, cols)
    scales = patterns(
        scale_patterns(seed + 10, dtype, rows, cols // group), dtype
    )
    if biases is None:
        biases = related_biases(scales, bits)
    return _ext.encode_affine(
        pack_codes(codes, bits), scales, biases, group, bits, **options
    )


SPECIAL = {
    "f32": [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00001,
            0xFFFFFFFF, 0x3F800000, 0x7F7FFFFF, 0x00800000, 0xBEAAAAAB],
    "f16": [0, 0x8000, 1, 0x7C00, 0xFC00, 0x7E00, 0x7D01, 0xFFFF, 0x3C00,
            0x7BFF, 0x0400, 0xB555],
    "bf16": [0, 0x8000, 1, 0x7F80, 0xFF80, 0x7FC0, 0x7FA1, 0xFFFF, 0x3F80,
             0x7F7F, 0x0080, 0xBEAB],
}  # fmt: skip


def special_affine(dtype):
    """Every special scale with every special bias."""
    values = np.array(SPECIAL[dtype], dtype=np.uint64)
    n = len(values)
    scales = patterns(np.repeat(values, n).reshape(n, n), dtype)
    biases = patterns(np.tile(values, n).reshape(n, n), dtype)
    codes = pack_codes(bell(77, 4, n, 32 * n), 2)
    return _ext.encode_affine(codes, scales, biases, 32, 2)


def symbols(values, **options):
    return _ext.entropy_encode(mx.array(values.astype(np.uint8)), **options)


def float_matrix(seed, dtype, rows, cols, **options):
    values = patterns(scale_patterns(seed, dtype, rows, cols), dtype)
    return _ext.encode_float(values, **options)


def library_files():
    """{name: bytes}, all by the library's encoder."""
    made = {}
    groups = [32, 64, 128]
    for i, bits in enumerate((2, 3, 4, 5, 6, 8)):
        for j, dtype in enumerate(DTYPES):
            group = groups[(i + j) % 3]
            name = f"affine-{bits}bit-g{group}-{dtype}"
            made[name] = affine(100 * i + j, 6, 384, bits, group, dtype)
    made["affine-tiles-ragged"] = affine(1, 11, 96, 4, 32, "f16", tile_rows=4)
    made["affine-tiles-one-row"] = affine(2, 5, 64, 3, 32, "bf16", tile_rows=1)
    made["affine-single-group"] = affine(3, 1, 32, 4, 32, "f32")
    for dtype in DTYPES:
        wild = patterns(scale_patterns(40, dtype, 8, 8), dtype)
        made[f"affine-stored-biases-{dtype}"] = affine(
            4, 8, 256, 4, 32, dtype, biases=wild
        )
        made[f"affine-special-values-{dtype}"] = special_affine(dtype)
        made[f"float-{dtype}"] = float_matrix(5, dtype, 12, 100)
        special = np.array(SPECIAL[dtype] * 8, dtype=np.uint64).reshape(8, 12)
        made[f"float-special-values-{dtype}"] = _ext.encode_float(
            patterns(special, dtype)
        )
    zero = mx.zeros((16, 64), dtype=mx.float32)
    made["float-constant-f32"] = _ext.encode_float(zero)
    low = (scale_patterns(6, "f32", 16, 64) >> np.uint64(16)) << np.uint64(16)
    made["float-shift-f32"] = _ext.encode_float(patterns(low, "f32"))
    made["float-single-row-bf16"] = float_matrix(7, "bf16", 1, 333)
    made["float-single-column-f16"] = float_matrix(8, "f16", 333, 1)
    made["float-single-value-bf16"] = float_matrix(9, "bf16", 1, 1)
    made["float-odd-columns-tiles-bf16"] = float_matrix(
        10, "bf16", 150, 7, tile_rows=64
    )
    made |= library_symbols()
    return {name: bytes(memoryview(np.array(a))) for name, a in made.items()}


def library_symbols():
    scattered = np.array([7, 250, 99, 31, 180, 64], dtype=np.uint64)
    palette = scattered[skewed(20, 6, 20, 50)]
    palette[3, 7] = 1  # too rare for the table
    counts = [1000, 400, 200, 90, 0, 30]
    table = _ext.RANSTable.from_counts(counts)
    wide = _ext.RANSTable.from_counts([2000 - 7 * i for i in range(200)])
    certain = _ext.RANSTable.from_counts([0, 0, 5])
    return {
        "symbols-one": symbols(np.full((3, 70), 9)),
        "symbols-two": symbols(
            noise(21, 9, 100) % np.uint64(8) // np.uint64(7)
        ),
        "symbols-narrow": symbols(skewed(22, 16, 20, 100)),
        "symbols-uniform16": symbols(noise(23, 8, 128) % np.uint64(16)),
        "symbols-uniform256": symbols(noise(24, 8, 128) % np.uint64(256)),
        "symbols-wide": symbols(bell(25, 120, 24, 200)),
        "symbols-wide-tiles": symbols(bell(26, 60, 64, 64), tile_rows=20),
        "symbols-palette": symbols(palette),
        "symbols-table-escapes": symbols(
            skewed(27, 7, 10, 64), table=table, tile_rows=3
        ),
        "symbols-table-wide": symbols(bell(28, 250, 12, 64), table=wide),
        "symbols-table-certain": symbols(
            skewed(29, 3, 4, 64) ^ np.uint64(2), table=certain
        ),
        "symbols-vector": symbols(bell(30, 12, 1, 1000)),
        "symbols-column": symbols(bell(31, 12, 300, 1)),
        "symbols-odd-columns-tiles": symbols(bell(32, 9, 200, 3), tile_rows=64),
        "symbols-lone": symbols(np.full((1, 1), 255)),
    }


def flat(classes, total):
    """Frequencies as equal as possible."""
    return [total // classes + (i < total % classes) for i in range(classes)]


def even(values, kind, raw_bits, **rest):
    """A plane of raw bits only."""
    return Plane(kind, values, [rest.pop("total", 256)], raw_bits, **rest)


def symbol_file(plane, **rest):
    cols = plane.values.shape[1]
    return encode([plane], scheme=0, cols=cols, bits=8, **rest)


def affine_file(dtype, bits, group, planes, **rest):
    cols = planes[-1].values.shape[1]
    return encode(planes, scheme=1, cols=cols, bits=bits, group_size=group,
                  float_type=FLOAT_TYPE[dtype], **rest)  # fmt: skip


def rotated(values, dtype):
    """Bit patterns as planes hold them: the sign in the lowest bit."""
    width, values = WIDTH[dtype], np.asarray(values, dtype=np.uint64)
    mask = np.uint64((1 << width) - 1)
    return values << np.uint64(1) & mask | values >> np.uint64(width - 1)


def prediction_file(dtype, offsets, corrections):
    """Each special scale with each offset and correction, all in raw bits."""
    scales = rotated(SPECIAL[dtype], dtype)[:, None]
    k, wrong = np.meshgrid(offsets, corrections)
    n = k.size
    planes = [
        even(np.repeat(scales, n, axis=1), "scales", WIDTH[dtype]),
        even(np.tile(k.reshape(1, -1), (12, 1)), "offsets", 16),
        even(np.tile(wrong.reshape(1, -1), (12, 1)), "corrections", 32),
        even(bell(50, 4, 12, 32 * n), "codes", 2),
    ]
    return affine_file(dtype, 2, 32, planes)


def reference_files():
    """{name: bytes} of what the library's encoder would not write."""
    made = {}
    offsets = np.array([0, 1, 32761, 32768, 32769, 32783, 65535])
    corrections = np.array([0, 1 << 31, (1 << 31) + 40000, (1 << 32) - 1])
    for dtype in DTYPES:
        made[f"affine-any-prediction-{dtype}"] = prediction_file(
            dtype, offsets, corrections
        )
    made |= reference_symbols()
    made |= reference_affine()
    words = scale_patterns(60, "f32", 5, 77)
    made["float-raw32-f32"] = float_file(even(words, "floats", 32), "f32")
    made["float-exceptions-only-f16"] = float_file(
        Plane("floats", scale_patterns(61, "f16", 3, 30), [256]), "f16"
    )
    made["float-full-shift-f32"] = float_file(
        Plane("floats", np.full((2, 40), 0xDEADBEEF), [256], shift=32,
              base=0xDEADBEEF),
        "f32",
    )  # fmt: skip
    halves = rotated(scale_patterns(62, "bf16", 10, 70), "bf16")
    made["float-rans32-bf16"] = float_file(
        Plane("floats", halves, flat(256, 4096), 8), "bf16", coder=32
    )
    return made


def float_file(plane, dtype, **rest):
    cols = plane.values.shape[1]
    return encode([plane], scheme=2, cols=cols, bits=WIDTH[dtype],
                  float_type=FLOAT_TYPE[dtype], **rest)  # fmt: skip


def reference_affine():
    scales = rotated(scale_patterns(70, "f16", 6, 4), "f16")
    biases = rotated(scale_patterns(71, "f16", 6, 4), "f16")
    codes = bell(72, 16, 6, 128)
    sides = [
        Plane("scales", scales, flat(16, 256), raw_bits=12),
        Plane("biases", biases, flat(9, 256), raw_bits=11, base=0x3001),
    ]
    palette = list(range(15, -1, -1))
    wide = [Plane(p.kind, p.values, flat(32, 4096), raw_bits=11) for p in sides]
    return {
        "affine-palette-raw-bits": affine_file(
            "f16", 4, 32,
            [*sides, Plane("codes", codes, flat(4, 256), 2, palette=palette)],
        ),
        "affine-codes-base-shift": affine_file(
            "f16", 4, 32,
            [*sides, Plane("codes", codes, flat(3, 256), 1, 1, 3)],
            tile_rows=2,
        ),
        "affine-rans32": affine_file(
            "f16", 4, 32,
            [*wide, Plane("codes", codes, flat(16, 4096))],
            coder=32, tile_rows=5,
        ),
        "affine-codes-not-coded": affine_file(
            "f16", 4, 32, [*sides, even(codes, "codes", 4)]
        ),
    }  # fmt: skip


def reference_symbols():
    ladder = skewed(80, 16, 12, 50)
    zeros = [0, 120, 0, 0, 60, 0, 40, 20, 0, 0, 10, 0, 0, 6]
    edge = [4094, 1, 0, 1]
    return {
        "symbols-zero-frequencies": symbol_file(Plane("codes", ladder, zeros)),
        "symbols-skew-rans16": symbol_file(Plane("codes", ladder, [255, 1])),
        "symbols-skew-rans32": symbol_file(
            Plane("codes", ladder, edge), coder=32
        ),
        "symbols-256-classes": symbol_file(
            Plane("codes", bell(81, 256, 20, 64), flat(256, 4096)),
            coder=32,
        ),
        "symbols-raw-palette": symbol_file(
            Plane("codes", bell(82, 256, 6, 64) ^ np.uint64(0x5A), [256], 8,
                  palette=[i ^ 0x5A for i in range(256)])
        ),
        "symbols-full-shift": symbol_file(
            Plane("codes", np.full((2, 64), 200), [256], shift=8, base=200)
        ),
        "symbols-tile-taller-than-matrix": symbol_file(
            Plane("codes", ladder, flat(16, 256)), tile_rows=1 << 31
        ),
        "symbols-no-entropy-rans32": symbol_file(
            Plane("codes", bell(83, 8, 3, 21), [4096], 3), coder=32
        ),
    }  # fmt: skip
