"""subp_dist.qat: gradients of rounding, the same bits as the runtime, and trainings whose last epochs use it.

Oracles: fake quantization written out in real numbers under autograd, and `subp_ext.Session` on the exported integers,
logit by logit. Networks: two layers by hand, small members of timm's families at 64x64, and runs of `test_resnet` on
few digits. A resumed run must end like an undisturbed one, bit for bit. Out of scope: what it gives in accuracy.
"""

import csv
import itertools
import json
import multiprocessing
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from devices import GPU, fake_device
from runs import states_equal
from test_export_formats import export
from torch import nn
from torch.nn import functional

import subp_ext
from subp_dist import loop, train
from subp_dist.checkpoint import load_checkpoint
from subp_dist.data import digits
from subp_dist.errors import NotFiniteError, Stopped, UsageError
from subp_dist.export import Network
from subp_dist.export.calibration_images import random_images
from subp_dist.export.straight_through import looked_up, rounded
from subp_dist.export.tables import with_tables
from subp_dist.options import parse_args
from subp_dist.process_group import Rank, data_parallel
from subp_dist.qat import phase
from subp_dist.qat.start import calibrated, restored
from subp_ext import UniformBlockSparse

FLAGS = ["test_resnet", "--data-dir", "builtin", "--batch-size", "64", "--lr", "0.05", "--log-interval", "5"]
FLAGS += ["--prune-start", "0", "--prune-end", "0"]


# Arithmetic.


def test_rounding_goes_to_even_and_has_a_gradient_within_its_bounds_alone():
    real = torch.tensor([-3.2, -0.5, 0.5, 1.5, 2.4, 2.6], requires_grad=True)
    found = rounded(real, -1, 2)
    assert found.tolist() == [-1, 0, 0, 2, 2, 2]
    found.backward(torch.arange(1.0, 7.0))
    assert real.grad.tolist() == [0, 2, 3, 4, 0, 0]


def test_a_table_has_the_slopes_that_it_is_given():
    stored = torch.tensor([0.0, 7.0, 255.0], requires_grad=True)
    table, slopes = torch.arange(256.0) * 2, torch.arange(256.0) * 3
    found = looked_up(stored, table, slopes)
    assert found.tolist() == [0, 14, 510]
    found.backward(torch.tensor([1.0, 1.0, 2.0]))
    assert stored.grad.tolist() == [0, 21, 1530]


def small_network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Hardswish()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    return Network(model, (3, 8, 8), {}, {})


def in_real_numbers(module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of all trained values after `square().sum()`, of fake quantization as textbooks have it."""
    names = [node.args[part].name for node in module.layers for part in ("weight", "bias")]
    values = {name: module.trained(name).detach().requires_grad_() for name in names}
    types = {node.output: node.type.quantization for node in module.graph.nodes if node.type is not None}

    def through(real: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return real + (whole - real).detach()

    def stored(name: str, real: torch.Tensor) -> torch.Tensor:
        scale, zero = float(types[name].scale), int(types[name].zero_point)
        bounded = real.clamp(-zero * scale, (255 - zero) * scale)
        return through(bounded, ((real / scale).round() + zero).clamp(0, 255).sub(zero) * scale)

    def weight(name: str) -> torch.Tensor:
        value = values[name]
        scale = (value.detach().abs().flatten(1).amax(1) / 127).view(-1, *[1] * (value.ndim - 1))
        return through(value, (value / scale).round() * scale)

    conv1, conv2, linear = ([node.args[part].name for part in ("weight", "bias")] for node in module.layers)
    outputs = {node.op: node.output for node in module.graph.nodes}
    first, second = (node.output for node in module.layers[:2])
    x = stored(outputs["quantize"], images)
    x = stored(first, functional.conv2d(x, weight(conv1[0]), values[conv1[1]], padding=1).relu())
    x = stored(second, functional.conv2d(x, weight(conv2[0]), values[conv2[1]]))
    x = stored(outputs["hardswish"], functional.hardswish(x))
    x = stored(next(node.output for node in module.graph.nodes if "avg" in node.op), x.mean((2, 3), keepdim=True))
    result = functional.linear(x.flatten(1), weight(linear[0]).flatten(1), values[linear[1]])
    result.square().sum().backward()
    return {name: value.grad for name, value in values.items()}


def test_gradients_are_those_of_fake_quantization_in_real_numbers():
    images = torch.from_numpy(random_images((3, 8, 8), 32))
    module = restored(calibrated(small_network(), images.numpy())).train()
    module(images[:4]).square().sum().backward()
    expected = in_real_numbers(module, images[:4])
    assert len(expected) == 6
    for name, gradient in expected.items():
        key = module.names[name]
        found = getattr(module, key).grad / getattr(module, f"{key}_unit")
        torch.testing.assert_close(found, gradient, rtol=2e-3, atol=2e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_torch_computes_the_logits_of_the_runtime(name):
    network = Network.random(name, 0.5, 16, image_size=64, num_classes=10)
    images = random_images((3, 64, 64), 16)
    module = restored(calibrated(network, images))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
    for batch in torch.from_numpy(images).split(8):
        module.train()(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    graph = module.integers()
    for name, constant in graph.constants.items():
        before = module.graph.constants[name]
        if isinstance(constant, UniformBlockSparse):
            assert not np.array_equal(constant.values, before.values), "it has learned"
            np.testing.assert_array_equal(constant.indices, before.indices)
    others = random_images((3, 64, 64), 8, seed=1)
    with torch.inference_mode():
        found = module.eval()(torch.from_numpy(others)).numpy()
    np.testing.assert_array_equal(found, subp_ext.Session(with_tables(graph)).run(others))


def test_it_starts_as_int8_export_left_it_and_pruned_blocks_stay_zero():
    network = Network.random("test_resnet", 0.75, 16, image_size=64, num_classes=10)
    images = random_images((3, 64, 64), 16)
    state = calibrated(network, images)
    module = restored(state)
    start = module.integers()
    for name, constant in module.graph.constants.items():
        if isinstance(constant, UniformBlockSparse):
            differ = np.abs(start.constants[name].values.astype(int) - constant.values)
            assert differ.max() <= 1 and (differ > 0).mean() < 1e-3, "of the way into units and back"
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for name, constant in module.integers().constants.items():
        if isinstance(constant, UniformBlockSparse):
            np.testing.assert_array_equal(constant.indices, module.graph.constants[name].indices)
            pruned = module.trained(name)[:, :, 0, 0] == 0
            assert 0.7 < float(pruned.float().mean()) < 0.8


def test_a_step_on_a_gpu_waits_for_nothing_and_stays_there():
    module = restored(calibrated(small_network(), random_images((3, 8, 8), 16))).train()
    with fake_device() as watch:
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                moved = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                kept[name] = nn.Parameter(moved) if kept is module._parameters else moved
        images = torch.randn(4, 3, 8, 8, device=GPU)
        before = len(watch.waits)
        module(images).square().sum().backward()
        assert watch.waits[before:] == []


def _ranks_of_two(rank: int, folder: str) -> None:
    state, images = torch.load(f"{folder}/start.pt", weights_only=False)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = restored(state).train()
    _steps(data_parallel(module, Rank(rank, 2, torch.device("cpu"))), module, images[rank::2])
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _steps(called: nn.Module, module: nn.Module, images: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        called(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_two_ranks_learn_what_one_learns_from_the_whole_batch(tmp_path):
    images = torch.from_numpy(random_images((3, 8, 8), 16))
    state = calibrated(small_network(), images.numpy())
    torch.save((state, images), tmp_path / "start.pt")
    spawn = multiprocessing.get_context("spawn")  # autograd does not survive a fork
    ranks = [spawn.Process(target=_ranks_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    alone = restored(state).train()
    _steps(alone, alone, images)
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    start = state["module"]
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)
        if name.endswith(("_unit", "_zero", "_scale")) or not value.is_floating_point():
            continue
        moved = (value - start[name]).norm()
        assert (first[name] - value).norm() < 0.02 * moved or moved == 0


# Runs.


@pytest.fixture(scope="module")
def few_digits():
    """Every tenth digit: 400 to train on, 100 to test."""
    with pytest.MonkeyPatch.context() as patch:
        pixels, labels = digits.load_digits()
        patch.setattr(digits, "load_digits", lambda: (pixels[::10], labels[::10]))
        patch.setattr(phase, "CALIBRATION_IMAGES", 32)
        yield


def run(output: Path, *flags: str) -> Path:
    return train.main(parse_args([*FLAGS, "--output", str(output), "--experiment", "run", *flags]))


QAT = ["--epochs", "6", "--qat-epochs", "2", "--model-ema", "--model-ema-decay", "0.9", "--mixup", "0.2"]


@pytest.fixture(scope="module")
def finished(few_digits, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("qat"), *QAT)


def test_a_run_exports_the_integers_that_it_was_trained_with(finished, tmp_path):
    state = load_checkpoint(finished / "best.pt")
    module = restored(state["quantized"]).eval()
    data = digits.Digits(train=False)
    images = torch.stack([data[index][0] for index in range(len(data))])
    labels = np.array([data[index][1] for index in range(len(data))])
    with torch.inference_mode():
        expected = module(images).numpy()
    found = subp_ext.Session(finished / "model-int8.subp").run(images.numpy())
    np.testing.assert_array_equal(found, expected)
    assert 100 * float((found.argmax(1) == labels).mean()) == pytest.approx(state["val"]["top1"])
    export(finished, "--dtype", "int8", "--output", tmp_path / "model-int8.subp")
    assert (tmp_path / "model-int8.subp").read_bytes() == (finished / "model-int8.subp").read_bytes()
    export(finished, "--dtype", "int8", "--uint8-input", "--output", tmp_path / "pixels.subp")
    assert subp_ext.Session(tmp_path / "pixels.subp").inputs[0].dtype == "uint8"


def test_its_float32_files_are_of_the_network_before_that(finished):
    report, best = json.loads((finished / "report.json").read_text()), load_checkpoint(finished / "best.pt")
    rows = list(csv.DictReader((finished / "summary.csv").open()))
    assert report["accuracy"]["top1"] == best["val"]["top1"] and report["accuracy"]["epoch"] in (4, 5)
    assert report["accuracy"]["float32"]["top1"] == pytest.approx(float(rows[3]["val_top1"]))
    assert report["accuracy"]["float32"]["epoch"] == 3 and report["files"]["model-int8.subp"]
    assert {layer["type"] for layer in report["int8"]["layers"]} == {"int8"}
    data = digits.Digits(train=False)
    images = np.stack([data[index][0].numpy() for index in range(len(data))])
    labels = np.array([data[index][1] for index in range(len(data))])
    predicted = subp_ext.Session(finished / "model.subp").run(images).argmax(1)
    assert 100 * float((predicted == labels).mean()) == pytest.approx(report["accuracy"]["float32"]["top1"])


def test_epochs_that_ruin_the_integers_are_not_exported(few_digits, tmp_path, capsys):
    run(tmp_path, "--epochs", "6")
    capsys.readouterr()
    more = ("--epochs", "7", "--qat-epochs", "1", "--resume", "auto")
    with pytest.raises(NotFiniteError):
        run(tmp_path, *more, "--lr", "1e30")
    export(tmp_path / "run", "--dtype", "int8", "--output", tmp_path / "calibrated.subp")
    folder = run(tmp_path, *more, "--lr", "500")
    assert (folder / "model-int8.subp").read_bytes() == (tmp_path / "calibrated.subp").read_bytes()
    said, accuracy = capsys.readouterr().out, json.loads((folder / "report.json").read_text())["accuracy"]
    ruined = load_checkpoint(folder / "last.pt")
    assert ruined["epoch"] == 6 and ruined["val"]["top1"] < accuracy["top1"] - 20
    assert accuracy["epoch"] == 5 and accuracy["top1"] == pytest.approx(accuracy["float32"]["top1"], abs=3)
    assert (
        f"came up to int8 after training, top-1 {accuracy['top1']:.2f} %, which is exported; begin them at a lower"
        in said
    )
    predicted = subp_ext.Session(folder / "model-int8.subp")
    data = digits.Digits(train=False)
    images = np.stack([data[index][0].numpy() for index in range(len(data))])
    labels = np.array([data[index][1] for index in range(len(data))])
    assert 100 * float((predicted.run(images).argmax(1) == labels).mean()) == pytest.approx(accuracy["top1"])


def test_flags_of_a_calibration_are_refused_for_such_a_run(finished, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(finished, "--dtype", "int8", "--keep-float", "fc", "--output", tmp_path / "model.subp")
    assert "--keep-float: " in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "batch",
    [pytest.param(22, marks=pytest.mark.slow), 27, pytest.param(33, marks=pytest.mark.slow)],
    ids=["before", "first-epoch", "second-epoch"],
)
def test_a_stopped_run_ends_like_an_undisturbed_one(finished, tmp_path, monkeypatch, batch):
    backward, batches = loop._backward, itertools.count(1)

    def stopped_on_the_way(*args):
        if next(batches) == batch:
            signal.raise_signal(signal.SIGTERM)
        return backward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_backward", stopped_on_the_way)
        with pytest.raises(Stopped):
            run(tmp_path, *QAT)
    resumed = run(tmp_path, *QAT, "--resume", "auto")
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(folder / name) for folder in (resumed, finished))
        assert states_equal(ours.pop("config") and ours, theirs.pop("config") and theirs), name
    for name in ("model-int8.subp", "model.subp"):
        assert (resumed / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize(
    "flags, begun, position, message",
    [
        ((4, 2), 1, (3, 0), "since epoch 1; pass --qat-epochs 3, or resume from a checkpoint before that"),
        ((4, 0), 1, (3, 0), "--qat-epochs 0 of 4 epochs: the checkpoint trains with fake quantization since epoch 1"),
        ((3, 2), None, (2, 0), "they begin at epoch 1, and the checkpoint has gone on to epoch 2 .* 4 epochs or more"),
        ((3, 2), None, (1, 5), "they begin at epoch 1, and the checkpoint has gone on to epoch 1 .* 4 epochs or more"),
    ],
)
def test_a_resume_keeps_the_epoch_that_fake_quantization_began_with(flags, begun, position, message):
    epochs, last = flags
    config = parse_args([*FLAGS, "--epochs", str(epochs), "--qat-epochs", str(last)])
    epoch, step = position
    checkpoint = {"epoch": epoch if step else epoch - 1, "in_epoch": {"step": step} if step else None}
    if begun is not None:
        checkpoint["quantized"] = {"epoch": begun}
    with pytest.raises(UsageError, match=message):
        phase.check_resumable(SimpleNamespace(config=config), checkpoint)


def test_a_resume_at_its_begin_or_after_it_goes_on():
    training = SimpleNamespace(config=parse_args([*FLAGS, "--epochs", "3", "--qat-epochs", "2"]))
    phase.check_resumable(training, {"epoch": 0, "in_epoch": None})
    phase.check_resumable(training, {"epoch": 1, "in_epoch": {"step": 3}, "quantized": {"epoch": 1}})


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--qat-epochs", "3"], "--qat-epochs 3: expected fewer than the run's 3 epochs"),
        (["--qat-epochs", "-1"], "--qat-epochs"),
        (["--qat-epochs", "1", "--no-export"], "--qat-epochs 1 with --no-export"),
        (["--qat-epochs", "1", "--export-dtype", "bfloat16"], "--qat-epochs 1 with --export-dtype bfloat16"),
        (["--qat-epochs", "1", "--sched", "plateau"], "--qat-epochs 1 with --sched plateau"),
        (["--qat-epochs", "1", "--prune-end", "2"], "update, at epoch 1, comes before the schedule's end at 2"),
        (["--qat-epochs", "2", "--prune-end", "2", "--prune-interval", "3"], "last mask update falls on epoch 0.50"),
    ],
)
def test_misuse_is_refused_before_the_first_batch(few_digits, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        train.main(parse_args([*FLAGS, "--epochs", "3", "--output", str(tmp_path), *flags]))
    assert not list(tmp_path.iterdir())
