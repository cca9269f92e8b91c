"""A decoder of coded matrices, written from docs/format.md alone.

It shares no line with the library and makes every check of section 5, so that
the two can be held against each other: python tests/reference/decode.py FILE
"""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tree
import xxhash

SCHEMES = ("symbols", "affine", "float")
FLOAT_TYPES = ("none", "float32", "float16", "bfloat16")
KINDS = ("codes", "scales", "offsets", "corrections", "biases", "floats")
PLANES = {
    "symbols": [["codes"]],
    "affine": [
        ["scales", "offsets", "corrections", "codes"],
        ["scales", "biases", "codes"],
    ],
    "float": [["floats"]],
}
HEADER = (
    "magic version scheme coder total checksum rows cols tile_rows tiles "
    "bits float_type group_size planes reserved"
)
PLANE = "kind raw_bits shift has_palette classes base"


def check(condition, message):
    if not condition:
        raise ValueError(message)


def fields(names, layout, data):
    values = struct.unpack("<" + layout, data)
    return SimpleNamespace(**dict(zip(names.split(), values, strict=True)))


class Reader:
    def __init__(self, data, name):
        self.data, self.at, self.name = data, 0, name

    def take(self, size):
        check(self.at + size <= len(self.data), f"{self.name}: truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def integers(self, count, dtype):
        raw = self.take(int(count) * np.dtype(dtype).itemsize)
        return np.frombuffer(raw, dtype).astype(np.int64)


def read_header(data):
    check(len(data) >= 48 + 192, "too short")
    h = fields(HEADER, "4sH2B2Q4I2BHB3s", data[:48])
    check(h.magic == b"MXEC", "bad magic")
    check(h.version == 1, f"format version {h.version}")
    check(h.scheme < len(SCHEMES), "bad scheme")
    check(h.coder in (0, 16, 32), "bad coder")
    check(h.total == len(data), f"header says {h.total}, got {len(data)} bytes")
    check(h.float_type < len(FLOAT_TYPES), "bad float type")
    check(h.reserved == bytes(3), "reserved bytes are not zero")
    check(xxhash.xxh64_intdigest(data[24:]) == h.checksum, "checksum mismatch")
    check(h.rows and h.cols and h.tile_rows, "empty shape")
    check(h.rows * h.cols <= 1 << 40, "shape too large: matrix")
    tile = min(h.rows, h.tile_rows) * h.cols
    check(tile <= 1 << 26, "shape too large: tile")
    check(h.tiles == -(-h.rows // h.tile_rows), "wrong tile count")
    check(h.tiles == 1 or tile % 64 == 0, "tiles do not start on a step")
    h.scheme, h.float_type = SCHEMES[h.scheme], FLOAT_TYPES[h.float_type]
    h.width = {"none": 0, "float32": 32}.get(h.float_type, 16)
    if h.scheme == "affine":
        check(h.bits in (2, 3, 4, 5, 6, 8), "unsupported bits")
        check(h.group_size in (32, 64, 128), "bad group size")
        check(h.cols % h.group_size == 0, "group size does not divide cols")
        check(h.width > 0, "float type missing")
        return h
    check(h.group_size == 0, "group size without groups")
    if h.scheme == "float":
        check(h.width > 0 and h.bits == h.width, "float type and bits")
    else:
        check(h.width == 0 and h.bits == 8, "bad symbol type")
    return h


def read_plane(reader, h, last=True):
    p = fields(PLANE, "4B2I", reader.take(12))
    check(p.kind < len(KINDS), "bad plane kind")
    check(p.has_palette <= 1, "palette flag")
    limit, total = {16: (16, 256), 32: (256, 4096), 0: (256, 1)}[h.coder]
    check(1 <= p.classes <= limit, f"class count {p.classes}")
    if h.coder == 0 and p.classes > 1:
        check(last, "tree in a side plane")
        p.tree = tree.read(reader, p.classes)
    else:
        p.frequencies = reader.integers(p.classes, "<u2")
        fits = p.classes == 1 or max(p.frequencies) < total
        check(fits, "frequency too large")
        check(sum(p.frequencies) == total, f"frequencies sum to not {total}")
    if p.has_palette:
        allowed = p.kind == 0 and p.base == 0 and p.shift == 0
        check(allowed and p.classes << p.raw_bits <= 256, "palette not allowed")
        p.palette = reader.integers(p.classes << p.raw_bits, "u1")
    p.kind = KINDS[p.kind]
    widths = {"codes": h.bits, "offsets": 16, "corrections": 32}
    p.width = widths.get(p.kind, h.width)
    p.group = 1 if p.kind in ("codes", "floats") else h.group_size
    return p


def check_plane(p):
    check(p.raw_bits + p.shift <= p.width, "too many raw bits")
    largest = p.base + (((p.classes << p.raw_bits) - 1) << p.shift)
    check(largest < 1 << p.width, "class range")
    if p.has_palette:
        check(max(p.palette) < 1 << p.width, "palette entry too large")


def slots_rans16(frequencies):
    """The class and the rank of each of the 256 slots, by the alias rule."""
    left = list(frequencies) + [0] * (16 - len(frequencies))
    alias, small, large = list(range(16)), [], []
    for i in range(16):
        (small if left[i] < 16 else large).append(i)
    while small:
        s, top = small.pop(), large[-1]
        alias[s] = top
        left[top] -= 16 - left[s]
        if left[top] < 16:
            small.append(large.pop())
    divider = [16 if alias[b] == b else left[b] for b in range(16)]
    slots = [divmod(s, 16) for s in range(256)]
    owner = np.array([b if i < divider[b] else alias[b] for b, i in slots])
    rank = np.array([(owner[:s] == owner[s]).sum() for s in range(256)])
    return owner, rank


def slots_rans32(frequencies):
    owner = np.repeat(np.arange(len(frequencies)), frequencies)
    first = np.cumsum(frequencies) - frequencies
    return owner, np.arange(4096) - first[owner]


class Lanes:
    """The 64 states of a tile and their stream, of u8 or u16 units.

    `x` holds the lanes in the order in which they take from the stream.
    """

    def __init__(self, name, coder, states, stream):
        self.name, self.unit_bits, self.at = name, coder // 2, 0
        self.rans16, self.low = coder == 16, 1 << coder // 2
        check(min(states) >= self.low, f"{name}: lane state")
        whole = len(stream) * 8 % self.unit_bits == 0
        check(whole, f"{name}: stream does not decode: half a word")
        self.units = np.frombuffer(stream, "u1" if self.rans16 else "<u2")
        order = np.arange(64)
        if self.rans16:
            order = np.concatenate([order[0::2], order[1::2]])
        self.x, self.unorder = states[order], np.argsort(order)

    def decode(self, plane, steps):
        slots = slots_rans16 if self.rans16 else slots_rans32
        (owner, rank), bits = slots(plane.frequencies), 8 if self.rans16 else 12
        out, x = np.empty((steps, 64), np.int64), self.x
        for step in range(steps):
            slot = x & ((1 << bits) - 1)
            out[step] = classes = owner[slot]
            x = plane.frequencies[classes] * (x >> bits) + rank[slot]
            hungry = np.flatnonzero(x < self.low)
            units = self.units[self.at : self.at + len(hungry)]
            enough = len(units) == len(hungry)
            check(enough, f"{self.name}: stream does not decode: too short")
            x[hungry] = x[hungry] << self.unit_bits | units
            self.at += len(hungry)
        self.x = x
        return out[:, self.unorder].reshape(-1)

    def finish(self):
        done = self.at == len(self.units) and (self.x == self.low).all()
        check(done, f"{self.name}: stream does not decode: wrong end")


def read_raw_bits(reader, plane, steps):
    whole, rest = divmod(plane.raw_bits, 8)
    size = 64 * whole + 8 * rest
    data = np.frombuffer(reader.take(steps * size), "u1").reshape(steps, size)
    raw = np.zeros((steps, 64), np.int64)
    for byte in range(whole):
        raw |= data[:, 64 * byte :][:, :64].astype(np.int64) << 8 * byte
    for bit in range(rest):
        mask = data[:, 64 * whole + 8 * bit :][:, :8]
        lanes = np.unpackbits(mask, axis=1, bitorder="little")
        raw |= lanes.astype(np.int64) << (8 * whole + bit)
    return raw.reshape(-1)


def decode_tile(data, name, planes, h, rows):
    reader, coded = Reader(data, name), any(p.classes > 1 for p in planes)
    counts = reader.integers(len(planes), "<u4")
    lanes = coded and h.coder > 0
    states = reader.integers(64 * lanes, f"<u{(h.coder or 16) // 8}")
    sizes = [rows * h.cols // p.group for p in planes]
    steps = [-(-size // 64) for size in sizes]
    raw = [read_raw_bits(reader, p, steps[i]) for i, p in enumerate(planes)]
    exceptions = [reader.integers(2 * n, "<u4").reshape(-1, 2) for n in counts]
    stream, values = data[reader.at :], []
    check(coded or not stream, f"{name}: trailing bytes")
    lanes = Lanes(name, h.coder, states, stream) if lanes else None
    for i, p in enumerate(planes):
        index = raw[i]
        if p.classes > 1 and h.coder == 0:
            classes = tree.decode_tile(p.tree, stream, rows, h.cols, name)
            index[: sizes[i]] |= classes << p.raw_bits
        elif p.classes > 1:
            index = lanes.decode(p, steps[i]) << p.raw_bits | index
        value = p.base + (index << p.shift)
        if p.has_palette:
            value = p.palette[index]
        at, real = exceptions[i].T
        rising = (np.diff(at, append=sizes[i]) > 0).all()
        check(rising, f"{name}: exception index")
        check((real < 1 << p.width).all(), f"{name}: exception value")
        value[at] = real
        values.append(value[: sizes[i]].reshape(rows, -1))
    if lanes:
        lanes.finish()
    return values


def predicted_biases(scales, offsets, corrections, h):
    """Bit patterns of biases from those of scales and the other planes."""
    half, sign = h.float_type == "float16", 1 << (h.width - 1)
    k = (offsets - (1 << 15)).astype(np.float32)
    scale = (scales << (32 - h.width)).astype("u4").view(np.float32)
    if half:
        scale = scales.astype("u2").view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        p = (scale * k).astype(np.float16 if half else np.float32)
    p = p.view("u2" if half else "u4").astype(np.int64)
    if h.float_type == "bfloat16":  # to nearest, ties to even
        p = p + 0x7FFF + (p >> 16 & 1) >> 16
    quiet = {"float32": 1 << 22, "float16": 1 << 9, "bfloat16": 1 << 6}
    p = np.where(np.isnan(scale), scales | quiet[h.float_type], p)
    p = np.where(k == 0, 0, p)
    ordered = np.where(p & sign, -1 - (p & (sign - 1)), p)
    ordered += corrections - (1 << 31)
    ordered = ordered.astype("u4").view("i4").astype(np.int64)
    magnitude = np.where(ordered < 0, -1 - ordered, ordered) & (sign - 1)
    return np.where(ordered < 0, magnitude | sign, magnitude)


def decode(data):
    """The matrix as the header's fields and `arrays` of rows, by name:
    "symbols"; "codes", "scales" and "biases"; or "floats". Floating-point
    arrays hold bit patterns. ValueError says what is wrong with the data.
    """
    data = bytes(data)
    h, reader = read_header(data), Reader(data, "plane table")
    reader.take(48)
    planes = [read_plane(reader, h, i == h.planes - 1) for i in range(h.planes)]
    kinds = [p.kind for p in planes]
    check(kinds in PLANES[h.scheme], "planes do not match the scheme")
    for plane in planes:
        check_plane(plane)
    reader.name, tiles = "tile table", []
    offsets = [int(i) for i in reader.integers(h.tiles + 1, "<u8")]
    check(offsets[0] == reader.at, "tile offset 0")
    check(sorted(offsets) == offsets, "tile offset that falls")
    padded = -(-(offsets[-1] + 192) // 64) * 64
    check(padded == len(data), "tail padding or last tile offset")
    check(not any(data[offsets[-1] :]), "tail padding is not zero")
    for t in range(h.tiles):
        rows = min(h.tile_rows, h.rows - t * h.tile_rows)
        tile = data[offsets[t] : offsets[t + 1]]
        tiles.append(decode_tile(tile, f"tile {t}", planes, h, rows))
    out = {k: np.vstack([t[i] for t in tiles]) for i, k in enumerate(kinds)}
    for kind in {"scales", "biases", "floats"} & out.keys():
        out[kind] = out[kind] >> 1 | (out[kind] & 1) << (h.width - 1)
    if "offsets" in out:
        k, wrong = out.pop("offsets"), out.pop("corrections")
        out["biases"] = predicted_biases(out["scales"], k, wrong, h)
    if h.scheme == "symbols":
        out["symbols"] = out.pop("codes")
    for kind, array in out.items():
        small = kind in ("codes", "symbols")
        out[kind] = array.astype("u1" if small else f"u{h.width // 8}")
    h.arrays = out
    return h


if __name__ == "__main__":
    print(decode(Path(sys.argv[1]).read_bytes()))
