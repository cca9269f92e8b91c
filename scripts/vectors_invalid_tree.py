"""Broken trees for scripts/make_vectors.py; see vectors_invalid.py."""

import struct

import numpy as np
from encode import fix_checksum, leaves, tree_nodes, tree_plane
from vectors_invalid import Layout, patch
from vectors_tree import chain, split

# The plane's first 12 bytes, then the number of nodes, then the nodes.
COUNT, NODES = 12, 14
TRUNCATED = "tree|truncated"


def stored(nodes, symbols, count=None):
    count = len(nodes) if count is None else count
    return struct.pack("<H", count) + bytes(nodes) + bytes(symbols)


def shape_files(layout):
    """Trees that are not one whole tree, or beyond a limit."""

    def with_tree(tree, classes=None):
        head = bytearray(layout.descriptors[0][:COUNT])
        if classes is not None:
            head[4:8] = struct.pack("<I", classes)
        return layout.with_plane(0, bytes(head) + tree)

    def of(tree):
        return with_tree(stored(tree_nodes(tree), leaves(tree)))

    def plain(nodes):
        return with_tree(stored(nodes, [1] * (len(nodes) + 1)))

    high = chain([[1]] * 34)
    many = split([1] * 257)
    made = {
        "nodes-0": with_tree(stored([], [])),
        "nodes-513": of(many),
        "nodes-65535": with_tree(stored([0], [1], count=65535)),
        "nodes-512": with_tree(stored([*tree_nodes(split([1] * 256)), 0],
                                      [1] * 257)),
        "incomplete": with_tree(stored([255, 255, 0, 0], [1, 1])),
        "merge-only": plain([255]),
        "two-trees": with_tree(stored([0, 0], [1, 1])),
        "extra-leaf": with_tree(stored([255, 0, 0, 1], [1] * 4)),
        "too-high-right": of(high),
        "too-high-left": of(chain([[1]] * 34, left=True)),
        "1025-classes": with_tree(
            stored([255, 255, 8, 8, 255, 8, 255, 8, 0], [1] * 1025)
        ),
        "class-too-large": with_tree(stored([1], [0, 9]), classes=9),
        "class-255": with_tree(stored([1], [255, 0]), classes=9),
    }  # fmt: skip
    for depth in (9, 10, 16, 32, 64, 128, 254):
        made[f"depth-{depth}"] = with_tree(stored([depth], [1] * 1024))
    return {f"tree-{name}": (data, "tree") for name, data in made.items()}


def plane_files(files, layout):
    """Class counts and frequencies, and where trees may be."""
    raw = Layout(files["tree-affine-raw"])
    codes = raw.planes[2]
    sides = Layout(files["tree-affine-exceptions"])
    coded_side = tree_plane("scales", np.zeros((1, 1)), ([0], [1]), raw_bits=9)
    first = layout.planes[0]
    size = 48 + COUNT + 2 + 400
    return {
        "tree-frequency-0": (patch(raw.data, codes + COUNT, "H", 0), "sum"),
        "tree-frequency-2": (patch(raw.data, codes + COUNT, "H", 2), "sum"),
        "tree-frequency-256": (patch(raw.data, codes + COUNT, "H", 256), "sum"),
        "tree-frequency-scales": (
            patch(raw.data, raw.planes[0] + COUNT, "H", 256),
            "sum",
        ),
        "tree-in-a-side-plane": (
            sides.with_plane(0, coded_side.descriptor()),
            "tree in a side plane",
        ),
        "tree-classes-0": (
            patch(layout.data, first + 4, "I", 0),
            "class count",
        ),
        "tree-classes-257": (
            patch(layout.data, first + 4, "I", 257),
            "class count",
        ),
        "tree-class-range": (
            patch(layout.data, first + 1, "B", 5),
            "class range",
        ),
        # 511 nodes are announced, and the bytes end before them.
        "tree-truncated": (
            cut(patch(layout.data, first + COUNT, "H", 511), size),
            TRUNCATED,
        ),
        "tree-classes-truncated": (
            cut(
                patch(layout.data, first + COUNT, "H7B",
                      7, 255, 255, 8, 8, 255, 8, 8),
                size,
            ),
            TRUNCATED,
        ),
    }  # fmt: skip


def cut(data, size):
    """The first bytes, a header that agrees with them."""
    data = bytearray(data[:size])
    data[8:16] = struct.pack("<Q", len(data))
    return fix_checksum(bytes(data))


def stream_files(files):
    """Streams too short or too long for what their bitmaps say."""
    bad = "stream does not decode"
    made = {}
    for name, key in (
        ("tree-symbols-chain-right", "chain"),
        ("tree-symbols-one-leaf-256", "leaf"),
        ("tree-affine-tiles-blocks", "blocks"),
    ):
        layout = Layout(files[name])
        last = layout.head.tiles - 1
        tile = layout.tiles[last]
        made |= {
            f"tree-stream-short-{key}": layout.with_tile(last, tile[:-1]),
            f"tree-stream-long-{key}": layout.with_tile(last, tile + b"\0"),
        }
    for name, key in (
        ("tree-symbols-chain-right", "right"),
        ("tree-symbols-chain-left", "left"),
    ):
        layout = Layout(files[name])
        tile = bytearray(layout.tiles[0])
        tile[4 : 4 + 100] = b"\xff" * 100 if key == "right" else bytes(100)
        made[f"tree-bitmap-all-{key}"] = layout.with_tile(0, bytes(tile))
    layout = Layout(files["tree-symbols-one-leaf-one-class"])
    made["tree-stream-for-no-bits"] = layout.with_tile(
        0, layout.tiles[0] + b"\0"
    )
    layout = Layout(files["tree-symbols-chain-right"])
    made["tree-stream-none"] = layout.with_tile(0, layout.tiles[0][:4])
    return {name: (data, bad) for name, data in made.items()}


def invalid_tree_files(files):
    """{name: (bytes, regular expression of the error)}"""
    layout = Layout(files["tree-symbols-vector"])
    return (
        shape_files(layout) | plane_files(files, layout) | stream_files(files)
    )
