"""Which row runs what: by CPU features, real rows and made-up ones, on CPUs that are not here.

A CPU is a set of feature names. Nothing of the made-up rows is run.
"""

from __future__ import annotations

import numpy as np
import pytest

from subp_ext import UniformBlockSparse, _kernels
from subp_ext.convolution import Convolution

AVX2 = ["sse2", "avx", "avx2", "fma"]
AVX512 = [*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"]

# Products of one type by five sets, worst first; that of avx512vnni comes in two tiles.
X86 = [
    ("generic", [], 1),
    ("avx2", AVX2[2:], 4),
    ("avxvnni", [*AVX2[2:], "avxvnni"], 4),
    ("avx512", AVX512[2:], 8),
    ("avx512vnni_4", [*AVX512[2:], "avx512vnni"], 4),
    ("avx512vnni_8", [*AVX512[2:], "avx512vnni"], 8),
    ("amx", [*AVX512[2:], "amx_tile", "amx_int8"], 16),
]
ARM = [
    ("generic", [], 1),
    ("neon", ["neon"], 8),
    ("dotprod", ["neon", "dotprod"], 8),
    ("i8mm", ["neon", "dotprod", "i8mm"], 8),
]


def table(rows):
    return [
        {"name": name, "operator": "conv2d", "dtype": "float32", "features": features, "channels": channels}
        for name, features, channels in rows
    ]


@pytest.mark.parametrize(
    "rows, features, channels, best, missing",
    [
        (X86, AVX2, 64, "avx2", {"avxvnni": "avxvnni", "avx512": "avx512f"}),
        (X86, [*AVX2, "avxvnni"], 64, "avxvnni", {"avx512": "avx512f", "amx": "amx_int8"}),
        (X86, AVX512, 64, "avx512", {"avx512vnni_8": "avx512vnni", "amx": "amx_tile"}),
        (X86, [*AVX512, "avxvnni"], 64, "avx512", {"avx512vnni_8": "avx512vnni"}),
        (X86, [*AVX512, "avx512vnni"], 64, "avx512vnni_8", {"amx": "amx_tile"}),
        (X86, [*AVX512, "avx512vnni"], 7, "avx512vnni_4", {}),
        (X86, [*AVX512, "avx512vnni"], 3, "generic", {}),
        (X86, ["sse2"], 64, "generic", {"avx2": "fma"}),
        (ARM, ["neon", "dotprod"], 64, "dotprod", {"i8mm": "i8mm"}),
        (ARM, ["neon", "i8mm"], 64, "neon", {"dotprod": "dotprod", "i8mm": "dotprod"}),
        (ARM, ["neon", "dotprod", "i8mm"], 64, "i8mm", {}),
    ],
)
def test_a_cpu_gets_the_best_row_it_can_run(rows, features, channels, best, missing):
    name, better = _kernels.choose_among(table(rows), features, "conv2d", "float32", channels=channels)
    assert name == best
    order = [row for row, _, wanted in rows if wanted <= channels]
    assert [row for row, _ in better] == order[: order.index(best) : -1]
    for row, feature in missing.items():
        assert dict(better)[row].startswith("this CPU lacks ") and feature in dict(better)[row]


def test_operators_and_windows_do_not_mix():
    rows = [
        {"name": "any", "operator": "depthwise", "dtype": "float32", "features": []},
        {"name": "3x3s1", "operator": "depthwise", "dtype": "float32", "features": ["avx2"], "size": 3, "stride": 1},
        {"name": "any__avx2", "operator": "pool", "dtype": "float32", "features": ["avx2"]},
    ]
    window = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1)}
    assert _kernels.choose_among(rows, AVX2, "depthwise", "float32", **window) == ("3x3s1", [])
    for change in ({"stride": (1, 2)}, {"kernel": (3, 4)}, {"dilation": (2, 1)}):
        assert _kernels.choose_among(rows, AVX2, "depthwise", "float32", **window | change) == ("any", [])
    assert _kernels.choose_among(rows, ["sse2"], "pool", "float32") is None
    assert _kernels.choose_among([], AVX512, "mean", "float32") is None


def test_features_and_operators_that_nobody_knows():
    with pytest.raises(ValueError, match="CPU feature 'avx1024' is not known; expected some of sse2"):
        _kernels.choose_among(table(X86), ["avx1024"], "conv2d", "float32")
    with pytest.raises(ValueError, match="operator 'conv9d' is not known; expected one of conv2d"):
        _kernels.choose(None, "conv9d", "float32")
    assert _kernels.choose(None, "conv2d", "float8") is None  # a type, though not of this build


SETS = {entry["name"]: entry for entry in _kernels.kernel_sets()}
FLOAT32_CONV2D = [row for row in _kernels.rows() if (row["operator"], row["dtype"]) == ("conv2d", "float32")]
USABLE = [name for name, entry in SETS.items() if entry["usable"]]


@pytest.mark.parametrize("forced", USABLE)
@pytest.mark.parametrize("operator, dtype", sorted({(row["operator"], row["dtype"]) for row in _kernels.rows()}))
def test_a_forced_set_admits_what_needs_no_more(forced, operator, dtype):
    """Each set has a row of every operator but winograd's and thread states, of its own or of one that needs less."""
    shape = {"size": 2} if operator.startswith("winograd") else {}
    found = _kernels.choose(forced, operator, dtype, **shape)
    rows = {row["name"]: row for row in _kernels.rows()}
    own = {row["set"] for row in rows.values() if (row["operator"], row["dtype"]) == (operator, dtype)}
    if found is None:
        assert operator.startswith(("winograd", "thread_state")) and forced not in own
        return
    assert set(rows[found[0]]["features"]) <= set(SETS[forced]["features"])
    assert rows[found[0]]["set"] == forced or forced not in own
    for name, why in found[1]:
        assert why == f"SUBP_KERNEL={forced} leaves it out" or not rows[name]["usable"]
        assert not set(rows[name]["features"]) <= set(SETS[forced]["features"])


def test_unforced_every_feature_of_this_cpu_counts():
    name, better = _kernels.choose(None, "conv2d", "float32", channels=16)
    usable = [row["name"] for row in FLOAT32_CONV2D if row["usable"] and row["channels"] <= 16]
    assert name == usable[-1]
    assert all(why.startswith("this CPU lacks ") for _, why in better)


def test_the_features_are_those_of_this_machine():
    features = _kernels.cpu_features()
    for entry in SETS.values():
        assert entry["usable"] == all(features[name] for name in entry["features"])


def test_an_algorithm_says_what_was_passed_over():
    layer = Convolution(np.ones((16, 1, 1, 1), np.float32), kernel_set="generic")
    (direct,) = layer.algorithms
    assert direct.kernel == "f32_ubsconv_4x8__generic"
    assert all(
        why == "SUBP_KERNEL=generic leaves it out" or why.startswith("this CPU") for _, why in direct.passed_over
    )
    assert len(direct.passed_over) == len([row for row in FLOAT32_CONV2D if row["set"] != "generic"])


def test_a_weight_of_a_type_that_no_kernel_takes():
    weight = UniformBlockSparse.from_dense(np.ones((4, 4, 1, 1), np.float32), 4)
    object.__setattr__(weight, "dtype", "int4")
    with pytest.raises(ValueError, match="of int4, which no convolution kernel takes; expected one of float32"):
        Convolution(weight)
