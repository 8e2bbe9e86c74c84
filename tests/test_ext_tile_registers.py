"""AMX's tile registers: the emulation that kernels are tested on, against the manual; the same on the instructions
where the CPU has them. And the order of weights that the kernel loads.

Wanted numbers are worked out by hand: each case comes out differently in another order of sums, with denormals, or
rounded otherwise. The kernel itself is compared with an oracle by the harness (test_ext_harness.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from harness import run as harness

from subp_ext import _kernels
from subp_ext.dtypes import DTYPES
from subp_ext.geometry import PACKINGS

BFLOAT16 = DTYPES["bfloat16"]
KERNELS, EMULATION = harness.ROOT / "ext/kernels", harness.ROOT / "tests/harness"
SOURCE = """
#include "tile_registers.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT void multiply(const tile_config *config, const void *a, const void *b, void *c) {
    tile_configure(config);
    tile_load(1, a, config->row_bytes[1]);
    tile_load(2, b, config->row_bytes[2]);
    tile_load(0, c, config->row_bytes[0]);
    tile_dot(0, 1, 2);
    tile_store(0, c, config->row_bytes[0]);
    tile_release();
}
"""

if platform.machine() != "x86_64":
    pytest.skip("the tile registers are those of x86-64", allow_module_level=True)
if reason := harness.missing("x86_64"):
    pytest.skip(reason, allow_module_level=True)
EMULATED = ["-DSUBP_EMULATED_TILES", f"-I{EMULATION}"]
BUILDS = {"emulated": EMULATED, "instructions": ["-mamx-tile", "-mamx-bf16"]}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "multiply.c").write_text(SOURCE)
    for name, flags in BUILDS.items():
        command = ["gcc", "-O1", "-std=c11", "-shared", "-fPIC", f"-I{KERNELS}", *flags, str(folder / "multiply.c")]
        subprocess.run([*command, "-o", str(folder / f"{name}.so"), "-lm"], check=True)
    return folder


def config(shapes):
    """LDTILECFG's 64 bytes for shapes (rows, bytes of a row) of the first registers."""
    raw = np.zeros(64, np.uint8)
    raw[0] = 1
    for n, (rows, row_bytes) in enumerate(shapes):
        raw[16 + 2 * n], raw[48 + n] = row_bytes, rows
    return raw


@pytest.fixture(params=BUILDS)
def multiply(request, libraries):
    if request.param == "instructions" and not _kernels.cpu_features()["amx_bf16"]:
        pytest.skip("this CPU has no AMX, or the system does not permit it")
    library = ctypes.CDLL(str(libraries / f"{request.param}.so"))

    def call(a, b, c):
        """c + a @ b, with b `[pairs, n, 2]` as the instruction wants it."""
        a, b, c = BFLOAT16.from_float(np.float32(a)), BFLOAT16.from_float(np.float32(b)), np.array(c, np.float32)
        shapes = config([(len(c), 4 * c.shape[1]), (len(a), 2 * a.shape[1]), (len(b), 4 * b.shape[1])])
        library.multiply(*(array.ctypes.data_as(ctypes.c_void_p) for array in (shapes, a, b, c)))
        return c

    return call


def test_products_of_whole_numbers_are_exact(multiply):
    rng = np.random.default_rng(1)
    for m, pairs, n in ((16, 16, 16), (16, 3, 16), (1, 1, 1), (5, 16, 7)):
        a, b = rng.integers(-8, 9, (m, 2 * pairs)), rng.integers(-8, 9, (2 * pairs, n))
        c = rng.integers(-99, 99, (m, n))
        got = multiply(a, b.reshape(pairs, 2, n).transpose(0, 2, 1).copy(), c)
        np.testing.assert_array_equal(got, c + a @ b)


# A row of a, where b is all ones but for the given factor, and c.
@pytest.mark.parametrize(
    "row, factor, held, want",
    [
        # Even numbers: 2**24 + 1, a tie that goes to 2**24; odd ones: -2**24 + 1. One after the other they would be 2.
        ([2.0**24, -(2.0**24), 1, 1], 1, 0, 1),
        ([2.0**24, 0, 3, 0], 1, 0, 2.0**24 + 4),  # a tie to the even number above
        ([1, 0, 0, 0], 1, 2.0**24, 2.0**24),  # what was held is added to the sum, rounded likewise
        ([2.0**-64, 0, 0, 0], 2.0**-63, 0, 0),  # a product below the normal numbers
        ([2.0**-64, 0, 0, 0], 2.0**-62, 0, 2.0**-126),  # and the least that is not
        ([2.0**-127, 0, 0, 0], 2.0**100, 0, 0),  # an operand below them
        ([0, 0, 0, 0], 1, 2.0**-130, 0),  # and what was held
        ([np.inf, 1, 1, 1], 1, 0, np.inf),
        ([np.inf, 0, -np.inf, 0], 1, 0, np.nan),
    ],
)
def test_sums_are_in_the_order_of_the_manual(multiply, row, factor, held, want):
    np.testing.assert_array_equal(multiply([row], np.full((2, 1, 2), factor), [[held]]), [[want]])


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(1, 4), (2, 4), (1, 4)], "operands whose shapes do not fit"),
        ([(1, 4), (1, 8), (1, 4)], "operands whose shapes do not fit"),
        ([(1, 8), (1, 4), (1, 4)], "operands whose shapes do not fit"),
        ([(1, 4), (1, 4), (0, 0)], "a register that is not configured"),
        ([(17, 4), (1, 4), (1, 4)], "a shape that no register has"),
        ([(1, 68), (1, 4), (1, 4)], "a shape that no register has"),
        ([(1, 4)] * 9, "more registers than there are"),
        (None, "a palette other than 1"),
    ],
)
def test_the_emulation_refuses_what_the_cpu_refuses(libraries, shapes, message):
    raw = np.zeros(64, np.uint8) if shapes is None else config(shapes)
    program = (
        f"import ctypes; a = ctypes.create_string_buffer(4096); "
        f"ctypes.CDLL({str(libraries / 'emulated.so')!r}).multiply(bytes({raw.tolist()}), a, a, a)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode < 0 and message in done.stderr


def packed_by_hand(values, words, registers):
    """What a kernel reads of a block row `[K, taps, N]`: word by word, tap by tap, or as registers of 16 words.

    A channel alone in its word is there twice, with half of its weight.
    """
    if len(values) % 2:
        half = BFLOAT16.from_float(BFLOAT16.to_float(values[-1:]) / 2)
        values = np.concatenate([values[:-1], half, half])
    pairs = [values[2 * w : 2 * w + 2] for w in range(words)]
    order = []
    for first in range(0, words, 16 if registers else 1):
        chunk = pairs[first : first + (16 if registers else 1)]
        for tap in range(values.shape[1]):
            for channel in range(values.shape[2]):
                for pair in chunk:
                    order += [pair[0][tap, channel], pair[1][tap, channel]]
    return np.array(order, values.dtype)


@pytest.mark.parametrize("kept, taps", [(1, 9), (31, 1), (32, 3), (33, 2), (70, 1)])
@pytest.mark.parametrize(
    "tiles",
    [
        [(16, 64, "tile_registers")],
        [(16, 64, "tile_registers"), (16, 64, "tile_registers")],
        [(16, 64, "tile_registers"), (8, 48, "words"), (1, 128, "words")],
    ],
)
def test_weights_are_packed_as_registers(kept, taps, tiles):
    block, layer = sum(channels for channels, _, _ in tiles), SimpleNamespace(tiles=tiles)
    values = BFLOAT16.from_float(np.random.default_rng(kept).standard_normal((2, kept, 1, taps, block), np.float32))
    want = []
    for row in values[:, :, 0]:
        ends = np.cumsum([channels for channels, _, _ in tiles])
        parts = zip(ends, tiles, strict=True)
        want.append(
            np.concatenate(
                [
                    packed_by_hand(row[:, :, end - channels : end], -(-kept // 2), packing == "tile_registers")
                    for end, (channels, _, packing) in parts
                ]
            )
        )
    np.testing.assert_array_equal(PACKINGS["tile_registers"](values, layer), want)


AVX512 = ["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16"]


def test_blocks_of_sixteen_or_more_channels_take_amx_where_it_is_permitted():
    rows = [row for row in _kernels.rows() if row["dtype"] == "bfloat16" and row["operator"] == "conv2d"]
    amx = "bf16_ubsconv_16x64__amx_bf16"

    def chosen(features, channels):
        return _kernels.choose_among(rows, features, "conv2d", "bfloat16", channels=channels)

    for channels in (16, 24, 32, 64):
        assert chosen([*AVX512, "amx_tile", "amx_bf16"], channels) == (amx, [])
        name, better = chosen(AVX512, channels)
        assert name.endswith("__avx512bf16") and better == [(amx, "this CPU lacks amx_tile, amx_bf16")]
    assert chosen([*AVX512, "amx_tile", "amx_bf16"], 8)[0].endswith("__avx512bf16")


@pytest.mark.slow
def test_convolutions_of_a_package_built_with_emulated_tiles(tmp_path):
    """From Python's packing to threads: test_ext_bf16_convolution.py, on the set that this CPU cannot run."""
    if not all(_kernels.cpu_features()[name] for name in AVX512):
        pytest.skip("this CPU lacks what the kernels need beside AMX")
    shutil.copytree(harness.ROOT / "ext", tmp_path / "ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy2(harness.ROOT / name, tmp_path)
    (tmp_path / "subp_ext").symlink_to("ext")
    environment = {**os.environ, "CFLAGS": " ".join(EMULATED), "PYTHONPATH": str(tmp_path)}
    tests = [str(harness.ROOT / "tests/test_ext_bf16_convolution.py"), "-k", "amx_bf16", "-p", "no:cacheprovider"]
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-m", "pytest", "-q", *tests]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
