"""Arguments straight into the extension that do not fit: an error that says so, never an access out of bounds.

Every check is one that memory safety rests on, so all of them are tried once more under `python -O`, which would take
asserts away. Calls that fit are made too: each test starts from one and changes one thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import timeit

import numpy as np
import pytest

from subp_ext import _kernels
from subp_ext.requantize import Requantization

HUGE = [2**31, 2**62, 2**64 + 1]


def floats(*shape):
    return np.ones(shape, np.float32)


POOL = {
    "kernel_set": "generic",
    "x": floats(2, 6, 7),
    "kernel": (2, 2),
    "stride": (2, 2),
    "dilation": (1, 1),
    "pad": (0, 0),
    "counts": (floats(3), floats(3)),
    "out": floats(2, 3, 3),
    "threads": 1,
}
MEAN = {"kernel_set": "generic", "x": floats(3, 5), "out": floats(3), "threads": 1}
BINARY = {
    "kernel_set": "generic",
    "multiply": True,
    "a": floats(3, 5),
    "b": floats(3, 5),
    "activation": "relu",
    "out": floats(3, 5),
    "threads": 1,
}
ACTIVATE = {"kernel_set": "generic", "x": floats(5), "activation": "relu", "out": floats(5), "threads": 1}
NORM_PIXELS = {
    "kernel_set": "generic",
    "x": floats(2, 4, 9),
    "weight": floats(4),
    "bias": floats(4),
    "eps": 1e-5,
    "out": floats(2, 4, 9),
    "threads": 1,
}
NORM_RUNS = {
    "kernel_set": "generic",
    "x": floats(4, 6),
    "weight": floats(2, 3),
    "bias": floats(2, 3),
    "eps": 1e-5,
    "out": floats(4, 6),
    "threads": 1,
}
CONVOLUTION = {
    "kernel_set": "generic",
    "dtype": "float32",
    "values": floats(2, 3 * 9 * 4),
    "indices": np.tile(np.arange(3, dtype=np.int32), (2, 1)),
    "block": 4,
    "groups": 1,
    "bias": floats(8),
    "activation": "relu",
    "in_shape": (5, 6, 7),
    "out_shape": (8, 6, 7),
    "copies": np.array([[0, 0], [0, 1], [0, 2]]),
    "pad": (1, 1),
    "stride": (1, 1),
    "tap_offsets": np.array([(t % 3 * 8 + t // 3) * 7 for t in range(9)]),
    "band": 6,
    "plane_rows": 8,
    "channel_stride": 168,
    "tile_pixels": 48,
    "pixels_outside": False,
}
IN_PLACE = CONVOLUTION | {
    "values": floats(2, 3 * 4),
    "copies": np.empty((0, 2), np.intp),
    "pad": (0, 0),
    "tap_offsets": np.zeros(1, np.intp),
    "plane_rows": 6,
    "channel_stride": 42,
}
REQUANTIZE = Requantization(np.zeros(8, np.int32), np.ones(8, np.float32), 3)
INT8 = CONVOLUTION | {
    "dtype": "uint8",
    "values": np.ones((2, 9 * 4 * 4), np.int8),
    "bias": None,
    "activation": None,
    "requantize": REQUANTIZE,
    "run_pixels": 42,
}
DEPTHWISE = {
    "kernel_set": "generic",
    "dtype": "float32",
    "values": floats(8, 3, 3),
    "bias": floats(8),
    "activation": "relu",
    "in_size": (6, 7),
    "out_size": (6, 7),
    "stride": (1, 1),
    "dilation": (1, 1),
    "pad": (1, 1),
}
VECTOR_SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"] and entry["name"] != "generic"]
WINOGRAD = {
    "kernel_set": VECTOR_SETS[-1] if VECTOR_SETS else "generic",
    "dtype": "float32",
    "size": 2,
    "values": floats(2, 16 * 3 * 4),
    "indices": np.tile(np.arange(3, dtype=np.int32), (2, 1)),
    "block": 4,
    "groups": 1,
    "bias": floats(8),
    "activation": None,
    "in_shape": (5, 6, 7),
    "out_shape": (8, 6, 7),
    "pad": (1, 1),
    "run": 12,
    "call_tiles": 12,
    "pitch": 32,
}


def neighbours(count, size):
    low = np.arange(count, dtype=np.int32) * (size - 1) // count
    return low, low + 1, floats(count), floats(count)


BILINEAR = {
    "x": floats(2, 3, 4),
    "rows": neighbours(5, 3),
    "columns": neighbours(8, 4),
    "doubles": True,
    "out": floats(2, 5, 8),
    "threads": 1,
}
GATHER = {
    "x": np.ones((2, 3, 16), np.uint8),
    "rows": np.array([1, 0, 1, 2, 1]),
    "columns": np.array([1, 0, 1, 2, 3, 2]),
    "element": 4,
    "out": np.ones((2, 5, 24), np.uint8),
    "threads": 1,
}
WOVEN = {
    "sources": [np.ones((2, rows, 4 * columns), np.uint8) for rows in (3, 2) for columns in (4, 3)],
    "step": (2, 2),
    "element": 4,
    "out": np.ones((2, 5, 28), np.uint8),
    "threads": 1,
}


def depthwise(**change):
    return _kernels.CompiledDepthwise(**DEPTHWISE | change)


def convolution(**change):
    return _kernels.CompiledConvolution(**CONVOLUTION | change)


def int8(**change):
    return _kernels.CompiledConvolution(**INT8 | change)


def bound(compiled, channels=5, **change):
    """A bind of a compiled convolution of 6x7 planes to 8 channels of them."""
    arguments = {
        "x": floats(1, channels, 6, 7),
        "residual": floats(1, 8, 6, 7),
        "out": floats(1, 8, 6, 7),
        "threads": 1,
    }
    arguments["scratch"] = floats(max(1, compiled.scratch))
    return compiled.bind(**arguments | change)


def rows(convolutions=None, outs=None, **change):
    made = [
        convolution(values=floats(1, 108), indices=np.arange(3, dtype=np.int32)[None], bias=None, out_shape=(4, 6, 7))
        for _ in range(2)
    ]
    convolutions, outs = convolutions or made, [floats(1, 4, 6, 7) for _ in range(2)] if outs is None else outs
    arguments = {"x": floats(1, 5, 6, 7), "scratch": floats(made[0].scratch), "threads": 1, "dynamic": False}
    return _kernels.run_rows(convolutions=convolutions, outs=outs, **arguments | change)


def bytes_of(channels):
    return np.ones((1, channels, 6, 7), np.uint8)


def wrong_arrays(**arrays):
    """For each array by name: other types, shapes and things that are no arrays."""
    for name, array in arrays.items():
        yield name, array.astype(np.float64 if array.dtype != np.float64 else np.int8)
        yield name, array[None]
        yield name, array[..., :-1]
        yield name, np.concatenate([array, array], -1)[..., ::2]
        yield name, np.zeros((0, *array.shape[1:]), array.dtype)
        if array.itemsize > 1:
            yield name, array.astype(array.dtype.newbyteorder())
        yield from ((name, other) for other in (7, "text", [1.0, 2.0]))


def wrong_numbers(*names, least=1):
    for name in names:
        yield from ((name, value) for value in (least - 1, -1, -(2**63), *HUGE, None, 1.5, "2"))


def wrong_orders():
    """Of 8 channels."""
    yield from wrong_arrays(order=np.arange(8, dtype=np.int32))
    yield from (("order", np.array([0, 1, 2, 3, 4, 5, 6, other], np.int32)) for other in (6, 8, -1, 2**30))


def wrong_pairs(*names, least=1):
    for name in names:
        yield from ((name, value) for value in (None, 3, (1,), (1, 1, 1), (least - 1, 1), (1, HUGE[1]), (1, "1")))


def without(arguments, *names):
    return {name: value for name, value in arguments.items() if isinstance(value, np.ndarray) and name not in names}


def wrong_neighbours(name, count, size):
    low, high, low_weight, high_weight = neighbours(count, size)
    yield from ((name, other) for other in (None, 3, (low, high), floats(4, count)))
    yield from ((name, (low + change, high, low_weight, high_weight)) for change in (-1, size))
    yield from ((name, (low, high + change, low_weight, high_weight)) for change in (-2, 1, 2**30))
    yield from ((name, (low, high, low_weight[:-1], high_weight)), (name, (low, high, low_weight, None)))
    yield name, (low[:-1], high, low_weight, high_weight)


CASES = {
    "bilinear": (
        _kernels.bind_bilinear,
        BILINEAR,
        [
            *wrong_arrays(**without(BILINEAR)),
            *wrong_neighbours("rows", 5, 3),
            *wrong_neighbours("columns", 8, 4),
            *wrong_numbers("threads"),
        ],
    ),
    "gather": (
        _kernels.bind_gather,
        GATHER,
        [
            *wrong_arrays(x=GATHER["x"], out=GATHER["out"]),
            *(("rows", rows) for rows in ([0, 0, 0, 0, 3], [-1, 0, 0, 0, 0], [0], [], 1, None, "rows")),
            *(("columns", columns) for columns in ([0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 0, -1], [0], [], 1)),
            *(("element", element) for element in (0, 1, 2, 3, 8, 16, -4, 4.0, None, "4")),
            *wrong_numbers("threads"),
        ],
    ),
    "weave": (
        _kernels.bind_weave,
        WOVEN,
        [
            *wrong_arrays(out=WOVEN["out"]),
            *(("sources", sources) for sources in ([], WOVEN["sources"][:3], WOVEN["sources"][::-1], 3, None)),
            *(("sources", [*WOVEN["sources"][:3], other]) for _, other in wrong_arrays(_=WOVEN["sources"][3])),
            ("sources", np.ones((2, 4, 3, 16), np.uint8)),
            *wrong_pairs("step"),
            *(("step", step) for step in ((1, 4), (4, 1), (6, 1), (2, 8), (2**20, 2**20))),
            *(("element", element) for element in (0, 1, 2, 3, 8, 16, -4, 4.0, None, "4")),
            *wrong_numbers("threads"),
        ],
    ),
    "pool": (
        _kernels.bind_pool,
        POOL,
        [
            *wrong_arrays(x=POOL["x"], out=POOL["out"]),
            *wrong_pairs("kernel", "stride", "dilation"),
            *wrong_pairs("pad", least=0),
            *wrong_numbers("threads"),
            ("threads", 4097),
            *(("counts", c) for c in (3, floats(2, 3), (floats(3),), (floats(2), floats(3)), (floats(3), None))),
        ],
    ),
    "mean": (_kernels.bind_mean, MEAN, [*wrong_arrays(**without(MEAN)), *wrong_numbers("threads")]),
    "binary": (
        _kernels.bind_binary,
        BINARY,
        [
            *wrong_arrays(**without(BINARY)),
            ("b", floats(3, 2)),
            ("b", floats(1, 5)),
            ("activation", "cube"),
            ("activation", 3),
            *wrong_numbers("threads"),
        ],
    ),
    "activate": (_kernels.bind_activate, ACTIVATE, [*wrong_arrays(**without(ACTIVATE)), ("activation", "cube")]),
    "norm_pixels": (_kernels.bind_norm_pixels, NORM_PIXELS, [*wrong_arrays(**without(NORM_PIXELS)), ("eps", "small")]),
    "norm_runs": (
        _kernels.bind_norm_runs,
        NORM_RUNS,
        [
            *((name, value) for name, value in wrong_arrays(**without(NORM_RUNS)) if np.shape(value) != (0, 3)),
            ("x", floats(4, 7)),
            ("weight", floats(2, 4)),
        ],
    ),
    "convolution": (
        _kernels.CompiledConvolution,
        CONVOLUTION,
        [
            *wrong_arrays(**without(CONVOLUTION, "copies", "tap_offsets")),
            *wrong_orders(),
            *wrong_numbers("block", "groups", "band", "plane_rows", "channel_stride", "tile_pixels"),
            *wrong_pairs("stride"),
            *wrong_pairs("pad", least=0),
            ("block", 3),
            ("block", 5),
            ("groups", 2),
            ("groups", 5),
            *(
                (name, value)
                for name in ("in_shape", "out_shape")
                for value in (None, (1, 2), (0, 6, 7), (5, -6, 7), (2**40, 6, 7), (5, 6, 2**31), (3, 6, 7), (9, 6, 7))
                if (name, value) != ("in_shape", (9, 6, 7)) and (name, value) != ("in_shape", (3, 6, 7))
            ),
            ("indices", CONVOLUTION["indices"] + 3),
            ("indices", CONVOLUTION["indices"] - 1),
            ("activation", "cube"),
            ("copies", None),
            ("copies", np.zeros((3, 3))),
            ("copies", [[0, 0], [0, 1], [0, -1]]),
            ("copies", [[0, 2**40]] * 3),
            ("tap_offsets", np.full(9, 167)),
            ("tap_offsets", np.full(9, -1)),
            ("tap_offsets", np.zeros(8)),
            ("band", 9),
            ("plane_rows", 5),
            ("plane_rows", 9),
            ("channel_stride", 167),
            ("channel_stride", 2**30),
            ("copies", [[0, 0]]),
        ],
    ),
    "convolution of uint8": (
        _kernels.CompiledConvolution,
        INT8,
        [
            *wrong_arrays(**without(INT8, "copies", "tap_offsets")),
            *wrong_numbers("run_pixels"),
            ("bias", floats(8)),
            ("activation", "relu"),
            ("requantize", None),
            *(
                ("requantize", dataclasses.replace(REQUANTIZE, **{name: value}))
                for name, value in wrong_arrays(start=REQUANTIZE.start, factor=REQUANTIZE.factor)
                if getattr(value, "flags", None) is None or value.flags.c_contiguous  # others are copied
            ),
            *(
                ("requantize", dataclasses.replace(REQUANTIZE, **{name: value}))
                for name in ("padding", "zero", "low", "high", "residual_zero")
                for value in (-1, 256, None, 1.5, "2")
            ),
            ("requantize", dataclasses.replace(REQUANTIZE, residual_factor="much")),
            ("tap_offsets", np.array([0, 0, 0, 0, 0, 0, 0, 0, 15])),
        ],
    ),
    "bind of uint8": (
        lambda **a: bound(int8(), **{"x": bytes_of(5), "out": bytes_of(8), "residual": bytes_of(8)} | a),
        {},
        [
            *wrong_arrays(x=bytes_of(5), out=bytes_of(8), residual=bytes_of(8)),
            ("out", floats(1, 8, 6, 7)),
            ("scratch", floats(10)),
        ],
    ),
    "bind of uint8 to floats": (
        lambda **a: bound(
            int8(requantize=dataclasses.replace(REQUANTIZE, to_float=True)),
            **{"x": bytes_of(5), "residual": None} | a,
        ),
        {},
        [("residual", floats(1, 8, 6, 7)), ("out", bytes_of(8))],
    ),
    "convolution in place": (
        _kernels.CompiledConvolution,
        IN_PLACE,
        [
            ("out_shape", (8, 6, 8)),
            ("in_shape", (5, 5, 7)),
            ("channel_stride", 41),
            ("tap_offsets", np.ones(1, np.intp)),
        ],
    ),
    "depthwise": (
        _kernels.CompiledDepthwise,
        DEPTHWISE,
        [
            *wrong_arrays(**without(DEPTHWISE)),
            *wrong_pairs("in_size", "out_size", "stride", "dilation"),
            *wrong_pairs("pad", least=0),
            ("activation", "cube"),
        ],
    ),
    "bind of a convolution": (
        lambda **a: bound(convolution(), **a),
        {},
        [
            *wrong_arrays(
                x=floats(1, 5, 6, 7), out=floats(1, 8, 6, 7), residual=floats(1, 8, 6, 7), scratch=floats(840)
            ),
            ("x", floats(2, 5, 6, 7)),
            ("threads", 2),
            *wrong_numbers("threads"),
        ],
    ),
    "bind of a depthwise one": (
        lambda **a: bound(depthwise(), 8, **a),
        {},
        [
            *wrong_arrays(x=floats(1, 8, 6, 7), out=floats(1, 8, 6, 7), residual=floats(1, 8, 6, 7)),
            ("x", floats(2, 8, 6, 7)),
            *wrong_numbers("threads"),
        ],
    ),
    "both fused": (
        _kernels.CompiledFusedDepthwise,
        {"first": convolution(), "second": depthwise(), "band": 6},
        [
            ("first", None),
            ("first", depthwise()),
            ("first", int8()),
            ("second", None),
            ("second", convolution()),
            *wrong_numbers("band"),
            ("second", depthwise(in_size=(6, 8))),
            ("second", depthwise(values=floats(7, 3, 3), bias=None)),
            ("first", convolution(band=3, plane_rows=8)),
        ],
    ),
    "rows": (
        rows,
        {},
        [
            ("outs", []),
            ("outs", [floats(1, 4, 6, 7)]),
            ("outs", [floats(1, 4, 6, 6)] * 2),
            ("convolutions", [convolution()] * 2),
            ("convolutions", ["text"] * 2),
            ("convolutions", [int8()] * 2),
            ("convolutions", [depthwise()] * 2),
            ("x", floats(2, 5, 6, 7)),
            ("scratch", floats(839)),
            ("x", floats(1, 5, 6, 7).astype(np.float64)),
            *wrong_numbers("threads"),
        ],
    ),
}
if VECTOR_SETS:
    CASES["winograd"] = (
        _kernels.CompiledWinograd,
        WINOGRAD,
        [
            *wrong_arrays(**without(WINOGRAD)),
            *wrong_orders(),
            *wrong_numbers("block", "groups", "run", "call_tiles", "pitch", "size"),
            ("size", 3),
            ("pitch", 26),
            ("pitch", 2**30),
            ("run", 18),
            ("indices", WINOGRAD["indices"] + 3),
            *wrong_pairs("pad", least=0),
            ("out_shape", (12, 6, 7)),
            ("in_shape", (5, 6)),
            ("in_shape", (2, 6, 7)),
        ],
    )
for _, arguments, changes in CASES.values():
    if "kernel_set" in arguments:
        changes += [("kernel_set", name) for name in ("vliw", 3, "")]
        changes += [("dtype", name) for name in ("float31", "int32", 3, None)]


def refused(call, arguments, name, value):
    """Whether an error comes of it."""
    try:
        made = call(**arguments | {name: value})
        if callable(made):
            made()
    except (ValueError, TypeError) as error:
        return bool(str(error))
    return False


@pytest.mark.parametrize("name", CASES)
def test_what_fits_runs_and_what_does_not_is_refused(name):
    call, arguments, changes = CASES[name]
    made = call(**arguments)
    if callable(made):
        made()
    for argument, value in changes:
        assert refused(call, arguments, argument, value), f"{name} took {argument}={value!r}"


@pytest.mark.parametrize("name", ["a", "b", "out"])
def test_elements_that_are_not_aligned(name):
    """C may not read them as floats, and what it makes of it depends on the compiler."""
    shifted = np.zeros(BINARY[name].nbytes + 1, np.uint8)[1:].view(np.float32).reshape(BINARY[name].shape)
    with pytest.raises(ValueError, match=f"{name} is float32 .* and not aligned to 4 bytes; expected a"):
        _kernels.bind_binary(**BINARY | {name: shifted})


def test_outputs_that_cannot_be_written():
    frozen = floats(5)
    frozen.flags.writeable = False
    _kernels.bind_activate("generic", frozen, "relu", floats(5), 1)()
    with pytest.raises(ValueError, match="out is float32 .5. .*; expected a writable C-contiguous float32 array"):
        _kernels.bind_activate("generic", floats(5), "relu", frozen, 1)


@pytest.mark.parametrize(
    "kind", ["_Pool", "_Mean", "_Binary", "_Activate", "_NormPixels", "_NormRuns", "_Planes", "_Passes"]
)
def test_calls_that_nothing_is_bound_to(kind):
    call = getattr(_kernels, kind).__new__(getattr(_kernels, kind))
    with contextlib.suppress(ValueError):
        call()


@pytest.mark.parametrize(
    "kind", ["CompiledConvolution", "CompiledWinograd", "CompiledDepthwise", "CompiledFusedDepthwise"]
)
def test_objects_that_were_not_made(kind):
    with pytest.raises(TypeError):
        getattr(_kernels, kind).__new__(getattr(_kernels, kind))


def test_making_one_again_leaves_it_as_it_is():
    """What a bound call points to must not change under it."""
    made = convolution()
    call = bound(made, out=(out := floats(1, 8, 6, 7)))
    call()
    want = out.copy()
    with contextlib.suppress(TypeError):
        made.__init__(**CONVOLUTION | {"values": floats(1, 2)})
    call()
    np.testing.assert_array_equal(out, want)


def test_arrays_changed_after_the_check():
    indices, taps = CONVOLUTION["indices"].copy(), CONVOLUTION["tap_offsets"].copy()
    made = convolution(indices=indices, tap_offsets=taps)
    indices[:], taps[:] = 10**6, 10**9
    bound(made)()


def test_none_of_it_rests_on_asserts():
    done = subprocess.run(
        [sys.executable, "-O", __file__],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "all refused" and done.returncode == 0, done.stdout + done.stderr


def test_a_bound_call_costs_little():
    """No timing assertion on a shared machine beyond the order of magnitude: a parallel region would take over 1 us."""
    call = _kernels.bind_activate("generic", floats(64), "relu", floats(64), 1)
    assert min(timeit.repeat(call, number=1000, repeat=20)) / 1000 < 5e-6


if __name__ == "__main__":
    for name, (call, arguments, changes) in CASES.items():
        for argument, value in changes:
            if not refused(call, arguments, argument, value):
                print(name, "took", argument, value)
    print("all refused")
