"""The safetensors files that conversion writes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_entropy.shards import ShardWriter, plan_shards
from mlx_entropy.sources.base import Layout, SourceError
from mlx_entropy.sources.safetensors_file import read_header


def test_plan_fills_shards_in_order() -> None:
    layout = [
        Layout(name, size)
        for name, size in zip("abcde", (5, 5, 20, 1, 1), strict=True)
    ]
    plan = plan_shards(layout, 10)
    assert [shard.paths for shard in plan] == [("a", "b"), ("c",), ("d", "e")]
    assert [shard.nbytes for shard in plan] == [10, 20, 2]
    assert plan[2].file == "model-00003-of-00003.safetensors"
    assert [each.file for each in plan_shards(layout, 99)] == [
        "model.safetensors"
    ]
    with pytest.raises(ValueError, match="positive"):
        plan_shards(layout, 0)


def test_header_may_outgrow_its_room(tmp_path: Path) -> None:
    arrays = {f"tensor.{i}": mx.arange(i) for i in range(40)}
    arrays["scalar"] = mx.array(2.5, mx.bfloat16)
    arrays["turned"] = mx.arange(6).reshape(2, 3).T
    path = tmp_path / "file.safetensors"
    with ShardWriter(path, room=0) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.finish()
    found = mx.load(str(path))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array), name
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_an_exception_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with (
        pytest.raises(ValueError, match="type"),
        ShardWriter(path, room=100) as writer,
    ):
        writer.add("complex", mx.array([1j]))
    assert not path.exists()


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "file.safetensors", room=100) as writer:
        writer.add("a", mx.zeros(3))
        with pytest.raises(ValueError, match="two tensors"):
            writer.add("a", mx.zeros(3))
        writer.finish()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 20,
        (20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (8).to_bytes(8, "little") + b"not json",
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=path.name):
        read_header(path)
