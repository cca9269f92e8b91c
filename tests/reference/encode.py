"""Writes coded matrices as docs/format.md describes them, plainly and slowly.

It takes the tables from the caller and so can write what the library's encoder
never chooses, and with `assemble` also what no reader may accept.
"""

import struct
from dataclasses import dataclass, field

import numpy as np
import xxhash
from decode import KINDS, slots_rans16, slots_rans32
from tree import MERGE, block_rows

TAIL = 192


@dataclass
class Plane:
    """A table, and the value of each place; those outside are exceptions."""

    kind: str
    values: np.ndarray  # rows x (columns or groups)
    frequencies: list[int]
    raw_bits: int = 0
    shift: int = 0
    base: int = 0
    palette: list[int] = field(default_factory=list)
    # In a tree plane: a leaf is a list of classes, a merge a pair of trees.
    # Its `frequencies` only say which classes there are.
    tree: object = None

    def descriptor(self):
        frequencies = self.frequencies if self.tree is None else []
        table = b"" if self.tree is None else stored_tree(self.tree)
        head = struct.pack(
            f"<4B2I{len(frequencies)}H",
            KINDS.index(self.kind),
            self.raw_bits,
            self.shift,
            1 if self.palette else 0,
            len(self.frequencies),
            self.base,
            *frequencies,
        )
        return head + table + bytes(self.palette)

    def split(self, values):
        """Classes and raw values in whole steps, and exceptions."""
        values = [int(v) for v in values.reshape(-1)]
        likely = max(
            range(len(self.frequencies)), key=self.frequencies.__getitem__
        )
        size = -(-len(values) // 64) * 64
        classes, raw, exceptions = [likely] * size, [0] * size, []
        for i, value in enumerate(values):
            index = self._index(value)
            if index is None:
                exceptions.append((i, value))
            else:
                classes[i] = index >> self.raw_bits
                raw[i] = index & ((1 << self.raw_bits) - 1)
        return classes, raw, exceptions

    def _index(self, value):
        if self.palette:
            index = self.palette.index(value) if value in self.palette else -1
        else:
            index, rest = divmod(value - self.base, 1 << self.shift)
            index = -1 if rest else index
        owner = index >> self.raw_bits
        coded = 0 <= owner < len(self.frequencies) and self.frequencies[owner]
        return index if coded else None


class Encoder:
    """Lane states and stream of one tile; takes symbols in reverse order."""

    def __init__(self, coder):
        self.rans16 = coder == 16
        self.unit_bits, self.precision = (
            coder // 2,
            8 if self.rans16 else 12,
        )
        self.states, self.units = [1 << self.unit_bits] * 64, []
        order = list(range(64))
        if self.rans16:
            order = order[0::2] + order[1::2]
        self.order = order[::-1]

    def push(self, frequencies, classes):
        slots = slots_rans16 if self.rans16 else slots_rans32
        owner, rank = slots(np.array(frequencies))
        slot_of = {
            pair: s for s, pair in enumerate(zip(owner, rank, strict=True))
        }
        for step in range(len(classes) // 64 - 1, -1, -1):
            for lane in self.order:
                c, x = classes[64 * step + lane], self.states[lane]
                f = frequencies[c]
                if x >= f << (2 * self.unit_bits - self.precision):
                    self.units.append(x & ((1 << self.unit_bits) - 1))
                    x >>= self.unit_bits
                slot = slot_of[c, x % f]
                self.states[lane] = (x // f << self.precision) + slot

    def stream(self):
        return np.array(
            self.units[::-1], "u1" if self.rans16 else "<u2"
        ).tobytes()


def leaves(tree):
    """All classes of a tree in the order of its leaves."""
    if isinstance(tree, tuple):
        return leaves(tree[0]) + leaves(tree[1])
    return list(tree)


def tree_nodes(tree):
    if isinstance(tree, tuple):
        return [MERGE, *tree_nodes(tree[0]), *tree_nodes(tree[1])]
    return [len(tree).bit_length() - 1]


def stored_tree(tree):
    nodes = tree_nodes(tree)
    return struct.pack("<H", len(nodes)) + bytes(nodes) + bytes(leaves(tree))


def tree_plane(kind, values, tree, classes=None, **rest):
    """A plane of `classes` classes, of which those in leaves are coded."""
    held = set(leaves(tree))
    classes = classes or max(max(held) + 1, 2)
    live = [int(c in held) for c in range(classes)]
    return Plane(kind, values, live, tree=tree, **rest)


def pack_bits(ones):
    return np.packbits(np.array(ones, np.uint8), bitorder="little").tobytes()


def tree_block(tree, classes):
    if isinstance(tree, tuple):
        on_left = set(leaves(tree[0]))
        right = [c not in on_left for c in classes]
        below = ([], [])
        for c, goes_right in zip(classes, right, strict=True):
            below[goes_right].append(c)
        parts = [tree_block(tree[i], below[i]) for i in (0, 1)]
        return pack_bits(right) + b"".join(parts)
    depth = len(tree).bit_length() - 1
    places = [tree.index(c) for c in classes]
    return pack_bits([p >> k & 1 for p in places for k in range(depth)])


def tree_stream(tree, classes, cols):
    step = block_rows(cols) * cols
    return b"".join(
        tree_block(tree, classes[first : first + step])
        for first in range(0, len(classes), step)
    )


def pack_raw(raw, raw_bits):
    raw = np.array(raw, np.uint32).reshape(-1, 64)
    out, whole = [], raw_bits // 8
    for row in raw:
        for byte in range(whole):
            out.append((row >> (8 * byte)).astype(np.uint8).tobytes())
        for bit in range(8 * whole, raw_bits):
            mask = np.packbits(row >> bit & 1 == 1, bitorder="little")
            out.append(mask.tobytes())
    return b"".join(out)


def encode_tile(planes, rows, coder):
    parts = [plane.split(plane.values[rows]) for plane in planes]
    encoder = Encoder(coder or 16)
    coded = [coder and len(plane.frequencies) > 1 for plane in planes]
    for i in reversed(range(len(planes))):
        if coded[i]:
            encoder.push(planes[i].frequencies, parts[i][0])
    out = [struct.pack("<I", len(part[2])) for part in parts]
    if any(coded):
        out.append(np.array(encoder.states, f"<u{coder // 8}").tobytes())
    for plane, part in zip(planes, parts, strict=True):
        out.append(pack_raw(part[1], plane.raw_bits))
    out += [struct.pack("<2I", *e) for part in parts for e in part[2]]
    if planes[-1].tree is not None:
        values = planes[-1].values[rows]
        classes = parts[-1][0][: values.size]
        out.append(tree_stream(planes[-1].tree, classes, values.shape[1]))
    return b"".join([*out, encoder.stream() if any(coded) else b""])


def assemble(head, planes, tiles):
    """Bytes from the header's fields, descriptors and tiles, padding added."""
    at = 48 + sum(map(len, planes)) + 8 * (len(tiles) + 1)
    offsets = [at + sum(map(len, tiles[:i])) for i in range(len(tiles) + 1)]
    total = -(-(offsets[-1] + TAIL) // 64) * 64
    body = struct.pack(
        "<4I2BHB3x",
        *(head[k] for k in ("rows", "cols", "tile_rows", "tiles", "bits")),
        *(head[k] for k in ("float_type", "group_size")),
        len(planes),
    )
    body += b"".join(planes) + struct.pack(f"<{len(offsets)}Q", *offsets)
    body += b"".join(tiles)
    body += bytes(total - 24 - len(body))
    start = struct.pack("<4sH2BQ", b"MXEC", 1, head["scheme"],
                        head["coder"], total)  # fmt: skip
    return start + struct.pack("<Q", xxhash.xxh64_intdigest(body)) + body


def fix_checksum(data):
    data = bytearray(data)
    data[16:24] = struct.pack("<Q", xxhash.xxh64_intdigest(bytes(data[24:])))
    return bytes(data)


def encode(planes, *, scheme, cols, bits, float_type=0, group_size=0,
           coder=16, tile_rows=None):  # fmt: skip
    rows = len(planes[-1].values)
    tile_rows = tile_rows or rows
    head = {
        "scheme": scheme, "coder": coder, "rows": rows, "cols": cols,
        "tile_rows": tile_rows, "tiles": -(-rows // tile_rows), "bits": bits,
        "float_type": float_type, "group_size": group_size,
    }  # fmt: skip
    tiles = [
        encode_tile(planes, slice(first, first + tile_rows), coder)
        for first in range(0, rows, tile_rows)
    ]
    return assemble(head, [plane.descriptor() for plane in planes], tiles)
