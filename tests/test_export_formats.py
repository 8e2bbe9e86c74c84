"""python -m subp_dist.export: every source into every format, and each way to misuse it.

Sources: one short run on the digits (28x28, grey), its checkpoints, and a random network of 64x64. Every file is run by
what runs such files and compared with torch: 1e-4 of the logits' range in float32.
"""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import subp_ext
from subp_dist import train
from subp_dist.errors import UsageError
from subp_dist.export import Network, formats, random_network
from subp_dist.export.__main__ import cli, parse_args
from subp_dist.options import parse_args as parse_training
from subp_dist.parametrization import block_mask_of

FLAGS = ["test_resnet", "--data-dir", "builtin", "--batch-size", "128", "--lr", "0.05", "--epochs", "2"]
RANDOM = ["--model", "test_resnet", "--prune-rate", "0.5", "--block-size", "16", "--image-size", "64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    flags = ["--output", str(output), "--experiment", "run", "--prune-rate", "0.5", "--prune-end", "1"]
    return train.main(parse_training([*FLAGS, *flags]))


def export(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["subp-export", *map(str, arguments)])
        cli()


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    """What a file computes, in the engine for its kind."""
    if path.suffix == ".subp":
        return subp_ext.Session(path, threads=1).run(images)
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]
    with safe_open(path, "pt") as file:
        text = {key: json.loads(value) for key, value in file.metadata().items()}
    model = timm.create_model(text["model"], num_classes=text["num_classes"], in_chans=images.shape[1]).eval()
    model.load_state_dict(load_file(path), strict=True)
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("suffix", [".subp", ".onnx", ".safetensors"])
def test_a_run_in_every_format_computes_what_its_own_export_does(run, suffix, tmp_path, capsys):
    output = tmp_path / f"model{suffix}"
    export(run, "--output", output)
    images = np.random.default_rng(0).standard_normal((5, 1, 28, 28), np.float32)
    expected = logits_of(run / "model.safetensors", images)
    assert np.abs(logits_of(output, images) - expected).max() < 1e-4 * np.ptp(expected)
    assert "largest difference from torch" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [output.name], "nothing but the file is left"


def test_a_checkpoint_gives_the_file_that_its_run_wrote(run, tmp_path):
    best = run / ("best.pt" if (run / "best.pt").exists() else "last.pt")
    export(best, "--output", tmp_path / "again.subp")
    first, again = subp_ext.load(run / "model.subp"), subp_ext.load(tmp_path / "again.subp")
    assert again.nodes == first.nodes and again.metadata == first.metadata
    for name, constant in first.constants.items():
        parts = (
            (lambda c: (c.values, c.indices)) if isinstance(constant, subp_ext.UniformBlockSparse) else (lambda c: (c,))
        )
        assert all(np.array_equal(a, b) for a, b in zip(parts(constant), parts(again.constants[name]), strict=True))


def test_onnx_takes_any_batch_and_carries_the_metadata(tmp_path):
    export(*RANDOM, "--num-classes", "7", "--output", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64] and session.get_outputs()[0].name == "output"
    for batch in (1, 4):
        assert session.run(None, {"input": np.zeros((batch, 3, 64, 64), np.float32)})[0].shape == (batch, 7)
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert found["prune_rate"] == 0.5 and found["block_size"] == 16 and found["input_size"] == [3, 64, 64]


def test_random_networks_repeat_and_depend_on_the_seed(tmp_path):
    weights = []
    for seed in (0, 0, 1):
        export(*RANDOM, "--seed", seed, "--output", tmp_path / "model.safetensors")
        weights.append(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_random_masks_are_uniform_and_every_part_has_a_say():
    model, size, _ = random_network("resnet18", 0.469, 16, skip=["*downsample*"], image_size=64)
    assert size == (3, 64, 64)
    masked = {name: block_mask_of(module).mask for name, module in model.named_modules() if block_mask_of(module)}
    assert masked and not [name for name in masked if "downsample" in name or name == "conv1"]
    for mask in masked.values():
        assert (mask.sum(1) == mask.shape[1] - int(0.469 * mask.shape[1])).all()
    scales: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.weight.abs().max() > 0 and not module.training and module.momentum == 0.1
            module.register_forward_hook(lambda _, __, out, name=name: scales.update({name: float(out.std())}))
    with torch.inference_mode():
        model(torch.randn(4, 3, 64, 64))
    assert len(scales) == 20 and all(0.01 < scale < 10 for scale in scales.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected RUN_OR_CHECKPOINT, --model NAME, or weights and their --model"),
        ([".", "--model", "resnet18"], "--model belongs to a file of weights; . is a folder"),
        (["somewhere", "--prune-rate", "0.5"], "--prune-rate belongs to --model"),
        (["--model", "resnet18", "--prune-rate", "1"], r"--prune-rate 1.0: expected a share of blocks in \[0, 1\)"),
        (["--model", "resnet18", "--image-size", "0"], "--image-size 0: expected 1 or more"),
        (["--model", "resnet18", "--output", "model"], "pass --format, or end it in .subp, .safetensors, .onnx"),
        (["--model", "resnet18", "--format", "subp", "--output", "a.onnx"], "ends like --format onnx, not subp"),
        (["--model", "resnet18", "--output", "no/where/a.subp"], "there is no folder no/where"),
        (["--model", "resnet18", "--output", "/dev/null/a.subp"], "there is no folder /dev/null"),
    ],
)
def test_misuse_is_told_before_any_work(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "a.subp"]
    with pytest.raises(UsageError, match=message):
        parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet5000"], "has no model 'resnet5000'; did you mean resnet"),
        (["--model", "test_resnet", "--skip", "nothing*"], "--skip 'nothing\\*' matches no convolution"),
        (["--model", "test_vit"], "nothing to prune"),
        (["nowhere"], "nowhere: no such run or checkpoint"),
        (["."], r"is not a run: it has neither best.pt nor last.pt"),
    ],
)
def test_a_source_that_is_none_is_named(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_code:
        export(*arguments, "--output", "a.subp")
    assert exit_code.value.code == 2 and not list(tmp_path.iterdir())
    assert re.search(message, capfd.readouterr().err)


def test_damaged_foreign_and_unfinished_checkpoints_are_named(run, tmp_path):
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged.pt: damaged, or not a checkpoint"):
        Network.open(tmp_path / "damaged.pt")
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    config = checkpoint["config"] | {"model": checkpoint["config"]["model"] | {"name": "resnet18"}}
    torch.save(checkpoint | {"config": config}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other.pt: its weights and its flags do not fit together"):
        Network.open(tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"previous.pt is of epoch 0, denser than its run's target"):
        Network.open(run / "previous.pt")
    shutil.copy(run / "last.pt", tmp_path / "last.pt")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        Network.open(tmp_path)


def test_a_file_that_would_compute_something_else_is_not_written(tmp_path, monkeypatch):
    write = formats.FORMATS["subp"].write

    def wrong(network, path):
        write(network, path)
        graph = subp_ext.load(path)
        name = next(key for key, value in graph.constants.items() if key.endswith("bias"))
        graph.constants[name] = graph.constants[name] + 1
        subp_ext.save(path, graph)

    broken = formats.Format(".subp", wrong, formats.FORMATS["subp"].engine)
    monkeypatch.setitem(formats.FORMATS, "subp", broken)
    (tmp_path / "model.subp").write_bytes(b"the old one")
    with pytest.raises(UsageError, match=r"differs from torch by .* it was not written"):
        formats.export(Network.random("test_resnet", 0.5, 16, image_size=64), "subp", tmp_path / "model.subp")
    assert (tmp_path / "model.subp").read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"ONNX export needs {missing}: pip install 'subp-dist\[onnx\]'"):
        formats.export(Network.random("test_resnet", 0.5, 16, image_size=64), "onnx", tmp_path / "model.onnx")


def test_without_onnxruntime_the_file_is_written_and_said_to_be_unchecked(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export(*RANDOM, "--output", tmp_path / "model.onnx")
    assert "not checked against torch: pip install" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").is_file()


def test_the_module_is_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["subp-export", "--format", "svg", "--output", str(tmp_path / "a.svg")])
    monkeypatch.delitem(sys.modules, "subp_dist.export.__main__")  # imported above; here it is run
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("subp_dist.export", run_name="__main__")
    assert "invalid choice: 'svg'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, fits, too_dense",
    [
        (["--prune-interval", "20", "--prune-start", "0.5", "--prune-end", "1.5"], 1, 0),  # 32 steps an epoch
        (["--prune-interval", "90", "--prune-start", "1", "--prune-end", "2"], 2, 1),
        (["--prune-rate", "0", "--layer-rates", "layer4*=0.75", "--prune-start", "1", "--prune-end", "2"], 2, 1),
    ],
    ids=["within-an-epoch", "less-often", "own-rates"],
)
def test_a_checkpoint_is_judged_by_its_masks(tmp_path, monkeypatch, flags, fits, too_dense):
    """Whenever the masks reached the target, and whichever it is."""
    saved = {}
    original = train.save_checkpoint

    def keep(path, state, previous=None):
        original(path, state, previous)
        saved[state["epoch"]] = shutil.copy(path, tmp_path / f"{state['epoch']}.pt")

    monkeypatch.setattr(train, "save_checkpoint", keep)
    train.main(parse_training([*FLAGS, "--output", str(tmp_path), "--epochs", "3", "--no-export", *flags]))
    Network.open(saved[fits])
    with pytest.raises(UsageError, match="denser than its run's target in .* layers, such as"):
        Network.open(saved[too_dense])
