"""UniformBlockSparse and the `.subp` file: round trips, and every kind of damage a named error.

Out of scope: files larger than memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_ext import FormatError, Graph, Node, Ref, Session, TensorSpec, UniformBlockSparse, load, save
from subp_ext import format as subp_format
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType, as_type


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


def typed_graph() -> Graph:
    """Every kind of typed value: inputs, outputs, results, constants, sparse weights of all types and orders."""
    rng = np.random.default_rng(1)
    activations = ValueType(DTYPES["uint8"], Quantization(np.float32(0.05), np.int32(3)))
    per_channel = Quantization(rng.random(6).astype(np.float32) + 0.5, np.zeros(6, np.int32), axis=0)
    indices = np.array([[0, 3], [1, 4]], np.int32)
    sparse = {"indices": indices, "shape": (6, 5, 1, 1), "block_size": 3}
    integers = rng.integers(-128, 128, (2, 2, 1, 1, 3)).astype(np.int8)
    scale, order = rng.random(6).astype(np.float32) + 0.5, np.array([3, 1, 0, 5, 4, 2], np.int32)
    images, numbers = (None, 5, 8, 8), (None, 6, 8, 8)

    def conv(output, source, weight, type):
        return Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight)}, type)

    return Graph(
        inputs=[TensorSpec("x", images, "uint8", activations.quantization), TensorSpec("h", images, "bfloat16")],
        outputs=[
            TensorSpec("integers out", numbers, "uint8", activations.quantization),
            TensorSpec("bfloat16 out", numbers, "bfloat16"),
            TensorSpec("float out", numbers),
            TensorSpec("x", images, "uint8", activations.quantization),
        ],
        nodes=[
            conv("a", "x", "sparse int8", activations),
            Node("relu", "integers out", {"self": Ref("a")}, activations),
            conv("b", "h", "sparse bfloat16", as_type("bfloat16")),
            Node("mul", "bfloat16 out", {"self": Ref("b"), "other": 0.5}, as_type("bfloat16")),
            Node("dequantize", "c", {"self": Ref("integers out")}),
            Node("cast", "d", {"self": Ref("bfloat16 out"), "dtype": "float32"}),
            Node("add", "float out", {"self": Ref("c"), "other": Ref("d")}),
        ],
        constants={
            "bfloat16": TypedArray(rng.integers(0, 1 << 16, (2, 3)).astype(np.uint16), as_type("bfloat16")),
            "integers": rng.integers(-128, 128, 5).astype(np.int8),
            "per tensor": TypedArray(rng.integers(0, 256, 4).astype(np.uint8), activations),
            "per channel": TypedArray(integers.reshape(6, 2), ValueType(DTYPES["int8"], per_channel)),
            "sparse int8": UniformBlockSparse(integers, **sparse, dtype="int8", scale=scale),
            "sparse bfloat16": UniformBlockSparse(
                DTYPES["bfloat16"].from_float(integers), **sparse, dtype="bfloat16", order=order
            ),
            "sparse float32": UniformBlockSparse(integers.astype(np.float32), **sparse, order=order),
        },
    )


def parts_of(constant) -> dict:
    """What a constant holds, arrays as dtype, shape and bytes."""
    if isinstance(constant, np.ndarray):
        return {"array": (constant.dtype, constant.shape, constant.tobytes())}
    fields = {field.name: getattr(constant, field.name) for field in dataclasses.fields(constant)}
    return {n: parts_of(v) if isinstance(v, np.ndarray) else v for n, v in fields.items()}


def same(a: Graph, b: Graph) -> bool:
    if a.to_json() != b.to_json() or list(a.constants) != list(b.constants):
        return False
    pairs = zip(a.constants.values(), b.constants.values(), strict=True)
    return all(type(left) is type(right) and parts_of(left) == parts_of(right) for left, right in pairs)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_typed_and_ordered_weights_mean_what_their_dense_form_says(dtype, ordered, groups):
    """By hand: lane n of block row r is the next output channel of its group, or the one that the order names."""
    rng = np.random.default_rng(3)
    outputs, per_group, n = 10, 10 // groups, 4
    rows = groups * -(-per_group // n)
    real = rng.integers(-100, 100, (rows, 2, 1, 3, n)).astype(np.float32)
    narrow = per_group % n
    real[rows // groups - 1 :: rows // groups, ..., narrow:] = 0
    indices = np.sort([rng.permutation(5)[:2] for _ in range(rows)]).astype(np.int32)
    scale = (rng.random(outputs) + 0.5).astype(np.float32) if dtype == "int8" else None
    order = None
    if ordered:
        order = np.concatenate([g * per_group + rng.permutation(per_group) for g in range(groups)]).astype(np.int32)
    weight = UniformBlockSparse(
        DTYPES[dtype].from_float(real), indices, (outputs, 5, 1, 3), n, groups, dtype, scale, order
    )
    dense = np.zeros((outputs, 5, 1, 3), np.float32)
    for position in range(outputs):
        group, inside = divmod(position, per_group)
        row, lane = group * (rows // groups) + inside // n, inside % n
        channel = position if order is None else order[position]
        dense[channel, indices[row]] = real[row, :, :, :, lane] * (1 if scale is None else scale[channel])
    assert np.array_equal(weight.to_dense(), dense)
    plain = weight.to_float32()
    assert plain.dtype == "float32" and plain.scale is None and plain.order is weight.order
    assert np.array_equal(plain.to_dense(), dense) and plain.kept_share == 0.4


def test_the_order_of_float32_rows_in_their_place_changes_nothing():
    weight = UniformBlockSparse.from_dense(np.ones((4, 3, 1, 1)), 2)
    assert weight.to_float32() is weight


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "float64"}, "weights of 'float64'"),
        ({"dtype": "int8"}, "values is float32"),
        (
            {"dtype": "int8", "values": np.zeros((2, 2, 1, 1, 2), np.int8)},
            "int8 values need a scale per output channel",
        ),
        ({"scale": np.ones(3, np.float32)}, "float32 values have no scale"),
        ({"dtype": "int8", "values": np.zeros((2, 2, 1, 1, 2), np.int8), "scale": np.ones(4, np.float32)}, "scale has"),
        ({"dtype": "int8", "values": np.zeros((2, 2, 1, 1, 2), np.int8), "scale": np.zeros(3, np.float32)}, "positive"),
        ({"order": np.array([0, 1, 1], np.int32)}, "order is no permutation of the 3 output channels"),
        ({"order": np.array([0, 1], np.int32)}, "order is no permutation"),
        ({"order": np.array([0, 1, 2])}, "order is int64"),
    ],
)
def test_types_and_orders_that_do_not_fit_are_refused(change, message):
    parts = {
        "values": np.zeros((2, 2, 1, 1, 2), np.float32),
        "indices": np.array([[0, 2], [0, 1]], np.int32),
        "shape": (3, 3, 1, 1),
        "block_size": 2,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        UniformBlockSparse(**{**parts, **change})


def test_an_order_stays_inside_its_group():
    with pytest.raises(ValueError, match="order takes a channel out of its group"):
        UniformBlockSparse(
            np.zeros((2, 1, 1, 1, 2), np.float32), np.zeros((2, 1), np.int32), (4, 1, 1, 1), 2, 2,
            order=np.array([2, 1, 0, 3], np.int32),
        )  # fmt: skip


@pytest.mark.parametrize("make", [small_graph, typed_graph])
def test_file_round_trip(make, tmp_path):
    save(tmp_path / "m.subp", make())
    assert same(load(tmp_path / "m.subp"), make())


def test_a_file_of_version_1_loads_and_gives_the_same_bits():
    """Written by the release that had version 1. Whole numbers, so that every kernel set has the same bits."""
    folder = Path(__file__).parent / "files"
    assert struct.unpack_from("<I", (folder / "version1.subp").read_bytes(), 8) == (1,)
    with np.load(folder / "version1.npz") as arrays:
        found = Session(folder / "version1.subp").run(arrays["x"])
        for name, result in zip(("y", "z"), found, strict=True):
            assert result.dtype == arrays[name].dtype and result.tobytes() == arrays[name].tobytes()


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
    raw[8] = 3
    stored.write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="format version 3, this subp_ext reads up to 2; install a newer subp-dist"):
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
