"""Broken files for scripts/make_vectors.py: one rule of docs/format.md each.

The regular expressions hold for the library's messages and for those of the
reference decoder. `patch` puts the checksum right, so that it is not what is
refused.
"""

import struct

import decode
import numpy as np
from encode import Plane, assemble, encode_tile, fix_checksum


def patch(data, at, layout, *values):
    data = bytearray(data)
    struct.pack_into("<" + layout, data, at, *values)
    return fix_checksum(data)


class Layout:
    """Where things are in a valid file, and the pieces to assemble anew."""

    def __init__(self, data):
        self.data, self.head = data, decode.read_header(data)
        reader = decode.Reader(data, "")
        reader.take(48)
        self.planes, self.descriptors = [], []
        for _ in range(self.head.planes):
            start = reader.at
            self.planes.append(start)
            decode.read_plane(reader, self.head)
            self.descriptors.append(data[start : reader.at])
        self.table = reader.at
        count = self.head.tiles + 1
        self.offsets = struct.unpack_from(f"<{count}Q", data, self.table)
        self.tiles = [
            data[a:b]
            for a, b in zip(self.offsets, self.offsets[1:], strict=False)
        ]

    def fields(self):
        """The header for assemble()."""
        head = vars(self.head).copy()
        head["scheme"] = decode.SCHEMES.index(self.head.scheme)
        head["float_type"] = decode.FLOAT_TYPES.index(self.head.float_type)
        return head

    def with_tile(self, index, tile):
        tiles = [*self.tiles[:index], tile, *self.tiles[index + 1 :]]
        return assemble(self.fields(), self.descriptors, tiles)

    def with_plane(self, index, descriptor):
        planes = list(self.descriptors)
        planes[index : index + 1] = [descriptor]
        return assemble(self.fields(), planes, self.tiles)


def header_files(files):
    """Rules 1 to 3, as far as they are about one field of the header."""
    symbols, floats = files["symbols-narrow"], files["float-special-values-f16"]
    affine, tiles = files["affine-4bit-g32-f16"], files["affine-tiles-ragged"]
    wrong_checksum = bytearray(symbols)
    wrong_checksum[16] ^= 1
    return {
        "magic": (patch(symbols, 0, "4s", b"MXEc"), "magic"),
        "version-0": (patch(symbols, 4, "H", 0), "version 0"),
        "version-2": (patch(symbols, 4, "H", 2), "version 2"),
        "scheme": (patch(symbols, 6, "B", 3), "scheme"),
        "state-bits-8": (patch(symbols, 7, "B", 8), "coder"),
        "state-bits-64": (patch(symbols, 7, "B", 64), "coder"),
        "total-low": (patch(symbols, 8, "Q", len(symbols) - 64), "header says"),
        "total-high": (patch(symbols, 8, "Q", 1 << 63), "header says"),
        "checksum": (bytes(wrong_checksum), "checksum mismatch"),
        "float-type": (patch(floats, 41, "B", 4), "float type"),
        "reserved-0": (patch(symbols, 45, "B", 1), "reserved bytes"),
        "reserved-1": (patch(symbols, 46, "B", 128), "reserved bytes"),
        "reserved-2": (patch(symbols, 47, "B", 255), "reserved bytes"),
        "rows-0": (patch(symbols, 24, "I", 0), "empty shape"),
        "cols-0": (patch(symbols, 28, "I", 0), "empty shape"),
        "tile-rows-0": (patch(symbols, 32, "I", 0), "empty shape"),
        "matrix-too-large": (
            patch(symbols, 24, "4I", (1 << 32) - 64, 512, 64, (1 << 26) - 1),
            "shape too large",
        ),
        "tile-count": (patch(tiles, 36, "I", 2), "tile count"),
        "tile-count-max": (patch(tiles, 36, "I", 0xFFFFFFFF), "tile count"),
        "bits-7": (patch(affine, 40, "B", 7), "bits"),
        "bits-1": (patch(affine, 40, "B", 1), "bits"),
        "group-size-16": (patch(affine, 42, "H", 16), "group size"),
        "group-size-0": (patch(affine, 42, "H", 0), "group size"),
        "group-size-divides": (
            patch(files["affine-tiles-ragged"], 42, "H", 64),
            "group size",
        ),
        "affine-no-float-type": (patch(affine, 41, "B", 0), "float type"),
        "float-no-type": (patch(floats, 41, "B", 0), "float type"),
        "float-bits": (patch(floats, 40, "B", 32), "float type"),
        "float-group-size": (patch(floats, 42, "H", 32), "group size"),
        "symbols-bits": (patch(symbols, 40, "B", 4), "symbol type"),
        "symbols-float-type": (patch(symbols, 41, "B", 1), "symbol type"),
        "symbols-group-size": (patch(symbols, 42, "H", 32), "group size"),
    }


def tile_shape_files():
    """Matrices that are right but for the shape of their tiles."""
    constant = Plane("codes", np.zeros((3, 40), np.int64), [256])
    head = {
        "scheme": 0,
        "coder": 16,
        "rows": 3,
        "cols": 40,
        "tile_rows": 2,
        "tiles": 2,
        "bits": 8,
        "float_type": 0,
        "group_size": 0,
    }
    tile = encode_tile([constant], slice(0, 1), 16)
    unaligned = assemble(head, [constant.descriptor()], [tile, tile])
    head |= {"rows": 1 << 20, "cols": 128, "tile_rows": 1 << 20, "tiles": 1}
    huge = assemble(head, [constant.descriptor()], [tile])
    return {
        "tiles-not-on-a-step": (unaligned, "do not start on a step"),
        "tile-too-large": (huge, "shape too large"),
    }


def plane_list_files(files):
    """Rule 3: only the lists of section 3."""
    mismatch = "planes do not match the scheme"
    symbols = Layout(files["symbols-narrow"])
    stored = Layout(files["affine-stored-biases-f16"])
    predicted = Layout(files["affine-4bit-g32-f16"])
    scales, offsets, corrections, codes = predicted.descriptors

    def affine(*planes):
        return assemble(predicted.fields(), list(planes), predicted.tiles)

    return {
        "planes-none": (
            patch(symbols.data, 44, "B", 0),
            f"plane count|{mismatch}",
        ),
        "planes-too-many": (
            patch(symbols.data, 44, "B", 255),
            "plane count|plane kind",
        ),
        "plane-kind": (
            patch(symbols.data, symbols.planes[0], "B", 6),
            "plane kind",
        ),
        "planes-symbols-scales": (
            patch(symbols.data, symbols.planes[0], "B", 1),
            mismatch,
        ),
        "planes-symbols-floats": (
            patch(symbols.data, symbols.planes[0], "B", 5),
            mismatch,
        ),
        "planes-no-corrections": (affine(scales, offsets, codes), mismatch),
        "planes-no-codes": (affine(scales, offsets, corrections), mismatch),
        "planes-order": (affine(scales, corrections, offsets, codes), mismatch),
        "planes-twice": (
            assemble(
                stored.fields(),
                [*stored.descriptors[:2], *stored.descriptors[1:]],
                stored.tiles,
            ),
            mismatch,
        ),
        "planes-truncated": (
            patch(patch(files["symbols-one"], 7, "B", 32), 52, "I", 256),
            "truncated",
        ),
    }


def plane_files(files):
    """Rule 4, on the only plane of a matrix of symbols."""
    narrow = Layout(files["symbols-narrow"])
    wide = Layout(files["symbols-skew-rans32"])
    raw = Layout(files["symbols-uniform256"])
    palette = Layout(files["symbols-raw-palette"])
    floats = Layout(files["float-exceptions-only-f16"])
    constant = Layout(files["symbols-full-shift"])
    few = Layout(files["affine-palette-raw-bits"])
    at = {
        n: x.planes[0]
        for n, x in {
            "raw": raw,
            "palette": palette,
            "floats": floats,
            "constant": constant,
        }.items()
    }

    def table(layout, frequencies, index=0):
        plane = Plane("codes", np.zeros((1, 1)), frequencies)
        return layout.with_plane(index, plane.descriptor())

    few_codes = few.planes[2]
    return {
        "classes-0": (table(narrow, []), "class count"),
        "classes-17": (table(narrow, [16] * 15 + [8, 8]), "class count"),
        "classes-257": (table(wide, [15] * 256 + [256]), "class count"),
        "classes-huge": (
            patch(raw.data, at["raw"] + 4, "I", 0xFFFFFFFF),
            "class count",
        ),
        "frequencies-255": (table(narrow, [100, 155]), "frequencies sum to"),
        "frequencies-257": (table(narrow, [100, 157]), "frequencies sum to"),
        "frequencies-4095": (table(wide, [4000, 95]), "frequencies sum to"),
        "frequency-lone-255": (table(constant, [255]), "frequencies sum to"),
        "frequency-certain": (table(narrow, [0, 256]), "frequency"),
        "frequency-certain-wide": (table(wide, [4096, 0]), "frequency"),
        "raw-bits-9": (patch(raw.data, at["raw"] + 1, "B", 9), "raw bits"),
        "raw-bits-255": (patch(raw.data, at["raw"] + 1, "B", 255), "raw bits"),
        "raw-bits-and-shift": (
            patch(raw.data, at["raw"] + 2, "B", 1),
            "raw bits",
        ),
        "shift-255": (
            patch(floats.data, at["floats"] + 2, "B", 255),
            "raw bits",
        ),
        "range-base": (
            patch(constant.data, at["constant"] + 8, "I", 256),
            "class range",
        ),
        "range-base-max": (
            patch(constant.data, at["constant"] + 8, "I", 0xFFFFFFFF),
            "class range",
        ),
        "range-shift": (
            patch(
                files["affine-codes-base-shift"],
                Layout(files["affine-codes-base-shift"]).planes[2] + 2,
                "B",
                2,
            ),
            "class range",
        ),
        "range-palette-index": (
            few.with_plane(
                2,
                Plane(
                    "codes",
                    np.zeros((1, 1)),
                    [64] * 4,
                    3,
                    palette=[0] * 32,
                ).descriptor(),
            ),
            "class range",
        ),
        "palette-flag": (
            patch(palette.data, at["palette"] + 3, "B", 2),
            "palette",
        ),
        "palette-on-floats": (
            patch(floats.data, at["floats"] + 3, "B", 1),
            "palette",
        ),
        "palette-on-scales": (
            patch(few.data, few.planes[0] + 3, "B", 1),
            "palette",
        ),
        "palette-base": (
            patch(palette.data, at["palette"] + 8, "I", 1),
            "palette",
        ),
        "palette-shift": (
            patch(palette.data, at["palette"] + 2, "B", 1),
            "palette",
        ),
        "palette-too-long": (
            narrow.with_plane(
                0,
                Plane(
                    "codes",
                    np.zeros((1, 1)),
                    [16] * 16,
                    5,
                    palette=[0] * 512,
                ).descriptor(),
            ),
            "palette",
        ),
        "palette-entry": (
            patch(few.data, few_codes + 12 + 8, "B", 16),
            "palette",
        ),
    }


def tile_files(files):
    """Rule 5: offsets, sizes, padding and exceptions."""
    ragged = Layout(files["affine-tiles-ragged"])
    raw = Layout(files["symbols-uniform256"])
    first, last = ragged.table, ragged.table + 8 * ragged.head.tiles
    end = ragged.offsets[-1]
    escapes = Layout(files["float-exceptions-only-f16"])
    wrong = escapes.offsets[0] + 4  # exceptions follow the count

    def table(at, value):
        return patch(ragged.data, at, "Q", value)

    def exceptions(at, *values):
        return patch(escapes.data, wrong + at, f"{len(values)}I", *values)

    pad = "tail padding|tile offset"
    return {
        "offsets-truncated": (
            patch(files["symbols-one"], 24, "4I", 1 << 20, 70, 32, 1 << 15),
            "truncated",
        ),
        "offset-first-low": (
            table(first, ragged.offsets[0] - 1),
            "tile offset",
        ),
        "offset-first-high": (
            table(first, ragged.offsets[0] + 1),
            "tile offset",
        ),
        "offset-falls": (
            table(first + 8, ragged.offsets[0] - 8),
            "tile offset",
        ),
        "offset-beyond": (table(first + 8, 1 << 40), pad),
        "offset-last-low": (table(last, end - 64), pad),
        "offset-last-high": (table(last, end + 64), pad),
        "offset-last-max": (table(last, (1 << 64) - 1), pad),
        "padding-0": (patch(ragged.data, end, "B", 1), "padding is not zero"),
        "padding-last": (
            patch(ragged.data, len(ragged.data) - 1, "B", 1),
            "padding is not zero",
        ),
        "padding-long": (
            fix_checksum(
                patch(ragged.data, 8, "Q", len(ragged.data) + 64) + bytes(64)
            ),
            pad,
        ),
        "padding-short": (
            fix_checksum(
                patch(ragged.data, 8, "Q", len(ragged.data) - 64)[:-64]
            ),
            pad,
        ),
        "tile-empty": (ragged.with_tile(1, b""), "tile 1: truncated"),
        "tile-no-states": (
            ragged.with_tile(1, ragged.tiles[1][:100]),
            "tile 1: truncated",
        ),
        "tile-no-exceptions": (
            escapes.with_tile(0, escapes.tiles[0][:-8]),
            "tile 0: truncated",
        ),
        "tile-raw-short": (raw.with_tile(0, raw.tiles[0][:-1]), "truncated"),
        "tile-raw-long": (
            raw.with_tile(0, raw.tiles[0] + b"\0"),
            "trailing bytes",
        ),
        "exceptions-count": (
            patch(escapes.data, wrong - 4, "I", 89),
            "trailing bytes",
        ),
        "exceptions-count-max": (
            patch(escapes.data, wrong - 4, "I", 0xFFFFFFFF),
            "truncated",
        ),
        "exception-index-equal": (exceptions(8, 0), "exception index"),
        "exception-index-falls": (exceptions(8 * 9, 7), "exception index"),
        "exception-index-beyond": (exceptions(8 * 89, 90), "exception index"),
        "exception-index-max": (
            exceptions(8 * 89, 0xFFFFFFFF),
            "exception index",
        ),
        "exception-value": (exceptions(4, 1 << 16), "exception value"),
        "exception-value-max": (exceptions(4, 0xFFFFFFFF), "exception value"),
    }


def stream_files(files):
    """Rule 6, for both coders."""
    made, bad = {}, "stream does not decode"
    for name in ("symbols-narrow", "symbols-table-wide"):
        layout = Layout(files[name])
        wide = layout.head.coder == 32
        coder, size = ("rans32", 4) if wide else ("rans16", 2)
        low = 1 << (layout.head.coder // 2)
        tile, states, unit = layout.tiles[0], 4, size // 2
        exceptions = int.from_bytes(tile[:4], "little")
        stream = states + 64 * size + 8 * exceptions

        def changed(at, value, tile=tile, layout=layout, size=size):
            value = value.to_bytes(size, "little")
            return layout.with_tile(0, tile[:at] + value + tile[at + size :])

        flipped = bytearray(tile)
        flipped[(stream + len(tile)) // 2] ^= 4
        state = int.from_bytes(tile[states : states + size], "little")
        made |= {
            f"state-zero-{coder}": (changed(states, 0), "lane state"),
            f"state-low-{coder}": (
                changed(states + 63 * size, low - 1),
                "lane state",
            ),
            f"state-flipped-{coder}": (changed(states, state ^ 1), bad),
            f"stream-flipped-{coder}": (
                layout.with_tile(0, bytes(flipped)),
                bad,
            ),
            f"stream-short-{coder}": (layout.with_tile(0, tile[:-unit]), bad),
            f"stream-none-{coder}": (layout.with_tile(0, tile[:stream]), bad),
            f"stream-long-{coder}": (
                layout.with_tile(0, tile + bytes(unit)),
                bad,
            ),
        }
    layout = Layout(files["symbols-table-wide"])
    odd = layout.with_tile(0, layout.tiles[0] + b"\0")
    return made | {"stream-odd-rans32": (odd, bad)}


def damaged_files(files):
    """What happens to files: cut short, and bits flipped. Nothing is fixed."""
    data = files["affine-tiles-one-row"]
    made = {"empty": (b"", "too short")}
    refused = "checksum mismatch|tile|frequencies|padding"
    for size in (1, 24, 47, 48, 100, 239, 240, 512, len(data) - 1):
        made[f"cut-at-{size}"] = (data[:size], "too short|header says")
    for at in (24, 41, 60, 100, 400, 1000, len(data) - 1):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        made[f"flip-at-{at}"] = (bytes(flipped), refused)
    return made


def invalid_files(files):
    """{name: (bytes, regular expression of the error)}"""
    return (
        header_files(files)
        | tile_shape_files()
        | plane_list_files(files)
        | plane_files(files)
        | tile_files(files)
        | stream_files(files)
        | damaged_files(files)
    )
