"""Matrices with trees, by the reference encoder, for make_vectors.py."""

import numpy as np
from encode import tree_plane
from vectors_valid import (
    SPECIAL,
    WIDTH,
    affine_file,
    bell,
    even,
    float_file,
    noise,
    rotated,
    scale_patterns,
    skewed,
    symbol_file,
)


def split(classes, size=1):
    """A balanced tree with leaves of `size` classes."""
    classes = list(classes)
    if len(classes) <= size:
        return classes + classes[-1:] * (size - len(classes))
    middle = max(size, len(classes) // 2 // size * size)
    return split(classes[:middle], size), split(classes[middle:], size)


def chain(leaves, left=False):
    """Each merge has a leaf on one side and the rest on the other."""
    tree = leaves[-1]
    for leaf in reversed(leaves[:-1]):
        tree = (tree, leaf) if left else (leaf, tree)
    return tree


def peaked(classes):
    """Likeliest in the middle: leaves get larger from there."""
    order = sorted(range(classes), key=lambda c: abs(2 * c - classes))
    leaves, at = [], 0
    for size in (1, 1, 2, 4, 8, 16, 32, 64, 128):
        if at < classes:
            part = order[at : at + size]
            leaves.append(part + part[-1:] * (size - len(part)))
        at += size
    return chain(leaves)


def affine_sides(seed, dtype, rows, groups, stored):
    width = WIDTH[dtype]
    scales = rotated(scale_patterns(seed, dtype, rows, groups), dtype)
    sides = [even(scales, "scales", width, total=1)]
    if stored:
        biases = rotated(scale_patterns(seed + 1, dtype, rows, groups), dtype)
        return [*sides, even(biases, "biases", width, total=1)]
    k = 32768 - bell(seed + 2, 16, rows, groups).astype(np.int64)
    wrong = bell(seed + 3, 3, rows, groups).astype(np.int64) + (1 << 31) - 1
    wrong[0, 0] += 77  # an exception
    return [
        *sides,
        even(k, "offsets", 4, total=1, base=32768 - 15),
        even(wrong, "corrections", 2, total=1, base=(1 << 31) - 1),
    ]


def tree_affine(seed, bits, group, dtype, stored, rows=5, cols=256, **rest):
    codes = bell(seed, 1 << bits, rows, cols)
    sides = affine_sides(seed + 10, dtype, rows, cols // group, stored)
    plane = tree_plane("codes", codes, peaked(1 << bits))
    return affine_file(dtype, bits, group, [*sides, plane], coder=0, **rest)


def tree_affine_files():
    made = {}
    dtypes, groups = ("f16", "bf16", "f32"), (32, 64, 128)
    for i, bits in enumerate((2, 3, 4, 8)):
        for stored in (False, True):
            dtype, group = dtypes[(i + stored) % 3], groups[i % 3]
            kind = "stored" if stored else "predicted"
            made[f"tree-affine-{bits}bit-g{group}-{kind}-{dtype}"] = (
                tree_affine(900 + 20 * i, bits, group, dtype, stored)
            )
    # Blocks of 42 rows: 42 and 8, then 42 and 1.
    made["tree-affine-tiles-blocks"] = tree_affine(
        1000, 4, 32, "f16", False, rows=93, cols=96, tile_rows=50
    )
    codes = bell(1020, 16, 6, 128)
    codes[2, 5] = codes[5, 127] = 0  # not in the tree
    for name, plane in {
        "exceptions": tree_plane("codes", codes, split(range(1, 16), 4)),
        "palette": tree_plane(
            "codes",
            codes,
            ([0, 1], ([2], [3])),
            raw_bits=2,
            palette=[7, 8, 6, 9, 5, 10, 4, 11, 3, 12, 2, 13, 1, 14, 0, 15],
        ),
        "base-shift": tree_plane(
            "codes", codes, ([2], [0, 1]), raw_bits=1, shift=1, base=3
        ),
        "raw": even(codes, "codes", 4, total=1),
    }.items():
        sides = affine_sides(1030, "bf16", 6, 4, True)
        made[f"tree-affine-{name}"] = affine_file(
            "bf16", 4, 32, [*sides, plane], coder=0, tile_rows=4
        )
    return made


def tree_float_files():
    made = {}
    for i, dtype in enumerate(("bf16", "f16")):
        patterns = scale_patterns(1100 + i, dtype, 20, 70)
        patterns[3, : len(SPECIAL[dtype])] = SPECIAL[dtype]
        values = rotated(patterns, dtype)
        shift = 8 if dtype == "bf16" else 10
        owners = values >> np.uint64(shift)
        counts = np.bincount(owners.reshape(-1).astype(np.int64))
        common = [int(c) for c in np.argsort(-counts, kind="stable")[:9]]
        tree = chain([common[:1], common[1:3], common[3:4], common[4:8]])
        made[f"tree-float-{dtype}"] = float_file(
            tree_plane("floats", values, tree, raw_bits=shift),
            dtype,
            coder=0,
        )
    return made


def tree_symbol_files():
    ladder = skewed(1200, 33, 9, 100)
    bytes_ = noise(1201, 8, 128) % np.uint64(256)
    few = bell(1202, 9, 100, 7)
    lone = np.full((3, 70), 9)
    lone[1, 5] = 200
    everything = {
        "chain-right": (ladder, chain([[c] for c in range(33)])),
        "chain-left": (ladder, chain([[c] for c in range(33)], left=True)),
        "one-leaf-256": (bytes_, list(range(256))),
        "one-leaf-scattered": (few, [3, 8, 5, 5, 4, 0, 2, 1]),
        "511-nodes": (bytes_, split(range(256))),
        "1024-classes": (
            bytes_,
            tuple(
                tuple(sorted(range(256), key=lambda c: c % m) for m in pair)
                for pair in ((7, 5), (3, 2))
            ),
        ),
        "one-leaf-one-class": (lone, [9]),
        "class-in-two-leaves": (few, ([4], ([3, 5, 4, 4], [2, 6]))),
        "no-values-on-one-side": (few * 0 + 4, (([7], [1, 2]), [4])),
        "wide-rows": (skewed(1203, 6, 2, 5000), chain([[0], [1], [2, 3]])),
        "vector": (bell(1204, 12, 1, 1000), peaked(12)),
        "column": (bell(1205, 12, 300, 1), peaked(12)),
        "lone": (np.full((1, 1), 3), ([3], [1, 2])),
    }
    made = {
        f"tree-symbols-{name}": symbol_file(
            tree_plane("codes", values, tree), coder=0
        )
        for name, (values, tree) in everything.items()
    }
    odd = bell(1206, 9, 150, 7)
    tall = bell(1207, 9, 700, 7)
    made["tree-symbols-odd-columns-tiles"] = symbol_file(
        tree_plane("codes", odd, peaked(9)), coder=0, tile_rows=64
    )
    made["tree-symbols-odd-columns-blocks"] = symbol_file(
        tree_plane("codes", tall, peaked(9)), coder=0
    )
    return made


def tree_files():
    """{name: bytes}, all by the reference encoder."""
    return tree_affine_files() | tree_float_files() | tree_symbol_files()
