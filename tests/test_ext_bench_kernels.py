"""subp_ext.bench.kernels: its tables are timm's networks, and what it counts is what was asked.

The times themselves are not looked at. Runs of a hundredth of a second per layer, resnet18 and resnet50 at 224x224.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
from torch import nn

from subp_ext import UniformBlockSparse, _kernels
from subp_ext.bench import balance
from subp_ext.bench.kernels import SHAPES, main, read_shapes
from subp_ext.convolution import Convolution

NETWORKS = sorted(path.stem for path in SHAPES.glob("*.csv"))


def convolutions_of(network: str) -> list[tuple]:
    """(inputs, outputs, kernel, stride, groups, image size) of every convolution timm runs, in order."""
    found = []

    def hook(module, args, _):
        found.append(
            (module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], module.groups)
            + (args[0].shape[-1],)
        )

    model = timm.create_model(network).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(hook)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_table_is_the_network(network):
    # Squeeze-and-excitation works on single pixels, which the tables leave out.
    expected = sorted(shape for shape in convolutions_of(network) if shape[-1] > 1)
    layers = [layer for layer in read_shapes(network) if layer.size > 1]
    found = sorted((x.inputs, x.outputs, x.kernel, x.stride, x.groups, x.size) for x in layers)
    assert found == expected


def test_json_counts_the_work_that_was_asked(tmp_path, capsys):
    file = tmp_path / "bench.json"
    flags = ["--shapes", "resnet50", "--prune-rate", "0.516", "--threads", "1", "--seconds", "0.01", "--rounds", "1"]
    main([*flags, "--json", str(file)])
    document = json.loads(file.read_text())
    dense_macs = sum(r["count"] * r["dense_gflops"] * r["ms"] * 1e6 / 2 for r in document["layers"])
    kept_macs = sum(r["count"] * r["kept_gflops"] * r["ms"] * 1e6 / 2 for r in document["layers"])
    # All of resnet50 but its classifier; see the published 4.089 G and, at 66/128, 2.04 G.
    assert dense_macs == pytest.approx(4.089e9 - 2048 * 1000, rel=1e-3)
    assert kept_macs == pytest.approx(2.04e9, rel=5e-3)
    assert document["peak_gflops"] > 0 and document["share_of_peak"] > 0
    assert "time-weighted share of peak" in capsys.readouterr().out


def test_torch_can_stand_beside_it(tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "subp_ext.bench.kernels", "--shapes", "resnet18", "--against", "torch"]
    flags = ["--seconds", "0.01", "--rounds", "1", "--threads", "1", "--json", str(file)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=200, check=True)
    assert "torch ms" in done.stdout
    assert all(layer["torch_ms"] > 0 for layer in json.loads(file.read_text())["layers"])


def test_balance_compares_equal_totals(tmp_path, capsys):
    file, picture = tmp_path / "balance.json", tmp_path / "balance.png"
    flags = ["--shapes", "resnet18", "--threads", "2", "--seconds", "0.01", "--rounds", "1", "--balance"]
    main([*flags, "--json", str(file), *(["--plot", str(picture)] if find_spec("matplotlib") else [])])
    document = json.loads(file.read_text())
    assert [b["threads"] for b in document["balance"]] == [1, 2]
    assert all(b[f"{kind}_ms"] > 0 for b in document["balance"] for kind in ("uniform", "static", "dynamic"))
    assert [i["threads"] for i in document["imbalance"]] == [2, 4, 8, 16]
    assert "busiest thread over average" in capsys.readouterr().out
    if find_spec("matplotlib"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        balance.plot([], [], tmp_path / "balance.png")


@pytest.mark.parametrize("rate", [0.0, 0.516, 0.99])
def test_free_counts_add_up_to_the_uniform_ones(rate):
    layer = next(layer for layer in read_shapes("resnet50") if layer.pruned)
    counts = balance.free_counts(layer, rate, 16, np.random.default_rng(0))
    uniform = balance.uniform_count(layer, rate)
    assert len(counts) == 4 and counts.sum() == 4 * uniform and counts.min() >= 1
    assert (len(set(counts)) == 1) == (uniform in (1, layer.inputs))


def test_imbalance_by_hand():
    counts = np.array([4, 2, 1, 1])
    assert balance.static_imbalance(counts, 2) == 6 / 4
    assert balance.dynamic_imbalance(counts, 2) == 4 / 4
    assert balance.static_imbalance(np.array([3, 3, 3]), 2) == 6 / 4.5


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1)])
def test_rows_with_counts_of_their_own_compute_what_each_does_alone(kernel, padding, dynamic):
    rng, rows = np.random.default_rng(0), []
    for count in (3, 7, 1):
        values = rng.standard_normal((1, count, kernel, kernel, 16), np.float32)
        indices = np.sort(rng.permutation(12)[:count]).astype(np.int32)[None]
        rows.append(Convolution(UniformBlockSparse(values, indices, (16, 12, kernel, kernel), 16, 1), None, 1, padding))
    x = rng.standard_normal((1, 12, 17, 15), np.float32)
    compiled, outs = (
        [row.prepare(17, 15).compiled for row in rows],
        [np.empty((1, 16, 17, 15), np.float32) for _ in rows],
    )
    _kernels.run_rows(compiled, x, outs, np.empty(max(1, compiled[0].scratch), np.float32), 2, dynamic)
    for row, out in zip(rows, outs, strict=True):
        assert np.array_equal(out, row(x))


def test_a_bad_rate_is_refused():
    with pytest.raises(SystemExit):
        main(["--prune-rate", "1"])
