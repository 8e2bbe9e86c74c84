"""subp_dist.loop: one optimizer step at a time, on a tiny network in this process.

What a whole run cannot show: steps that the gradient scaler skips, and what accumulation adds up to.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from subp_dist.loop import _optimizer_step, train_epoch, validate
from subp_dist.monitor import Monitor
from subp_dist.options import parse_args
from subp_dist.process_group import Rank
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule
from subp_dist.training import Training


def make_training(*flags: str, scaler: bool = False) -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)
    )
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0), block_size=8)
    pruner.step(0)
    return Training(
        config=parse_args(["tiny", "--amp-dtype", "bfloat16", *flags]),
        rank=Rank(0, 1, torch.device("cpu")),
        model=model,
        wrapped=model,
        pruner=pruner,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        scheduler=None,
        scaler=torch.amp.GradScaler("cpu", enabled=scaler),
        loss=nn.CrossEntropyLoss(),
        macs={"1": 1},
        mixup=None,
        ema=None,
        monitor=Monitor(None),
    )


def images(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 6, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), labels)


def weights(training: Training) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in training.model.parameters()]


def test_a_skipped_step_changes_no_weight_and_counts_for_nothing():
    training = make_training(scaler=True)
    before = weights(training)
    batch, labels = images(4).tensors
    training.scaler.scale(training.loss(training.wrapped(batch), labels)).backward()
    next(training.model.parameters()).grad[0] = float("inf")
    _optimizer_step(training)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(training), strict=True))
    assert training.updates == 0
    training.scaler.scale(training.loss(training.wrapped(batch), labels)).backward()
    _optimizer_step(training)
    assert training.updates == 1
    assert not torch.equal(before[0], weights(training)[0])


def test_decay_is_applied_to_unscaled_gradients():
    scaled, plain = make_training(scaler=True), make_training()
    for training in (scaled, plain):
        batch, labels = images(4).tensors
        training.scaler.scale(training.loss(training.wrapped(batch), labels)).backward()
        _optimizer_step(training)
    for a, b in zip(weights(scaled), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_masked_weights_move_by_gradient_and_decay_only():
    training = make_training()
    conv = training.model[1]
    latent = conv.parametrizations.weight.original
    batch, labels = images(4).tensors
    training.loss(training.wrapped(batch), labels).backward()
    expected = latent.detach() - 0.1 * (latent.grad + 2e-4 * (latent - conv.weight).detach())
    _optimizer_step(training)
    torch.testing.assert_close(latent.detach(), expected)


def test_accumulated_batches_equal_one_large_batch():
    small, large = make_training("--grad-accum-steps", "4"), make_training()
    train_epoch(small, DataLoader(images(32), 8), 0)
    train_epoch(large, DataLoader(images(32), 32), 0)
    assert small.updates == large.updates == 1
    for a, b in zip(weights(small), weights(large), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_an_incomplete_last_step_is_still_a_mean():
    training = make_training("--grad-accum-steps", "4")
    train_epoch(training, DataLoader(images(48), 8), 0)
    assert training.updates == 2


def test_validation_counts_every_image_once():
    training = make_training()
    data = images(37)
    found = validate(training.model, DataLoader(data, 8), training)
    with torch.no_grad():
        logits = training.model(data.tensors[0])
    hits = logits.argsort(1, descending=True) == data.tensors[1][:, None]
    assert found["top1"] == 100 * hits[:, 0].sum().item() / 37
    assert found["top5"] == 100 * hits[:, :5].sum().item() / 37
    assert abs(found["loss"] - nn.functional.cross_entropy(logits, data.tensors[1]).item()) < 1e-5
