"""The tree coder of docs/format.md, for the reference decoder."""

import math

import numpy as np

MERGE = 255


def check(condition, message):
    if not condition:
        raise ValueError(message)


def read(reader, classes):
    """A leaf is an array of classes, a merge a pair (left, right)."""
    count = int(reader.integers(1, "<u2")[0])
    check(1 <= count <= 511, "tree: number of nodes")
    nodes = [int(node) for node in reader.integers(count, "u1")]
    leaves = [node for node in nodes if node != MERGE]
    check(all(depth <= 8 for depth in leaves), "tree: leaf too deep")
    size = sum(1 << depth for depth in leaves)
    check(size <= 1024, "tree: too many classes in leaves")
    unread = iter(nodes)

    def build(merges_above):
        node = next(unread, None)
        check(node is not None, "tree: incomplete")
        if node != MERGE:
            return 1 << node
        check(merges_above < 32, "tree: too high")
        return build(merges_above + 1), build(merges_above + 1)

    shape = build(0)
    check(next(unread, None) is None, "tree: nodes after its end")

    def fill(node):
        if isinstance(node, tuple):
            return fill(node[0]), fill(node[1])
        held = reader.integers(node, "u1")
        check((held < classes).all(), "tree: class out of range")
        return held

    return fill(shape)


def block_rows(cols):
    unit = 64 // math.gcd(cols, 64)
    return unit * max(1, 8192 // (unit * cols))


def decode_tile(tree, stream, rows, cols, name):
    """The classes of a tile, whose stream must be used up."""
    at = 0

    def bits(count):
        nonlocal at
        data = stream[at : at + -(-count // 8)]
        enough = 8 * len(data) >= count
        check(enough, f"{name}: stream does not decode: too short")
        at += len(data)
        ones = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little")
        return ones[:count].astype(np.int64)

    def decode(node, count):
        if isinstance(node, tuple):
            right = bits(count).astype(bool)
            values = np.empty(count, np.int64)
            values[~right] = decode(node[0], int((~right).sum()))
            values[right] = decode(node[1], int(right.sum()))
            return values
        depth = len(node).bit_length() - 1
        places = bits(count * depth).reshape(count, depth)
        return node[(places << np.arange(depth)).sum(axis=1, dtype=np.int64)]

    step = block_rows(cols)
    blocks = [
        decode(tree, min(step, rows - first) * cols)
        for first in range(0, rows, step)
    ]
    check(at == len(stream), f"{name}: stream does not decode: wrong end")
    return np.concatenate(blocks)
