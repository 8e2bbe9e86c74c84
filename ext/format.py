"""The `.subp` file: a preamble of fixed size, a JSON header, and aligned tensors; every part has a checksum.

`docs/format.md` specifies it. In short:

0   magic (8 bytes), version (u32), header crc32 (u32), header bytes (u64), file bytes (u64),
    crc32 of these 32 bytes (u32), zeros up to 64
64  header: UTF-8 JSON with the graph, the constants and the table of tensors (dtype, shape, offset, nbytes, crc32)
... tensors, little-endian, each at a multiple of 64 bytes
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from subp_ext.dtypes import DTYPES, Array, Quantization, TypedArray, ValueType, dtype_named, dtype_of
from subp_ext.graph import Constant, Graph
from subp_ext.source import ModelSource, Readable, foreign, name_of, opened
from subp_ext.sparse import UniformBlockSparse

# The first byte is not ASCII and the line ends differ, so that a transfer in text mode shows at once (as in PNG).
MAGIC = b"\x89SUBP\r\n\n"
VERSION = 2  # 1 has no typed values; it is read, not written
ALIGNMENT = 64
_PREAMBLE = struct.Struct("<8sIIQQ")

# How each tensor is stored: by data type, and indices that fit into 16 bits.
_STORAGE = {name: row.storage for name, row in DTYPES.items()} | {"uint16": np.dtype(np.uint16)}

# What a header calls the tensors of a constant.
_PARTS = ("tensor", "values", "indices", "scale", "zero_point", "order")

# Tensors to be written, each with the name of its data type.
_Arrays = list[tuple[str, Array]]

Change = Callable[[Graph], Callable[[str, Constant], Constant]]


class FormatError(ValueError):
    """A `.subp` file that is damaged, cut short, not one at all, or of a newer version."""


def save(path: str | os.PathLike[str], graph: Graph) -> None:
    """Writes a graph atomically: on any failure what was at `path` before is still there.

    Raises:
        ValueError: the graph is not valid.
        OSError: the file cannot be written.
    """
    graph.validate()
    path = Path(path)
    arrays: _Arrays = []
    table = [{"name": name} | _describe(constant, arrays) for name, constant in graph.constants.items()]
    offsets, end = _offsets(arrays)
    tensors = [
        {"dtype": dtype, "shape": a.shape, "offset": offset, "nbytes": a.nbytes, "crc32": zlib.crc32(a)}
        for (dtype, a), offset in zip(arrays, offsets, strict=True)
    ]
    header = json.dumps({"graph": graph.to_json(), "constants": table, "tensors": tensors}, allow_nan=False).encode()
    payload = _align(ALIGNMENT + len(header))
    fields = _PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(header), len(header), payload + end)
    preamble = (fields + struct.pack("<I", zlib.crc32(fields))).ljust(ALIGNMENT, b"\0")
    _write(
        path, preamble + header, [(payload + o, a) for o, (_, a) in zip(offsets, arrays, strict=True)], payload + end
    )


def load(path: ModelSource) -> Graph:
    """Reads a graph and checks all of it: sizes, checksums, references, index bounds.

    Args:
        path: of a `.subp` file or a pipe; its bytes, as bytes, memoryview or memory map; or a file opened in
            binary mode, which is read from where it stands to its end.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: what is there is not a sound `.subp` file.
        TypeError: it is nothing to read from.
    """
    return read(path, lambda graph: lambda name, constant: constant)


def read(path: ModelSource, changed: Change) -> Graph:
    """As `load`, with other constants in place of those in the file: each is changed before the next one is read.

    Args:
        path: as for `load`.
        changed: given the graph, which has no constants yet and is not checked, returns what makes of a constant's name
            and value the one to keep.
    """
    name = name_of(path)
    if isinstance(path, (str, os.PathLike)) and Path(path).is_dir():
        raise FormatError(f"{name}: is a directory; expected a .subp file")
    with opened(path) as (file, size):
        try:
            header_crc, header_bytes = _read_preamble(file.read(ALIGNMENT), size)
            return _parse(file, header_bytes, header_crc, size, changed)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
        # Validation of the graph and its weights raises ValueError or TypeError; deep nesting RecursionError.
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{name}: the content is not valid: {error}; export the model again") from error


def _describe(constant: Constant, arrays: _Arrays) -> dict[str, Any]:
    """Appends the arrays of a constant, and returns its table entry with their positions."""

    def add(array: Array, dtype: str) -> int:
        arrays.append((dtype, np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")))
        return len(arrays) - 1

    if isinstance(constant, UniformBlockSparse):
        small = constant.shape[1] <= 1 << 16
        indices = constant.indices.astype(np.uint16) if small else constant.indices
        entry = {"values": add(constant.values, constant.dtype), "indices": add(indices, indices.dtype.name)}
        entry |= {
            name: add(a, a.dtype.name) for name in ("scale", "order") if (a := getattr(constant, name)) is not None
        }
        return entry | {"shape": constant.shape, "block_size": constant.block_size, "groups": constant.groups}
    if not isinstance(constant, TypedArray):
        return {"tensor": add(constant, dtype_of(constant).name)}
    entry, quantization = {"tensor": add(constant.values, constant.type.dtype.name)}, constant.type.quantization
    if quantization is None:
        return entry
    numbers = {"scale": add(quantization.scale, "float32"), "zero_point": add(quantization.zero_point, "int32")}
    return entry | numbers | {"axis": quantization.axis}


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _offsets(arrays: _Arrays) -> tuple[list[int], int]:
    """Offsets from the start of the payload, and where the last array ends."""
    offsets, end = [], 0
    for _, array in arrays:
        offsets.append(_align(end))
        end = offsets[-1] + array.nbytes
    return offsets, end


def _write(path: Path, head: bytes, tensors: list[tuple[int, np.ndarray]], size: int) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory; expected the name of a file", str(path))
    import tempfile  # 1 MB, of no use to who only reads

    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:  # the temporary file's name would tell nobody anything
        error.filename = str(path.parent)
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(head)
            for offset, array in tensors:
                file.write(b"\0" * (offset - file.tell()))
                file.write(array.tobytes())
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _read_preamble(raw: bytes, size: int) -> tuple[int, int]:
    """Returns the header's crc32 and its bytes, both sizes checked against the file's."""
    if raw[: len(MAGIC)] != MAGIC:
        if MAGIC.startswith(raw) and raw:
            raise FormatError(f"cut short: {size} bytes, expected at least {ALIGNMENT}; copy or export it again")
        raise FormatError(foreign(raw, size))
    if len(raw) < ALIGNMENT:
        raise FormatError(f"cut short: {size} bytes, expected at least {ALIGNMENT}; copy or export it again")
    _, version, header_crc, header_bytes, file_bytes = _PREAMBLE.unpack_from(raw)
    (crc,) = struct.unpack_from("<I", raw, _PREAMBLE.size)
    if version > VERSION:
        raise FormatError(f"format version {version}, this subp_ext reads up to {VERSION}; install a newer subp-dist")
    if crc != zlib.crc32(raw[: _PREAMBLE.size]) or version < 1:
        raise FormatError("the preamble is damaged (checksum); copy or export the file again")
    if file_bytes != size:
        raise FormatError(f"{size} bytes, expected {file_bytes}; the file was cut short or extended, copy it again")
    if header_bytes > size - ALIGNMENT:
        raise FormatError(f"a header of {header_bytes} bytes in a file of {size}; copy or export it again")
    return header_crc, header_bytes


def _parse(file: Readable, header_bytes: int, header_crc: int, size: int, changed: Change) -> Graph:
    """Reads what follows the preamble."""
    raw = file.read(header_bytes)
    if zlib.crc32(raw) != header_crc:
        raise FormatError("the header is damaged (checksum); copy or export the file again")
    header = json.loads(raw)
    start = _align(ALIGNMENT + header_bytes)
    try:
        _check_table(header["tensors"], size - start)
        graph, dtypes = Graph.from_json(header["graph"]), [entry["dtype"] for entry in header["tensors"]]
        change, unread = changed(graph), dict(enumerate(header["tensors"]))
        for entry in header["constants"]:
            parts = [entry[part] for part in _PARTS if part in entry]
            if entry["name"] in graph.constants or len(set(parts)) < len(parts) or not unread.keys() >= set(parts):
                raise FormatError(f"constant {entry['name']!r} or a tensor of it is listed twice, or is not there")
            tensors = {number: _read_tensor(unread.pop(number), number, file, start) for number in parts}
            graph.constants[entry["name"]] = change(entry["name"], _read_constant(entry, tensors, dtypes))
        for number, entry in unread.items():
            _read_tensor(entry, number, file, start)  # of no use, and damaged all the same
        graph.validate()
        return graph
    except (KeyError, IndexError, AttributeError, OverflowError) as error:
        raise FormatError(f"the header lacks a part or has one of the wrong kind: {error!r}") from error


def _check_table(entries: list[dict[str, Any]], available: int) -> None:
    """Checks that all tensors together lie within the file, before memory is allocated for any."""
    total = 0
    for number, entry in enumerate(entries):
        dtype, shape, offset, nbytes = entry["dtype"], entry["shape"], entry["offset"], entry["nbytes"]
        if not isinstance(dtype, str) or dtype not in _STORAGE:
            raise FormatError(f"tensor {number}: dtype {dtype!r} is not one of {', '.join(_STORAGE)}")
        if not all(type(size) is int and size >= 0 for size in [*shape, offset, nbytes]):
            raise FormatError(
                f"tensor {number}: shape {shape}, offset {offset} or size {nbytes} is not a natural number"
            )
        wanted = math.prod(shape) * _STORAGE[dtype].itemsize
        if wanted != nbytes or offset % ALIGNMENT or offset + nbytes > available:
            raise FormatError(
                f"tensor {number}: {nbytes} bytes at {offset} for {dtype} {shape} do not fit the {available} bytes of "
                "the file"
            )
        total += nbytes
    if total > available:
        raise FormatError(f"tensors of {total} bytes in a file with room for {available}: some overlap")


def _read_tensor(entry: dict[str, Any], number: int, file: Readable, start: int) -> np.ndarray:
    storage = _STORAGE[entry["dtype"]]
    array = np.empty(entry["shape"], storage.newbyteorder("<"))
    file.seek(start + entry["offset"])
    if file.readinto(array.reshape(-1).view(np.uint8)) != entry["nbytes"]:
        raise FormatError("changed while it was read; copy or export the file again")
    if zlib.crc32(array) != entry["crc32"]:
        raise FormatError(f"tensor {number} is damaged (checksum); copy or export the file again")
    return array.astype(storage, copy=False)


def _read_constant(entry: dict[str, Any], tensors: dict[int, Array], dtypes: list[str]) -> Constant:
    if "tensor" in entry:
        return _read_array(entry, tensors, dtypes)
    values, indices = tensors[entry["values"]], tensors[entry["indices"]]
    sizes = [*entry["shape"], entry["block_size"], entry["groups"]]
    if not all(type(size) is int for size in sizes) or dtypes[entry["indices"]] not in ("uint16", "int32"):
        raise FormatError(
            f"constant {entry['name']!r}: shape, block size, groups or indices are not integers as expected"
        )
    scale, order = (tensors[entry[part]] if part in entry else None for part in ("scale", "order"))
    form = (tuple(entry["shape"]), entry["block_size"], entry["groups"])
    return UniformBlockSparse(values, indices.astype(np.int32), *form, dtypes[entry["values"]], scale, order)


def _read_array(entry: dict[str, Any], tensors: dict[int, Array], dtypes: list[str]) -> Array | TypedArray:
    values, dtype = tensors[entry["tensor"]], dtypes[entry["tensor"]]
    quantization = None
    if "scale" in entry:
        parts = [dtypes[entry[part]] for part in ("scale", "zero_point")]
        axis = entry["axis"]
        if parts != ["float32", "int32"] or not (axis is None or type(axis) is int):
            raise FormatError(f"constant {entry['name']!r}: scale, zero point or axis is of the wrong kind")
        quantization = Quantization(tensors[entry["scale"]], tensors[entry["zero_point"]], axis)
    found = ValueType(dtype_named(dtype), quantization)
    return values if found.plain else TypedArray(values, found)
