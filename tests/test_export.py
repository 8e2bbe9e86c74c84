"""subp_dist.export: tracing, fusing and packing, against torch itself.

Networks: small members of families with different operators, 64x64 images, batch 3 after tracing with another batch;
weights random, batch-norm statistics live. Tolerance: 1e-4 of the largest logit in float32. Out of scope: the zoo.
"""

from collections import Counter

import numpy as np
import pytest
import timm
import torch
from torch import nn

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export import build_graph, check_exportable, export_subp
from subp_dist.parametrization import mask_weight
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

FAMILIES = [
    "test_resnet",
    "test_byobnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "resnext26ts",
    "regnety_002",
    "tf_efficientnet_lite0",
]


def live(name: str, **kwargs) -> nn.Module:
    """A model whose batch-norm statistics are those of data, not the initial zeros and ones."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def pruned(model: nn.Module, rate: float = 0.5, block_size: int = 16) -> SUBPPruner:
    pruner = SUBPPruner(model, PruneSchedule(rate, 0, 0), block_size=block_size)
    pruner.step(0)
    return pruner


def largest_difference(model: nn.Module, session: subp_ext.Session) -> float:
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images).numpy()
    return float(np.abs(session.run(images.numpy()) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_exported_network_computes_what_torch_does(name, tmp_path):
    model = live(name)
    pruner = pruned(model)
    graph = export_subp(model, tmp_path / "model.subp", (3, 64, 64), {"model": name})
    assert largest_difference(model, subp_ext.Session(tmp_path / "model.subp")) < 1e-4
    packed = {key for key, value in graph.constants.items() if isinstance(value, subp_ext.UniformBlockSparse)}
    assert packed == {f"{layer}.weight" for layer in pruner.layers}
    assert not [node for node in graph.nodes if "batch_norm" in node.op]


def test_kept_blocks_are_the_masks(tmp_path):
    model = live("test_resnet")
    pruner = pruned(model, rate=0.75, block_size=8)
    graph = build_graph(model, (3, 64, 64))
    for name, mask in pruner.masks.items():
        packed = graph.constants[f"{name}.weight"]
        rows, kept = packed.indices.shape
        found = np.zeros(mask.shape, bool)
        found[np.arange(rows)[:, None], packed.indices] = True
        assert (found == mask.numpy()).all() and kept == mask.sum(1)[0]


def test_pruned_linear_layers_stay_sparse(tmp_path):
    model = live("test_convnext")
    rate = PruneSchedule(0.5, 0, 0)
    pruner = SUBPPruner(model, rate, block_size=16, prune_linear=True)
    pruner.step(0)
    linear = [name for name in pruner.layers if isinstance(model.get_submodule(name), nn.Linear)]
    graph = export_subp(model, tmp_path / "model.subp", (3, 64, 64), {})
    session = subp_ext.Session(tmp_path / "model.subp")
    assert largest_difference(model, session) < 1e-4
    packed = {name for name, value in graph.constants.items() if isinstance(value, subp_ext.UniformBlockSparse)}
    assert linear and packed == {f"{name}.weight" for name in pruner.layers}
    sparse = [row for row in session.report().rows if row.kept_share == 0.5]
    assert {"linear", "conv2d"} == {row.op for row in sparse} and len(sparse) == len(packed)
    export_subp(live("test_convnext"), tmp_path / "dense.subp", (3, 64, 64), {})
    sizes = [(tmp_path / name).stat().st_size for name in ("model.subp", "dense.subp")]
    assert sizes[1] - sizes[0] > 0.49 * 4 * sum(model.get_submodule(name).weight.numel() for name in linear)


class Tied(nn.Module):
    """A linear layer whose weight is also read as it is."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 1), nn.Linear(32, 32)

    def forward(self, x):
        features = self.head(self.stem(x).mean((2, 3)))
        return features @ self.head.weight


def test_a_masked_weight_that_is_also_read_otherwise_stays_dense(tmp_path):
    torch.manual_seed(0)
    model = Tied().eval()
    mask_weight(model.head, 16).mask[:, ::2] = False
    graph = export_subp(model, tmp_path / "model.subp", (3, 8, 8), {})
    assert isinstance(graph.constants["head.weight"], np.ndarray)
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        expected = model(images).numpy()
    found = subp_ext.Session(tmp_path / "model.subp").run(images.numpy())
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_block_that_trained_to_zero_is_still_packed_uniformly(tmp_path):
    model = live("test_resnet")
    nn.init.zeros_(model.layer1[0].bn2.weight) if hasattr(model, "layer1") else None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::2] = 0
    pruned(model)
    export_subp(model, tmp_path / "model.subp", (3, 64, 64), {})
    assert largest_difference(model, subp_ext.Session(tmp_path / "model.subp")) < 1e-4


def test_batch_norm_activation_and_residual_are_fused():
    graph = build_graph(live("resnet10t"), (3, 64, 64))
    operators = Counter(node.op for node in graph.nodes)
    assert not {"relu", "add", "_native_batch_norm_legit_no_training", "getitem"} & operators.keys()
    residuals = [node for node in graph.nodes if node.args.get("residual") is not None]
    assert len(residuals) == 4 and all(node.args["activation"] == "relu" for node in residuals)


def test_padding_of_same_convolutions_is_folded():
    graph = build_graph(live("tf_efficientnet_lite0"), (3, 64, 64))
    assert not [node for node in graph.nodes if "pad" in node.op]
    paddings = [node.args.get("padding", [0, 0]) for node in graph.nodes if node.op == "conv2d"]
    assert any(isinstance(padding[0], list) for padding in paddings), "stride 2 on an even size pads one side only"


class Preactivated(nn.Module):
    """Batch norms of what no convolution can take in: a joint, and a result that is read twice; one has no scale."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(19, 16, 1)
        self.joint_norm, self.norm = nn.BatchNorm2d(19), nn.BatchNorm2d(16, affine=False)

    def forward(self, x):
        first = self.a(x)
        second = self.b(torch.relu(self.joint_norm(torch.cat([x, first], 1))))
        return (torch.nn.functional.silu(self.norm(second) + first) + second).mean((2, 3))[:, :10]


def test_batch_norms_before_activations_become_a_convolution_of_single_channels(tmp_path):
    torch.manual_seed(2)
    model = Preactivated().train()
    with torch.no_grad():
        model(1 + 3 * torch.randn(8, 3, 64, 64))
    graph = export_subp(model.eval(), tmp_path / "model.subp", (3, 64, 64), {})
    assert {node.op for node in graph.nodes} == {"conv2d", "cat", "add", "mean", "slice"}
    session = subp_ext.Session(tmp_path / "model.subp")
    assert largest_difference(model, session) < 1e-5
    assert not session.report().fallbacks and graph.inputs[0].shape == (None, 3, None, None)


class Awkward(nn.Module):
    """What a fusion must leave alone: shared results, shared weights, broadcast sums, activations read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.other_norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x):
        first = self.a(x)
        shared = self.norm(first) + first
        twice = torch.relu(self.b(shared)) + self.other_norm(self.b(shared))
        pooled = twice.mean((2, 3), keepdim=True)
        gated = self.b(twice) + pooled
        doubled = torch.relu(gated + gated)
        return torch.nn.functional.leaky_relu(doubled - 0.1, 0.2).flatten(1)[:, :10]


def test_awkward_graphs_stay_right(tmp_path):
    torch.manual_seed(1)
    model = Awkward().train()
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    graph = build_graph(model.eval(), (3, 64, 64))
    assert largest_difference(model, subp_ext.Session(graph)) < 1e-5


def test_export_leaves_the_model_as_it_is(tmp_path):
    model = live("test_resnet")
    pruned(model)
    model.train()
    keys, images = list(model.state_dict()), torch.randn(2, 3, 64, 64)
    export_subp(model, tmp_path / "model.subp", (3, 64, 64), {})
    assert model.training and list(model.state_dict()) == keys
    model(images).sum().backward()


def test_metadata_reaches_the_session(tmp_path):
    metadata = {"model": "test_resnet", "mean": [0.5], "class_names": ["a", "b"], "empty": None}
    export_subp(live("test_resnet"), tmp_path / "model.subp", (3, 64, 64), metadata)
    found = subp_ext.Session(tmp_path / "model.subp").metadata
    assert found["mean"] == [0.5] and found["class_names"] == ["a", "b"] and "empty" not in found


class Sorts(nn.Module):
    def forward(self, x):
        return x.flatten(1).sort(dim=1).values[:, :10]


def test_an_unknown_operator_is_named():
    with pytest.raises(UsageError, match=r"Sorts cannot be exported: subp_ext has no operator sort \(node sort\)"):
        check_exportable(Sorts(), (3, 8, 8))


class Branches(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] if x.sum() > 0 else -x.flatten(1)[:, :10]


def test_a_model_that_cannot_be_traced_says_so():
    with pytest.raises(UsageError, match=r"Branches cannot be traced for export: .*--no-export"):
        check_exportable(Branches(), (3, 8, 8))


def test_what_the_runtime_does_not_run_is_refused_before_a_training(monkeypatch):
    def refuse(graph):
        raise ValueError("node 'a' (relu): no")

    monkeypatch.setattr(subp_ext, "Session", refuse)
    with pytest.raises(UsageError, match=r"subp_ext does not run ReLU: node 'a' \(relu\): no; pass --no-export"):
        check_exportable(nn.ReLU(), (3, 8, 8))


@pytest.mark.parametrize("name, free", [("test_resnet", True), ("tf_efficientnet_lite0", False)])
def test_image_sizes_are_free_where_the_network_allows_it(name, free, tmp_path):
    """TensorFlow's padding depends on the remainder of the size, and is baked in when traced."""
    model = live(name)
    graph = export_subp(model, tmp_path / "model.subp", (3, 64, 64), {"input_size": [3, 64, 64]})
    session, images = subp_ext.Session(tmp_path / "model.subp"), torch.randn(2, 3, 81, 70)
    assert graph.inputs[0].shape == ((None, 3, None, None) if free else (None, 3, 64, 64))
    if free:
        with torch.inference_mode():
            expected = model(images).numpy()
        assert np.abs(session.run(images.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()
    else:
        with pytest.raises(ValueError, match=r"has shape \[2, 3, 81, 70\]; expected \[any, 3, 64, 64\]"):
            session.run(images.numpy())
