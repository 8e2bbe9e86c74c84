"""Damages `.subp` files at random and tries to load and run each: `python tests/mutations.py CASES SEED FOLDER`.

Two kinds: bytes changed as a bad disk would, which checksums have to catch; and graphs and tensors changed as somebody
hostile would, with checksums right again. Every case has to end in FormatError, ValueError or RuntimeError with a
message, or in a result (for the first kind: the right one), within seconds, in the address space this process has.
Prints one JSON object with the endings counted; the first bad ending is a traceback.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import faulthandler
import json
import resource
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from bfloat16_graphs import bfloat16_graph
from int8_graphs import int8_graph
from test_ext_format import small_graph, typed_graph
from test_ext_planner import GRAPHS

import subp_ext
from subp_ext import FormatError, Graph, Session
from subp_ext import format as subp_format
from subp_ext.bfloat16 import convert

SECONDS = 20  # beyond is a hang; the process may have to wait for its turn
NUMBERS = [0, 1, -1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, 0.5, -0.0, 1e300]
OTHERS = [None, True, "", "x", "float64", "S1000000000", [], [1], [[1, 2], [3, 4]], {}, {"ref": "x"}, {"float": "nan"}]


def networks() -> list[Graph]:
    many = small_graph()
    low = convert(bfloat16_graph())
    return [many, typed_graph(), int8_graph(size=8), int8_graph(1, size=8), low, *(make() for make in GRAPHS)]


def parse(raw: bytes):
    """Header and the bytes of each tensor."""
    count = subp_format._PREAMBLE.unpack_from(raw)[3]
    header, payload = json.loads(raw[64 : 64 + count]), subp_format._align(64 + count)
    starts = [payload + entry["offset"] for entry in header["tensors"]]
    return header, [raw[at : at + e["nbytes"]] for at, e in zip(starts, header["tensors"], strict=True)]


def assemble(header, tensors: list[bytes]) -> bytes:
    """The file, with every checksum and offset right."""
    offset = 0
    for entry, data in zip(header["tensors"], tensors, strict=False):
        if isinstance(entry, dict) and entry.pop("recompute", True):
            entry.update(offset=offset, crc32=zlib.crc32(data))
        offset = subp_format._align(offset + len(data))
    text = json.dumps(header).encode()
    body = b"".join(data.ljust(subp_format._align(len(data)), b"\0") for data in tensors)
    start = subp_format._align(64 + len(text))
    fields = subp_format._PREAMBLE.pack(
        subp_format.MAGIC, subp_format.VERSION, zlib.crc32(text), len(text), start + len(body)
    )
    head = (fields + struct.pack("<I", zlib.crc32(fields))).ljust(64, b"\0") + text
    return head.ljust(start, b"\0") + body


def places(value, path=()):
    """Paths to everything inside a JSON value, as far as a path is short."""
    if len(path) > 12:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def pick(rng, values):
    return values[rng.integers(len(values))]


def change_header(rng, header) -> None:
    """Replaces, removes, repeats or swaps something in the graph or the tables."""
    path = pick(rng, list(places(header)))
    if rng.random() < 0.7:  # mostly in the nodes: what the checks of the format alone do not see
        path = pick(rng, [p for p in places(header) if p[:2] == ("graph", "nodes") and len(p) > 2])
    parent = header
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.4:
        parent[path[-1]] = pick(rng, NUMBERS)
    elif kind < 0.55:
        parent[path[-1]] = copy.deepcopy(pick(rng, OTHERS))
    elif kind < 0.7:
        other = pick(rng, list(places(header["graph"]["nodes"])))
        value = header["graph"]["nodes"]
        for key in other:
            value = value[key]
        parent[path[-1]] = copy.deepcopy(value)
    elif kind < 0.75:
        deep = []
        for _ in range(int(pick(rng, [5, 9, 50, 300]))):
            deep = [deep]
        parent[path[-1]] = deep
    elif kind < 0.85 and isinstance(parent, list):
        parent[path[-1] :] = copy.deepcopy(parent[path[-1] : path[-1] + 1]) * int(rng.integers(0, 4))
    elif kind < 0.9:
        names = [node["output"] for node in header["graph"]["nodes"] if isinstance(node, dict) and "output" in node]
        parent[path[-1]] = {"ref": copy.deepcopy(pick(rng, names))} if names else None
    else:
        node = pick(rng, header["graph"]["nodes"])
        if isinstance(node, dict):
            node["op"] = pick(rng, subp_ext.supported_ops())


def change_tensor(rng, tensors: list[bytes]) -> None:
    number = int(rng.integers(len(tensors)))
    data = bytearray(tensors[number])
    for _ in range(int(rng.integers(1, 5))):
        if data:
            data[rng.integers(len(data))] = rng.integers(256)
    tensors[number] = bytes(data)


def damage(rng, raw: bytes) -> tuple[bytes, bool]:
    """Returns changed bytes, and whether a load of them has to fail unless nothing changed."""
    kind = rng.random()
    if kind < 0.15:
        data = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(data), True
    if kind < 0.2:
        return raw[: rng.integers(len(raw))], True
    header, tensors = parse(raw)
    if kind < 0.3:
        change_tensor(rng, tensors)
    else:
        for _ in range(int(rng.integers(1, 4))):
            # The change before may have removed every place to pick from.
            with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):
                change_header(rng, header)
    tables = header.get("tensors") if isinstance(header, dict) else None
    return assemble(header if isinstance(tables, list) else {**header, "tensors": []}, tensors), False


def inputs_of(session: Session):
    """Inputs that fit the specification, or None where they would be large."""
    arrays = []
    for spec in session.inputs:
        shape = [(2, 4, 6, 4)[min(axis, 3)] if size is None else size for axis, size in enumerate(spec.shape)]
        if len(shape) > 8 or np.prod([float(size) for size in shape]) > 1e5:
            return None
        dtype = spec.type.dtype
        arrays.append(np.ones(shape, dtype.storage if dtype.native else np.float32))
    return arrays


def attempt(path: Path, wanted) -> str:
    """Loads and runs; returns how it ended.

    Raises:
        AssertionError: a damaged file gave another result.
    """
    try:
        session = Session(path, threads=1)
        arrays = inputs_of(session)
        result = None if arrays is None else session.run(arrays)
    except (FormatError, ValueError, RuntimeError) as error:
        # The message says something, and none of the kinds is a RecursionError or the like in disguise.
        assert type(error) in (FormatError, ValueError, RuntimeError) and len(str(error)) > 15, repr(error)
        return type(error).__name__
    if wanted is not None and result is not None:
        pairs = zip(result if isinstance(result, tuple) else [result], wanted, strict=True)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    return "result"


def main(cases: int, seed: int, folder: Path) -> None:
    np.seterr(all="ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 29), used + (3 << 29)))
    path, rng, originals = folder / "case.subp", np.random.default_rng(seed), []
    for graph in networks():
        subp_ext.save(path, graph)
        session = Session(path, threads=1)
        result = session.run(inputs_of(session))
        originals.append((path.read_bytes(), result if isinstance(result, tuple) else (result,)))
    endings: collections.Counter[str] = collections.Counter()

    def hang(*_):
        raise TimeoutError(f"{SECONDS} s are over")

    signal.signal(signal.SIGALRM, hang)
    for case in range(cases):
        raw, wanted = originals[rng.integers(len(originals))]
        data, by_accident = damage(rng, raw)
        path.write_bytes(data)
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # for a hang outside of the interpreter
        try:
            endings[attempt(path, wanted if by_accident else None)] += 1
        except BaseException:
            Path(folder / "bad.subp").write_bytes(data)
            print(f"case {case} of seed {seed}", file=sys.stderr)
            raise
        signal.alarm(0)
    print(json.dumps(endings))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
