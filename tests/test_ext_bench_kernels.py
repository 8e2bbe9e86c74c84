"""subp_ext.bench_kernels: its tables are timm's networks, and what it counts is what was asked.

The times themselves are not looked at. Runs of a hundredth of a second per layer, resnet18 and resnet50 at 224x224.
"""

import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from subp_ext.bench_kernels import SHAPES, main, read_shapes

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
    command = [sys.executable, "-m", "subp_ext.bench_kernels", "--shapes", "resnet18", "--against", "torch"]
    flags = ["--seconds", "0.01", "--rounds", "1", "--threads", "1", "--json", str(file)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=200, check=True)
    assert "torch ms" in done.stdout
    assert all(layer["torch_ms"] > 0 for layer in json.loads(file.read_text())["layers"])


def test_a_bad_rate_is_refused():
    with pytest.raises(SystemExit):
        main(["--prune-rate", "1"])
