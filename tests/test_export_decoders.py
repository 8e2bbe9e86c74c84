"""Decoders through the exporter: batch norm and activation in transposed convolutions, and a whole U-Net."""

import numpy as np
import pytest
import torch
from torch import nn

import subp_ext
from subp_dist.bench.files import NetworkFiles
from subp_dist.export import build_graph, export_subp


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_and_activation_become_part_of_a_transposed_convolution(groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=groups)
    model = nn.Sequential(layer, nn.BatchNorm2d(12), nn.ReLU()).train()
    images = torch.randn(4, 8, 6, 5)
    model(images)
    graph = build_graph(model.eval(), (8, 6, 5))
    (node,) = graph.nodes
    assert node.op == "conv_transpose2d" and node.args["activation"] == "relu"
    with torch.inference_mode():
        want = model(images).numpy()
    np.testing.assert_allclose(subp_ext.Session(graph, threads=1).run(images.numpy()), want, atol=1e-5)


@pytest.mark.parametrize("name", ["unet_resnet18", pytest.param("unet_resnet18_transposed", marks=pytest.mark.slow)])
def test_a_segmentation_network_runs_on_kernels_alone(name, tmp_path):
    network = NetworkFiles(tmp_path, name, 0.5, 16, image_size=64).network
    export_subp(network.model, tmp_path / "model.subp", network.input_size, network.metadata)
    session = subp_ext.Session(tmp_path / "model.subp", threads=1)
    images = torch.randn(2, *network.input_size)
    with torch.inference_mode():
        want = network.model(images).numpy()
    np.testing.assert_allclose(session.run(images.numpy()), want, atol=1e-4 * np.abs(want).max())
    report = session.report(images[:1].numpy())
    assert not report.fallbacks and report.shares["sparse"] > 0.5
    joined = [row for row in report.rows if row.op == "cat"]
    assert len(joined) == 4 and all(row.kernel == "none" for row in joined)  # computed in place
