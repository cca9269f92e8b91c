"""Writes the worked example of docs/format.md, section 6.

    python scripts/format_example.py            prints it
    python scripts/format_example.py --write    puts it into the document
    python scripts/format_example.py --check    fails if the document differs

The bytes come from the library's encoder, and everything that is said about
them from the reference decoder.
"""

import argparse
import struct
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_entropy import _ext

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "reference"))

import decode  # noqa: E402

DOCUMENT = ROOT / "docs" / "format.md"
BEGIN, END = "<!-- example:begin -->\n", "<!-- example:end -->"


def example():
    """The matrix that the document's two lines of Python make."""
    rows = [[0, 2, 1, 0] + 60 * [0], [1, 2, 0, 0] + 60 * [0]]
    symbols = mx.array(rows, dtype=mx.uint8)
    coded = _ext.entropy_encode(symbols, _ext.RANSTable.from_counts([13, 2, 1]))
    data = bytes(memoryview(np.array(coded)))
    assert decode.decode(data).arrays["symbols"].tolist() == rows
    return data


def dump(data, end):
    lines = []
    for at in range(0, end, 16):
        row = data[at : min(at + 16, end)]
        halves = row[:8].hex(" "), row[8:].hex(" ")
        lines.append(f"    {at:03x}  {'  '.join(halves)}".rstrip())
    return "\n".join(lines)


def table(head, rows):
    def line(cells):
        return f"| {' | '.join(map(str, cells))} |"

    return "\n".join(map(line, [head, ["---"] * len(head), *rows]))


def field_rows(data, offsets, exceptions, states, stream, end):
    total, checksum = struct.unpack_from("<2Q", data, 8)
    return [
        ("000", "magic, version 1, scheme 0 (symbols), coder 16 (rans16)"),
        ("008", f"total bytes: {total}"),
        ("010", f"checksum: {checksum:#018x}"),
        ("018", "2 rows, 64 columns, tile_rows 2, 1 tile"),
        ("028", "bits 8, no float type, group_size 0, 1 plane"),
        ("030", "plane: codes, raw_bits 0, shift 0, no palette"),
        ("034", "3 classes, base 0"),
        ("03c", "frequencies 208, 32, 16"),
        (f"{offsets:03x}", f"tile table: {exceptions:#x} to {end:#x}"),
        (f"{exceptions:03x}", "tile: no exceptions"),
        (f"{states:03x}", "64 lane states; the first three are "
         + ", ".join(f"{s:#06x}" for s in
                     struct.unpack_from("<3H", data, states))),
        (f"{stream:03x}", f"stream: {data[stream:end].hex(' ')}"),
        (f"{end:03x}", f"{total - end} zero bytes, the padding"),
    ]  # fmt: skip


def slot_runs(frequencies):
    owner, _ = decode.slots_rans16(frequencies)
    changes = [s for s in range(1, 256) if owner[s] != owner[s - 1]]
    return ", ".join(
        f"{first} to {last - 1} class {owner[first]}"
        for first, last in zip([0, *changes], [*changes, 256], strict=True)
    )


def step_rows(data, states, stream, frequencies):
    """What lanes 0 and 1 do; the stream's bytes go to the lanes in order."""
    owner, rank = decode.slots_rans16(frequencies)
    x = list(struct.unpack_from("<64H", data, states))
    order = [*range(0, 64, 2), *range(1, 64, 2)]
    rows, at = [], stream
    for step in range(2):
        for lane in order:
            before, slot = x[lane], x[lane] % 256
            f = frequencies[owner[slot]]
            x[lane] = f * (before >> 8) + int(rank[slot])
            taken, after = "", f"{f} x {before >> 8} + {rank[slot]} = {x[lane]}"
            if x[lane] < 256:
                taken = f"{data[at]:#04x}"
                x[lane] = x[lane] << 8 | data[at]
                at += 1
            if lane < 2:
                rows.append((step, lane, f"{before:#06x}", slot, owner[slot],
                             after, taken, f"{x[lane]:#06x}"))  # fmt: skip
    assert x == [256] * 64
    return rows


def text():
    data = example()
    table_at = 0x3C + 2 * 3
    tile, end = struct.unpack_from("<2Q", data, table_at)
    states = tile + 4
    stream = states + 128
    frequencies = [208, 32, 16]
    fields = field_rows(data, table_at, tile, states, stream, end)
    steps = step_rows(data, states, stream, frequencies)
    return "\n\n".join(
        [
            "",
            "All bytes before the padding:",
            dump(data, end),
            table(("offset", "content"), fields),
            f"Slots: {slot_runs(frequencies)}.",
            "The two steps of lanes 0 and 1, which take bytes in the order\n"
            "0, 2, .. 62, 1, 3, .. 63 in each step:",
            table(
                ("step", "lane", "x", "slot", "class",
                 "frequency x (x >> 8) + rank", "byte", "next x"),
                steps,
            ),
            "All lanes end with 0x0100, and the stream is used up.\n",
        ]
    ).lstrip("\n")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    options = parser.parse_args()
    before, rest = DOCUMENT.read_text().split(BEGIN)
    old, after = rest.split(END)
    new = f"\n{text()}\n"
    if options.write:
        DOCUMENT.write_text(before + BEGIN + new + END + after)
    elif not options.check:
        print(new)
    elif old != new:
        sys.exit(
            f"the example in {DOCUMENT.name} is not what this script writes"
        )


if __name__ == "__main__":
    main()
