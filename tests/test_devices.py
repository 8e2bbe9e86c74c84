"""A training on a GPU, without one: no operator gets operands of two devices, and no step makes the host wait.

On fake tensors (see devices.py), which find nothing about numbers: those are the same code's on a CPU. Below, mix-ups
are planted in the package, one at a time, and have to be found. tests/gpu has what only a GPU can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from devices import CUDA, GPU, fake_device, mutate, wait_counts
from timm.data import Mixup
from timm.layers import ScaledStdConv2d
from timm.loss import BinaryCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from subp_dist import agreement, blocks, loop, lost_writes, masks, parametrization, scores, training
from subp_dist.config import AugmentationConfig
from subp_dist.data.augment import ImageAugment
from subp_dist.data.ffcv_loader import FFCVLoader, Output
from subp_dist.distillation import Distillation
from subp_dist.loop import train_epoch, validate
from subp_dist.monitor import Monitor
from subp_dist.options import parse_args
from subp_dist.parametrization import BlockMask, plain_copy, plain_state_dict
from subp_dist.process_group import Rank
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule
from subp_dist.training import Training

CLASSES = 6


@pytest.fixture(autouse=True)
def fakes_are_plain(monkeypatch) -> None:
    """Writes into weights are looked for in plain tensors alone, which fakes stand for here."""
    monkeypatch.setattr(lost_writes, "_is_left_alone", lambda weight: False)


class Network(nn.Sequential):
    """Whole rows, a row of its own width, groups, a standardised convolution with gain, a pruned linear layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 16, 1, groups=2), ScaledStdConv2d(16, 16, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
        )  # fmt: skip


def make_pruner(model: nn.Module, **settings) -> SUBPPruner:
    return SUBPPruner(model, PruneSchedule(0.5, 0, 4), block_size=8, prune_linear=True, **settings)


def average(model: nn.Module) -> ModelEmaV3:
    """A moving average; timm gives it a generator, for weights of bfloat16, which fake devices do not have."""
    with patch("torch.Generator"):
        return ModelEmaV3(model, 0.99)


def teacher() -> Distillation:
    with torch.device(GPU):
        return Distillation(Network(), 0.5, 1.0)


def make_training(*flags: str, **parts: Callable[[nn.Module], object]) -> Training:
    """A run on a device, in a fake mode; autocast, which knows real devices only, is off.

    Args:
        flags: of the command line.
        parts: of ``Training``, each made from the model.
    """
    with torch.device(GPU):
        model = Network()
    training = Training(
        config=parse_args(["tiny", "--amp-dtype", "bfloat16", "--log-interval", "1000", *flags]),
        rank=Rank(0, 1, GPU), model=model, wrapped=model, pruner=make_pruner(model),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), scheduler=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False), loss=nn.CrossEntropyLoss(), macs={"3": 1, "8": 1},
        mixup=None, ema=None, monitor=Monitor(None),
    )  # fmt: skip
    for name, make in parts.items():
        setattr(training, name, make(model))
    training.autocast = lambda: torch.autocast("cpu", enabled=False)
    return training


class Batches(list):
    """What a loader delivers, on the CPU, from a batch of the epoch on."""

    def __init__(self, count: int, first: int = 0) -> None:
        batch = torch.randn(4, 3, 8, 8, device="cpu"), torch.zeros(4, dtype=torch.int64, device="cpu")
        super().__init__([batch] * (count - first))
        self.count = count

    def __len__(self) -> int:
        return self.count


def in_steps(*flags: str, **parts) -> tuple[list[str], int]:
    """Waits, and tensors sent, in two steps of two batches in the middle of an epoch, which are not logged."""
    with fake_device() as watch:
        training = make_training("--grad-accum-steps", "2", *flags, **parts)
        training.update_masks(1, 0)
        training.progress.step = 1
        seen: list[tuple[int, int]] = []
        train_epoch(training, Batches(8, first=2), 0, lambda: seen.append((len(watch.waits), watch.sent)))
    (first_wait, first_sent), (last_wait, last_sent) = seen[0], seen[-1]
    return watch.waits[first_wait:last_wait], last_sent - first_sent


def check_steps(*flags: str, **parts: Callable[[nn.Module], object]) -> None:
    waits, sent = in_steps(*flags, **parts)
    assert waits == []
    assert sent == 2 * 2 * 2  # images and labels, and nothing else


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ((), {}),
        (("--channels-last",), {}),
        (("--clip-grad", "1"), {}),
        (("--clip-grad", "1", "--clip-mode", "value"), {}),
        (("--clip-grad", "1", "--clip-mode", "agc"), {}),
        ((), {"ema": average}),
        ((), {"mixup": lambda _: Mixup(0.2, 1.0, num_classes=CLASSES), "loss": lambda _: BinaryCrossEntropy()}),
        ((), {"distillation": lambda _: teacher()}),
        (("--opt", "adamw"), {"optimizer": lambda model: torch.optim.AdamW(model.parameters())}),
    ],
    ids=["plain", "channels-last", "clip", "clip-value", "clip-agc", "ema", "mixup-bce", "distillation", "adamw"],
)
def test_a_step_makes_the_host_wait_for_nothing(flags, parts):
    check_steps(*flags, **parts)


def test_float16_waits_once_a_step_for_its_overflow():
    # That is torch's scaler, which decides on the host whether to call the optimizer.
    waits, _ = in_steps(scaler=lambda _: torch.amp.GradScaler("cpu"))
    assert [wait.split(": ")[0] for wait in waits] == ["loop.py:_optimizer_step"] * 2


def test_a_logged_step_waits_for_one_transfer():
    waits, _ = in_steps("--log-interval", "1")
    # A list of two numbers, which fake tensors read one by one.
    assert [wait.split(": ")[0] for wait in waits] == ["agreement.py:sum_over_ranks"] * 2 * 2


def check_validation() -> None:
    with fake_device() as watch:
        training = make_training()
        watch.waits.clear()
        validate(training.model, Batches(5), training)
    assert wait_counts(watch) == {"agreement.py:sum_over_ranks": 4}  # one transfer, of four numbers


def test_validation_waits_at_its_end_alone():
    check_validation()


@pytest.mark.parametrize("device", [GPU, CUDA], ids=str)
@pytest.mark.parametrize("default", ["cpu", "device"])
@pytest.mark.parametrize("criterion", ["bpar", "l1", "l2", "random"])
def test_a_mask_update_waits_a_few_times_whatever_the_layers(device, default, criterion):
    with fake_device(device if default == "device" else None) as watch:
        with torch.device(device):
            model = Network()
        pruner = make_pruner(model, criterion=criterion)
        model(torch.randn(2, 3, 8, 8, device=device))  # what it gave is looked at, for writes into it
        watch.waits.clear()
        update = pruner.step(1)
        waits = len(watch.waits)
        pruner.report({"3": 1})
        assert pruner.at_target in (True, False) and pruner.pruned_share() <= 1
        assert {mask.device for mask in pruner.masks.values()} == {device}
        assert {score.device for score in update.scores.values()} == {device}
    assert waits == 3, watch.waits  # that, and the masks before and after
    assert len(watch.waits) == waits + 3


def check_update_with_average() -> None:
    with fake_device() as watch:
        training = make_training(ema=average)
        training.ema.update(training.model, step=1)
        watch.waits.clear()
        training.update_masks(1, 0)
    assert wait_counts(watch) == {"transfers.py:to_host": 2 + 2 + 1}  # masks, those of the copy, and of the report


def test_a_mask_update_with_an_average_waits_twice_more():
    check_update_with_average()


@pytest.fixture
def two_ranks(monkeypatch) -> list[Tensor]:
    """This process as one of two, whose collectives take tensors of the device and do nothing; returns them."""
    taken: list[Tensor] = []

    def all_gather(parts: list[Tensor], own: Tensor) -> None:
        assert {part.device for part in parts} == {own.device}
        taken.append(own)

    monkeypatch.setattr(agreement, "world", lambda: (0, 2))
    monkeypatch.setattr(agreement, "_crc", lambda mask: torch.zeros((), dtype=torch.int64, device="cpu"))
    monkeypatch.setattr(agreement.dist, "all_gather", all_gather)
    monkeypatch.setattr(agreement.dist, "all_reduce", taken.append)
    return taken


def check_shared_update(two_ranks: list[Tensor]) -> None:
    with fake_device() as watch:
        training = make_training()
        watch.waits.clear()
        training.pruner.step(1)
    assert [tensor.device for tensor in two_ranks] == [GPU] * 3  # of weights, scores, masks
    assert wait_counts(watch) == {"transfers.py:to_host": 2, "agreement.py:verify_identical": 2}


def test_ranks_agree_on_the_device(two_ranks):
    check_shared_update(two_ranks)


def test_the_forward_pass_is_in_the_precision_of_autocast():
    with fake_device(CUDA) as watch:
        model = Network()
        make_pruner(model)
        watch.waits.clear()
        images = torch.randn(2, 3, 8, 8)
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            logits = model(images)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
        assert (logits.dtype, logits.device) == (torch.bfloat16, CUDA)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert watch.waits == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (12, 8, 3, 3), (16, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["consecutive", "ordered"])
def test_masked_weights_and_their_gradients_keep_layout_and_device(shape, memory_format, ordered):
    with fake_device(CUDA) as watch:
        weight = torch.randn(shape).contiguous(memory_format=memory_format)
        block_mask = BlockMask(weight, 8, ordered=ordered)
        masked = block_mask(weight)
        assert masked.device == CUDA and masked.is_contiguous(memory_format=memory_format)
        grad = torch.randn_like(masked)
        returned, *others = parametrization._StraightThrough.backward(None, grad)
        assert returned.stride() == grad.stride() and others == [None] * 4
        block_mask.add_pruned_part(grad, weight, 0.1)
    assert watch.waits == []


def test_plain_weights_lie_where_the_model_does():
    with fake_device(GPU) as watch:
        model = Network()
        make_pruner(model)
        watch.waits.clear()
        assert {tensor.device for tensor in plain_state_dict(model).values()} == {GPU}
        assert {tensor.device for tensor in plain_copy(model).state_dict().values()} == {GPU}
    assert watch.waits == []


def deliver() -> tuple[Tensor, Tensor]:
    """A batch of FFCV's loader, from bytes in memory; FFCV itself need not be installed."""
    augmentation = AugmentationConfig(reprob=1.0, remode="pixel")
    output = Output((0.5,) * 3, (0.2,) * 3, CUDA, channels_last=True, augment=ImageAugment.for_images(augmentation, 8))
    loader = FFCVLoader.__new__(FFCVLoader)
    loader.output, loader.seed, loader.beton = output, 0, SimpleNamespace(labels=np.arange(5), path="")
    loader._mean, loader._std = torch.ones(3, 1, 1, device=CUDA), torch.ones(3, 1, 1, device=CUDA)
    bytes_of_images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    slot = SimpleNamespace(images=bytes_of_images, planar=False, normalized=False, copied=None)
    return loader._deliver(slot, np.array([1, 0, 4]), 0)


@pytest.fixture
def cuda_stubs(monkeypatch) -> None:
    """What a loader asks of CUDA itself."""
    events = SimpleNamespace(record_event=lambda: "copied")
    monkeypatch.setattr(torch.cuda, "current_stream", {CUDA: events}.get)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator("cpu")])


def check_batches(cuda_stubs: None) -> None:
    with fake_device() as watch:
        images, labels = deliver()
    assert (images.device, images.dtype, tuple(images.shape)) == (CUDA, torch.float32, (3, 3, 8, 8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.device, labels.dtype) == (CUDA, torch.int64)
    assert (watch.waits, watch.sent) == ([], 2)


def test_batches_of_ffcv_are_sent_and_normalised_without_a_wait(cuda_stubs):
    check_batches(cuda_stubs)


SENT = "noise.to(scores.device, non_blocking=True)"

# One mix-up each: what finds it, where it is planted, what stands there, and what is put in its place. On a CPU all of
# them run as before.
MIXUPS = [
    (check_steps, blocks.apply_mask, "groups, mask.device, order)", "groups, order=order)"),
    (check_steps, blocks.add_pruned_part, "groups, mask.device, order)", "groups, order=order)"),
    (check_steps, blocks.add_pruned_part, "logical_not(mask, out=", "logical_not(mask.cpu(), out="),
    (check_shared_update, scores.absolute_cosine_sums, ", device=blocks.device", ""),
    (check_shared_update, scores.bpar, "redundancy == 0", "(redundancy == 0).cpu()"),
    (check_shared_update, masks.lowest_blocks, "scores.argsort", "scores.cpu().argsort"),
    (check_shared_update, masks.draw_without_replacement, SENT, "noise"),
    (check_shared_update, masks.draw_without_replacement, SENT, "noise.to(scores.device)"),
    (check_shared_update, masks.uniform_mask, ", device=scores.device", ""),
    (check_shared_update, masks.uniform_mask, "to(torch.float64)", 'to("cpu", torch.float64)'),
    (check_steps, BlockMask.__init__, "dtype=torch.bool, device=weight.device", "dtype=torch.bool"),
    (check_steps, parametrization._centred, "groups, mask.device, order)", "groups, order=order)"),
    (check_shared_update, agreement.compute_shared, ", device=device", ""),
    (check_shared_update, agreement.verify_identical, "dtype=torch.int64, device=device", "dtype=torch.int64"),
    (check_shared_update, agreement._checksums, ".to(device, non_blocking=True)", ".cpu()"),
    (check_shared_update, agreement._sum_of_bits, "weight.detach()", "weight.detach().cpu()"),
    (check_shared_update, SUBPPruner._scores, "module.weight", "module.weight.cpu()"),
    (check_update_with_average, SUBPPruner.copy_masks_to, "copy_(block_mask.mask)", "copy_(block_mask.mask.cpu())"),
    (check_shared_update, SUBPPruner.step, "old, scores =", "self.pruned_share(); old, scores ="),
    (check_steps, SUBPPruner.decay_gradients, "latent.grad, latent", "latent.grad, latent.cpu()"),
    (check_steps, loop.train_epoch, "dtype=torch.float64, device=device", "dtype=torch.float64"),
    (check_steps, loop.train_epoch, "loss_sum += loss.double()", "loss_sum += loss.item()"),
    (check_steps, loop._to_device, "non_blocking=True, memory_format", "memory_format"),
    (check_steps, loop._to_device, "targets.to(training.rank.device, non_blocking=True)", "targets"),
    (check_steps, loop._optimizer_step, "scaler.update()", "scaler.update(); norm.item()"),
    (check_validation, loop.validate, "dtype=torch.float64, device=device", "dtype=torch.float64"),
    (check_validation, loop.validate, "count += len(targets)", "count += len(targets); loss.item()"),
    (check_update_with_average, training.Training.update_masks, "self.ema.module", "self.ema.module.cpu()"),
    (check_batches, FFCVLoader._normalize, "self._mean", "torch.tensor([[[1.0]]] * 3, device=images.device)"),
    (check_batches, ImageAugment.erase, "self.erasing.device = images.device", "pass"),
]  # fmt: skip


NEEDS = {check_shared_update: ["two_ranks"], check_batches: ["cuda_stubs"]}


@pytest.mark.parametrize(("check", "function", "old", "new"), MIXUPS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_mix_up_is_found(check, function, old, new, monkeypatch, request):
    mutate(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, RuntimeError)):
        check(*(request.getfixturevalue(name) for name in NEEDS.get(check, ())))
