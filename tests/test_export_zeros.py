"""Zeros of other trainings: found in blocks of any 1xN, packed, and told of; weights files with their wrappings.

Networks: timm's test_resnet at 64x64 and single layers. Oracle: torch with the same weights, 1e-4 of the range.
"""

import argparse
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import subp_ext
from subp_dist import export_model
from subp_dist.errors import UsageError
from subp_dist.export.__main__ import cli, parse_args
from subp_dist.export.weights import model_of_weights, read_weights


def prune(weight, block_size, kept, generator=None):
    """Zeros in blocks of 1xN; `kept(row)` is how many blocks a row keeps."""
    rows = -(-weight.shape[0] // block_size)
    for row in range(rows):
        gone = torch.rand(weight.shape[1], generator=generator).argsort()[kept(row) :]
        weight.data[row * block_size : (row + 1) * block_size, gone] = 0


def packed(graph):
    return {name: c for name, c in graph.constants.items() if isinstance(c, subp_ext.UniformBlockSparse)}


def compare(model, path, images):
    with torch.inference_mode():
        expected = model.eval()(images)
    found = subp_ext.Session(path).run(images.numpy())
    for ours, theirs in zip(*((x if isinstance(x, (list, tuple)) else [x]) for x in (found, expected)), strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4 * np.ptp(theirs.numpy())


@pytest.mark.parametrize("block_size, outputs, groups", [(16, 64, 1), (8, 64, 1), (32, 64, 1), (12, 48, 1), (8, 64, 2)])
def test_the_block_size_is_found(block_size, outputs, groups, tmp_path):
    torch.manual_seed(0)
    layer = nn.Conv2d(32 * groups, outputs, 3, padding=1, groups=groups)
    prune(layer.weight, block_size, lambda row: 16)
    summary = export_model(layer, torch.randn(1, 32 * groups, 12, 12), tmp_path / "model.subp")
    (weight,) = packed(subp_ext.load(tmp_path / "model.subp")).values()
    assert weight.block_size == block_size and weight.indices.shape[1] == 16
    assert f"1 layers in 1x{block_size} blocks, 50.0% kept" in str(summary) and "padding" not in str(summary)
    compare(layer, tmp_path / "model.subp", torch.randn(3, 32 * groups, 9, 13))


@pytest.mark.parametrize("outputs, groups", [(64, 1), (152, 2)])
def test_channels_of_a_row_are_found_anywhere_in_their_group(outputs, groups, tmp_path):
    torch.manual_seed(0)
    layer = nn.Conv2d(32 * groups, outputs, 3, padding=1, groups=groups)
    per_group = outputs // groups
    for part in layer.weight.data.chunk(groups):
        prune(part, 16, lambda row: 16)
        part.copy_(part[torch.randperm(per_group)])
    summary = export_model(layer, torch.randn(1, 32 * groups, 12, 12), tmp_path / "model.subp")
    (weight,) = packed(subp_ext.load(tmp_path / "model.subp")).values()
    assert weight.block_size == 16 and weight.indices.shape == (groups * -(-per_group // 16), 16)
    assert not np.array_equal(weight.order, np.arange(outputs))
    assert "1 layers in 1x16 blocks, 50.0% kept" in str(summary) and "padding" not in str(summary)
    compare(layer, tmp_path / "model.subp", torch.randn(3, 32 * groups, 9, 13))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_blocks_of_output_channels(groups, tmp_path):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(32 * groups, 48 * groups, 4, 2, 1, groups=groups)
    model = nn.Sequential(up, nn.BatchNorm2d(48 * groups), nn.ReLU(), nn.Conv2d(48 * groups, 8, 1))
    of_outputs = up.weight.data.view(groups, 32, 48, 4, 4)  # of a group: inputs, outputs, and a kernel for both
    for group in range(groups):
        for row in range(3):
            of_outputs[group, torch.randperm(32)[16:], 16 * row : 16 * row + 16] = 0
    summary = export_model(model, torch.randn(1, 32 * groups, 12, 12), tmp_path / "model.subp")
    (weight,) = packed(subp_ext.load(tmp_path / "model.subp")).values()
    assert weight.block_size == 16 and weight.indices.shape == (3 * groups, 16)
    assert "1 layers in 1x16 blocks, 50.0% kept" in str(summary)
    compare(model, tmp_path / "model.subp", torch.randn(3, 32 * groups, 9, 13))


def test_rows_of_different_counts_are_padded_to_the_longest(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 1))
    prune(model[0].weight, 16, lambda row: (8, 16, 12, 4)[row])
    summary = export_model(model, torch.randn(1, 32, 12, 12), tmp_path / "model.subp")
    (weight,) = packed(subp_ext.load(tmp_path / "model.subp")).values()
    assert weight.indices.shape == (4, 16) and summary.sparse[0].padding == (64 - 40) / 64
    assert "37.5% of their blocks are padding" in str(summary)
    compare(model, tmp_path / "model.subp", torch.randn(3, 32, 9, 13))


@pytest.mark.parametrize("zeros", ["none", "scattered", "one_dense_row", "all"])
def test_zeros_that_do_not_pay_stay_dense(zeros, tmp_path):
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 1)
    if zeros == "scattered":
        layer.weight.data[torch.rand_like(layer.weight) < 0.5] = 0
    elif zeros == "one_dense_row":
        prune(layer.weight, 16, lambda row: 32 if row == 2 else 4)
    elif zeros == "all":
        layer.weight.data.zero_()
    export_model(layer, torch.randn(1, 32, 12, 12), tmp_path / "model.subp")
    assert len(packed(subp_ext.load(tmp_path / "model.subp"))) == (zeros == "all")
    compare(layer, tmp_path / "model.subp", torch.randn(3, 32, 9, 13)) if zeros != "all" else None


def test_linear_layers(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    prune(layer.weight, 16, lambda row: 16)
    export_model(layer, torch.randn(4, 64), tmp_path / "model.subp")
    (weight,) = packed(subp_ext.load(tmp_path / "model.subp")).values()
    assert weight.block_size == 16 and weight.indices.shape == (3, 16)
    compare(layer, tmp_path / "model.subp", torch.randn(5, 64))


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            prune(module.weight, 16, lambda row, half=module.in_channels // 2: half)
    return model.eval()


WRAPPINGS = {
    "plain.safetensors": lambda state: state,
    "plain.pth": lambda state: state,
    "timm.pth.tar": lambda state: {
        "state_dict": {key: value + 1 for key, value in state.items()},
        "state_dict_ema": {f"module.{key}": value for key, value in state.items()},
        "args": argparse.Namespace(model="test_resnet"),
        "epoch": 3,
    },
    "lightning.ckpt": lambda state: {
        "state_dict": {f"net.model.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {},
    },
    "averaged.pt": lambda state: {
        "model": {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.ones(1)}
    },
    "detection.pth": lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_weights_in_the_wrappings_of_others(pruned, name, tmp_path):
    wrapped = WRAPPINGS[name]({key: value.contiguous() for key, value in pruned.state_dict().items()})
    (save_file if name.endswith("safetensors") else torch.save)(wrapped, tmp_path / name)
    model, arguments = model_of_weights(tmp_path / name, "test_resnet")
    assert arguments == {"num_classes": 7, "in_chans": 3}
    assert all(torch.equal(value, pruned.state_dict()[key]) for key, value in model.state_dict().items())


def export(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["subp-export", *map(str, arguments)])
        cli()


@pytest.mark.parametrize("flags, outputs", [((), [7]), (("--num-classes", 0), [None]), (("--features-only",), None)])
def test_the_command_runs_them_sparse(pruned, flags, outputs, tmp_path, capsys):
    save_file({k: v.contiguous() for k, v in pruned.state_dict().items()}, tmp_path / "w.safetensors")
    output = tmp_path / "model.subp"
    export(tmp_path / "w.safetensors", "--model", "test_resnet", "--image-size", 64, "--output", output, *flags)
    text = capsys.readouterr().out
    assert "1x16 blocks, 50" in text and "every image is computed alone" in text
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        if outputs is None:
            expected = pruned.forward_intermediates(images, intermediates_only=True)
        elif outputs == [None]:
            expected = [pruned.forward_head(pruned.forward_features(images), pre_logits=True)]
        else:
            expected = [pruned(images)]
    found = subp_ext.Session(output).run(images.numpy())
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4 * np.ptp(theirs.numpy())


def test_channels_of_a_network_without_a_training(tmp_path):
    flags = ["--model", "test_resnet", "--in-chans", 1, "--features-only", "--image-size", 32]
    export(*flags, "--output", tmp_path / "model.subp")
    assert subp_ext.Session(tmp_path / "model.subp").inputs[0].shape == (None, 1, None, None)


def test_files_that_do_not_fit(pruned, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UsageError, match="holds no weights"):
        read_weights(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("no pickle")
    with pytest.raises(UsageError, match="cannot be read as weights"):
        read_weights(tmp_path / "text.pth")
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "none.pth")
    state = pruned.state_dict()
    torch.save({key: value for key, value in state.items() if "layer2" not in key}, tmp_path / "part.pth")
    with pytest.raises(UsageError, match="does not fit test_resnet: it lacks layer2"):
        model_of_weights(tmp_path / "part.pth", "test_resnet")
    torch.save(state, tmp_path / "whole.pth")
    with pytest.raises(UsageError, match=r"--num-classes 5: the weights of .* are of 7"):
        model_of_weights(tmp_path / "whole.pth", "test_resnet", num_classes=5)
    with pytest.raises(UsageError, match="does not fit resnet10t"):
        model_of_weights(tmp_path / "whole.pth", "resnet10t")
    with pytest.raises(UsageError, match="--prune-rate belongs to --model without weights"):
        parse_args([str(tmp_path / "whole.pth"), "--model", "test_resnet", "--prune-rate", "0.5", "--output", "m.subp"])


@pytest.mark.parametrize("how", [{"num_classes": 0}, {"features_only": True}], ids=str)
def test_a_backbone_saved_without_a_classifier_is_taken(how, tmp_path):
    backbone = timm.create_model("test_resnet", num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    model, _ = model_of_weights(tmp_path / "backbone.pth", "test_resnet", **how)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = model(image)
        assert (found[-1].mean((2, 3)) if "features_only" in how else found).shape == backbone.eval()(image).shape
