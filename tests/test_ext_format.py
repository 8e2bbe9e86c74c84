"""UniformBlockSparse and the `.subp` file: round trips, and every kind of damage a named error.

Out of scope: files larger than memory.
"""

from __future__ import annotations

import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_ext import FormatError, Graph, Node, Ref, TensorSpec, UniformBlockSparse, load, save
from subp_ext import format as subp_format


def small_graph() -> Graph:
    rng = np.random.default_rng(0)
    weight = np.zeros((6, 5, 3, 3), np.float32)
    weight[:, [0, 3]] = rng.standard_normal((6, 2, 3, 3))
    return Graph(
        inputs=[TensorSpec("x", (None, 5, 8, 8))],
        outputs=[TensorSpec("y", (None, 6, 8, 8))],
        nodes=[
            Node("conv2d", "c", {"input": Ref("x"), "weight": Ref("w"), "bias": Ref("b"), "padding": [1, 1]}),
            Node("clamp", "y", {"self": Ref("c"), "min": -float("inf"), "max": 6.0}),
        ],
        constants={
            "w": UniformBlockSparse.from_dense(weight, 4),
            "b": rng.standard_normal(6).astype(np.float32),
            "n": np.array([1, -2], np.int64),
            "flag": np.array(True),
        },
        metadata={"model": "small", "mean": [0.5, 0.25], "classes": ["hen", "wren"]},
    )


def same(a: Graph, b: Graph) -> bool:
    if a.to_json() != b.to_json() or list(a.constants) != list(b.constants):
        return False
    for left, right in zip(a.constants.values(), b.constants.values(), strict=True):
        if isinstance(left, UniformBlockSparse):
            same_form = (left.shape, left.block_size, left.groups) == (right.shape, right.block_size, right.groups)
            pairs = [(left.values, right.values), (left.indices, right.indices)] if same_form else [(left, None)]
        else:
            pairs = [(left, right)]
        if any(r is None or x.dtype != r.dtype or x.shape != r.shape or x.tobytes() != r.tobytes() for x, r in pairs):
            return False
    return True


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "m.subp"
    save(path, small_graph())
    return path


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 20),
    channels=st.integers(1, 8),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    block=st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64]),
    data=st.data(),
)
def test_blocks_round_trip(groups, rows, channels, kernel, block, data):
    kept = data.draw(st.integers(1, channels))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    block_rows = -(-rows // block)
    dense = rng.standard_normal((groups, rows, channels, *kernel)).astype(np.float32)
    mask = np.zeros((groups, block_rows, channels), bool)
    for row in mask.reshape(-1, channels):
        row[rng.permutation(channels)[:kept]] = True
    for row in range(rows):
        dense[:, row] *= mask[:, row // block][..., None, None]
    dense = dense.reshape(groups * rows, channels, *kernel)
    packed = UniformBlockSparse.from_dense(dense, block, groups)
    assert packed.values.shape == (groups * block_rows, kept, *kernel, block)
    assert packed.kept_share == kept / channels
    assert np.array_equal(packed.to_dense(), dense)
    assert np.array_equal(
        UniformBlockSparse.from_dense(dense, block, groups, mask.reshape(-1, channels)).to_dense(), dense
    )


def test_rows_of_unequal_count_name_the_row():
    weight = np.ones((12, 5, 1, 1), np.float32)
    weight[4:8, 2] = 0
    with pytest.raises(ValueError, match="block row 1 keeps 4 of 5 blocks, expected 5"):
        UniformBlockSparse.from_dense(weight, 4)


def test_weights_outside_the_mask_name_the_block():
    with pytest.raises(ValueError, match="block row 1, channel 2: the mask drops"):
        UniformBlockSparse.from_dense(np.ones((4, 3, 1, 1)), 2, mask=np.array([[1, 1, 1], [1, 1, 0]], bool))


def test_a_mask_keeps_zero_blocks():
    weight = UniformBlockSparse.from_dense(np.zeros((4, 3, 1, 1)), 2, mask=np.ones((2, 3), bool))
    assert weight.kept_share == 1 and weight.nbytes == 12 * 4 + 6 * 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"indices": np.array([[0, 2], [1, 3]], np.int32)}, "block row 1: channel 3 is out of bounds"),
        ({"indices": np.array([[0, 2], [-1, 2]], np.int32)}, "block row 1: channel -1 is out of bounds"),
        ({"indices": np.array([[2, 0], [0, 1]], np.int32)}, "block row 0: channels are not ascending"),
        ({"indices": np.array([[0, 1], [1, 1]], np.int32)}, "block row 1: channels are not ascending"),
        ({"indices": np.zeros((2, 4), np.int32)}, "indices have shape"),
        ({"values": np.zeros((2, 3, 1, 1, 2), np.float32)}, "values have shape"),
        ({"values": np.ones((2, 2, 1, 1, 2), np.float32)}, "zero padding"),
        ({"shape": (3, 3, 1)}, "expected four sizes"),
        ({"shape": (3, 0, 1, 1)}, "expected four sizes"),
        ({"groups": 2}, "do not split into 2 groups"),
        ({"block_size": 0}, "block size is 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    parts = {
        "values": np.zeros((2, 2, 1, 1, 2), np.float32),
        "indices": np.array([[0, 2], [0, 1]], np.int32),
        "shape": (3, 3, 1, 1),
        "block_size": 2,
    }
    UniformBlockSparse(**parts)
    with pytest.raises(ValueError, match=message):
        UniformBlockSparse(**{**parts, **change})


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="indices is int64"):
        UniformBlockSparse(np.zeros((1, 1, 1, 1, 1), np.float32), np.zeros((1, 1), np.int64), (1, 1, 1, 1), 1)


def test_file_round_trip(stored):
    assert same(load(stored), small_graph())


def test_saving_twice_gives_the_same_bytes(stored, tmp_path):
    save(tmp_path / "again.subp", load(stored))
    assert (tmp_path / "again.subp").read_bytes() == stored.read_bytes()


def test_size_is_in_proportion_to_what_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 256, 3, 3)).astype(np.float32)
    sizes = {}
    for share in (1.0, 0.5, 0.25):
        weight[:, int(256 * share) :] = 0
        graph = small_graph()
        graph.constants["big"] = UniformBlockSparse.from_dense(weight, 16)
        save(tmp_path / "m.subp", graph)
        sizes[share] = (tmp_path / "m.subp").stat().st_size - 4096
    assert sizes[0.5] < 0.51 * sizes[1.0] and sizes[0.25] < 0.26 * sizes[1.0]


def test_wide_indices_are_stored(tmp_path):
    graph = small_graph()
    graph.constants["wide"] = UniformBlockSparse(
        np.ones((1, 1, 1, 1, 1), np.float32), np.array([[70000]], np.int32), (1, 70001, 1, 1), 1
    )
    save(tmp_path / "m.subp", graph)
    assert same(load(tmp_path / "m.subp"), graph)


def check_damaged(path, raw, original):
    path.write_bytes(raw)
    try:
        assert same(load(path), original)
    except FormatError as error:
        assert str(error).startswith(str(path))
        assert len(str(error)) > len(str(path)) + 20


def test_every_cut_is_an_error(stored):
    raw = stored.read_bytes()
    for end in {*range(0, 200), *range(200, len(raw), 7), len(raw) - 1}:
        stored.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            load(stored)


def test_an_extended_file_is_an_error(stored):
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="cut short or extended"):
        load(stored)


def test_any_flipped_bit_is_an_error_or_harmless(stored):
    raw, original = stored.read_bytes(), small_graph()
    rng = np.random.default_rng(0)
    every = np.arange(64 * 8)
    for bit in np.concatenate([every, rng.integers(0, len(raw) * 8, 2500)]):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << (bit % 8)
        check_damaged(stored, bytes(damaged), original)


def rewrite(raw: bytes, change) -> bytes:
    """A file whose header was changed and whose checksums are right again: damage by intent, not by accident."""
    magic, version, _, count, total = subp_format._PREAMBLE.unpack_from(raw)
    payload = subp_format._align(64 + count)
    header = json.loads(raw[64 : 64 + count])
    change(header)
    text = json.dumps(header).encode()
    body = raw[payload:]
    start = subp_format._align(64 + len(text))
    fields = subp_format._PREAMBLE.pack(magic, version, zlib.crc32(text), len(text), start + len(body))
    head = (fields + struct.pack("<I", zlib.crc32(fields))).ljust(64, b"\0") + text
    return head.ljust(start, b"\0") + body


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(header):
        for key in path:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("tensors", 0, "shape", [1 << 62, 1 << 62]),
        _set("tensors", 0, "shape", [0, 1 << 70]),
        _set("tensors", 0, "shape", [-1, -1]),
        _set("tensors", 0, "shape", 7),
        _set("tensors", 0, "shape", [2.0, 2, 3, 3, 4]),
        _set("tensors", 0, "nbytes", 1 << 60),
        _set("tensors", 0, "offset", 1 << 60),
        _set("tensors", 0, "offset", -64),
        _set("tensors", 0, "offset", 4),
        _set("tensors", 0, "dtype", "object"),
        _set("tensors", 0, "dtype", ["float32"]),
        _set("tensors", 1, "dtype", "int32"),
        _set("tensors", 0, "crc32", None),
        _set("tensors", {}),
        _set("tensors", [1]),
        _set("constants", 0, "shape", [1 << 40, 5, 3, 3]),
        _set("constants", 0, "shape", [6, 5]),
        _set("constants", 0, "block_size", 1 << 40),
        _set("constants", 0, "block_size", 0),
        _set("constants", 0, "groups", "1"),
        _set("constants", 0, "values", 99),
        _set("constants", 0, "indices", 0),
        _set("constants", 0, "indices", "x"),
        _set("constants", 0, "name", "b"),
        _set("constants", 0, "name", 5),
        _set("graph", "nodes", [{}]),
        _set("graph", "nodes", 0, "args", "self", {"ref": "absent"}),
        _set("graph", "nodes", 0, "args", "self", {"other": 1}),
        _set("graph", "nodes", 0, "args", "self", {"float": "abc"}),
        _set("graph", "nodes", 0, "op", 3),
        _set("graph", "inputs", []),
        _set("graph", "inputs", 0, "shape", ["many"]),
        _set("graph", "inputs", 0, "dtype", "complex64"),
        _set("graph", "metadata", []),
        _set("graph", None),
    ],
)
def test_hostile_headers_are_errors(stored, change):
    stored.write_bytes(rewrite(stored.read_bytes(), change))
    with pytest.raises(FormatError):
        load(stored)


def test_an_unchanged_rewrite_loads(stored):
    stored.write_bytes(rewrite(stored.read_bytes(), lambda header: None))
    assert same(load(stored), small_graph())


def test_deep_nesting_is_an_error(stored):
    text = b"[" * 200_000
    fields = subp_format._PREAMBLE.pack(subp_format.MAGIC, 1, zlib.crc32(text), len(text), 64 + len(text))
    stored.write_bytes((fields + struct.pack("<I", zlib.crc32(fields))).ljust(64, b"\0") + text)
    with pytest.raises(FormatError):
        load(stored)


def test_newer_version_says_so(stored):
    raw = bytearray(stored.read_bytes())
    raw[8] = 2
    stored.write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="format version 2, this subp_ext reads up to 1; install a newer one"):
        load(stored)


def test_other_files_missing_files_and_directories(tmp_path):
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(FormatError, match="does not start as a .subp file"):
        load(tmp_path / "text")
    with pytest.raises(FormatError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.subp")


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(IsADirectoryError, match=rf"expected the name of a file: '{tmp_path}'"):
        save(tmp_path, small_graph())
    with pytest.raises(FileNotFoundError, match=rf"No such file or directory: '{tmp_path / 'absent'}'$"):
        save(tmp_path / "absent" / "m.subp", small_graph())
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(stored, monkeypatch):
    before = stored.read_bytes()
    bad = small_graph()
    bad.metadata["when"] = object()
    with pytest.raises(ValueError, match="metadata 'when' is not a JSON value"):
        save(stored, bad)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(stored, small_graph())
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
