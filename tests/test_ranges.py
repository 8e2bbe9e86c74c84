"""Ranges of all numeric flags: extreme, contradictory and non-finite values are refused in one line, or work.

What is accepted goes through all of a run that flags alone decide: resolved configuration, optimizer, schedule of
learning rates over three epochs, mixup, loss, transforms. Out of scope: whether a network learns with it.
"""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch import nn

from subp_dist.build import create_loss, create_mixup, create_optimizer, create_schedule, create_scheduler
from subp_dist.data.augment import timm_transform
from subp_dist.errors import UsageError
from subp_dist.flags import build_parser, flag_name
from subp_dist.options import parse_args
from subp_dist.ranges import Number
from subp_dist.resolve import resolve

DIGITS = SimpleNamespace(
    loader="timm", num_classes=10, input_size=(1, 28, 28), mean=(0.1,), std=(0.3,), crop_pct=0.9, interpolation="box"
)
NUMERIC = [action for action in build_parser()._actions if isinstance(action.type, Number)]
VALUES = ["nan", "inf", "-inf", "-1", "0", "1e-320", "1e-30", "0.5", "1", "2", "7", "3000000000", "1e30", "x", ""]


def counts(action) -> list[int]:
    if isinstance(action.nargs, int):
        return [action.nargs, action.nargs - 1, action.nargs + 1]
    return [1, 2, 3, 4] if action.nargs else [1, 2]


def start(argv: list[str]) -> None:
    """All of a run that flags decide, without a network or data."""
    given = parse_args(["resnet18", *argv])
    config = resolve(given, DIGITS, given.pruning.prune_rate, 1, "cpu")
    create_schedule(config, 10)
    model = nn.Linear(3, 2)
    optimizer = create_optimizer(config.optimization, model)
    scheduler = create_scheduler(config.optimization, optimizer, 10)
    for epoch in range(3):
        scheduler.step(epoch + 1, 50.0)
        scheduler.step_update(10 * epoch)
        assert all(math.isfinite(group["lr"]) and group["lr"] >= 0 for group in optimizer.param_groups)
    varied = config.augmentation
    if (mixup := create_mixup(varied, 10)) is not None:
        images, targets = mixup(torch.rand(2, 1, 4, 4), torch.tensor([1, 2]))
        assert images.isfinite().all() and targets.isfinite().all()
        create_loss(varied)(torch.randn(2, 10), targets)
    transform = timm_transform(
        16, is_training=True, scale=varied.scale, ratio=varied.ratio, hflip=varied.hflip, re_prob=varied.reprob,
        color_jitter=varied.color_jitter or None,
    )  # fmt: skip
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    assert transform(image).isfinite().all()
    crop_pct = given.data.crop_pct or 0.875
    assert timm.data.create_transform(16, crop_pct=crop_pct)(image).shape == (3, 16, 16)


def test_every_number_has_a_range():
    typed = {action.dest for action in build_parser()._actions if action.type in (int, float) and not action.choices}
    assert not typed and len(NUMERIC) > 40


@pytest.mark.parametrize("action", NUMERIC, ids=flag_name)
def test_extreme_values_are_refused_in_one_line_or_work(action):
    for value in VALUES:
        for count in counts(action) if value == "0.5" else counts(action)[:1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    start([flag_name(action), *[value] * count])
                except (UsageError, ValueError) as error:
                    assert "\n" not in str(error) and str(error), (value, count)
                    assert isinstance(error, UsageError) or "prun" in str(error), (value, count, error)
        if value in ("nan", "inf", "-inf", "x"):
            with pytest.raises(UsageError, match=flag_name(action)):
                parse_args(["resnet18", flag_name(action), *[value] * counts(action)[0]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--crop-pct 87.5", r"--crop-pct 87.5: expected a number in \[0.1, 1\]"),
        ("--sched step --decay-epochs 0", r"--decay-epochs 0.0: expected a number|--decay-epochs 0.0: expected 0.001"),
        ("--std 0", r"--std 0.0: expected"),
        ("--std 58 57 57", r"--std 58.0 57.0 57.0: expected .*pixels from 0 to 1"),
        ("--mean nan", r"--mean nan: expected"),
        ("--mean 124 116 104", r"--mean 124.0 116.0 104.0: expected"),
        ("--ratio 0 0", r"--ratio 0.0 0.0: expected"),
        ("--hflip 2", r"--hflip 2.0: expected a number in \[0, 1\]"),
        ("--reprob 5", r"--reprob 5.0: expected"),
        ("--decay-rate=-1", r"--decay-rate -1.0: expected a number above 0"),
        ("--decay-rate 2 --sched step", r"--decay-rate 2.0: expected a factor"),
        ("--scale 1.0 0.08", r"--scale 1.0 0.08: expected .*rising"),
        ("--decay-milestones 9 3", r"--decay-milestones 9 3: expected .*rising"),
        ("--lr 0.1 --min-lr 0.2", r"--min-lr 0.2: expected at most --lr, which is 0.1"),
        ("--lr 1e-6 --warmup-epochs 2", r"--warmup-lr 1e-05: expected at most --lr"),
        ("--prune-start 9 --prune-end 3", r"--prune-start 9: expected at most --prune-end"),
        ("--sched none --warmup-epochs 3", r"--sched none has no warm-up"),
        ("--seed -1", r"--seed -1: expected whole numbers from 0"),
        ("--seed 5000000000", r"--seed 5000000000: expected"),
        ("--timeout 1e30", r"--timeout 1e\+30: expected"),
        ("--target-macs inf", r"--target-macs 'inf'"),
    ],
)
def test_what_was_accepted_and_ended_badly_is_refused_by_name(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_args(["resnet18", *flags.split()])
    assert "\n" not in str(caught.value)


def test_a_file_is_held_to_the_same_ranges(tmp_path):
    (tmp_path / "run.yaml").write_text("model: resnet18\nscale: [1.0, 0.08]\n")
    with pytest.raises(UsageError, match=r"--scale 1.0 0.08: expected"):
        parse_args(["--config", str(tmp_path / "run.yaml")])


def test_the_derived_learning_rate_is_in_order_too():
    given = parse_args(["resnet18", "--batch-size", "8", "--min-lr", "0.05"])
    with pytest.raises(UsageError, match=r"--min-lr 0.05: expected at most --lr, which is 0.003125"):
        resolve(given, DIGITS, 0.5, 1, "cpu")


def optimization(*flags: str):
    return resolve(parse_args(["resnet18", "--epochs", "9", *flags]), DIGITS, 0.5, 1, "cpu").optimization


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "multistep", "poly", "plateau", "constant", "none"])
@pytest.mark.parametrize("more", [(), ("--sched-on-updates",)])
def test_every_schedule_gives_rates_or_is_refused(sched, more):
    config = optimization("--sched", sched, "--lr", "0.5", *more)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), config.lr)
    if sched == "plateau" and more:
        with pytest.raises(UsageError, match="--sched plateau: .*per epoch"):
            create_scheduler(config, optimizer, 5)
        return
    scheduler = create_scheduler(config, optimizer, 5)
    for epoch in range(9):
        scheduler.step_update(5 * epoch + 5)
        scheduler.step(epoch + 1, 50.0)
        lr = optimizer.param_groups[0]["lr"]
        assert lr == 0.5 if sched in ("none", "constant") else 0 <= lr <= 0.5


def test_an_unknown_schedule_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(UsageError, match="--sched nope"):
        create_scheduler(optimization("--sched", "nope"), optimizer, 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--opt", "nope"), "--opt nope: .*nope"),
        (("--opt", "fusedadam"), "--opt fusedadam: .*(APEX|apex)"),
        (("--opt", "adahessian"), "--opt adahessian: .*second derivatives"),
        (("--opt", "momentum", "--opt-betas", "0.9"), "--opt momentum: --opt-betas 0.9: this optimizer has 0"),
        (("--opt", "adamw", "--opt-betas", "0.9"), "--opt adamw: --opt-betas 0.9.*has 2"),
        (("--opt", "adamw", "--opt-betas", "0.9", "0.9", "0.9"), "--opt adamw: --opt-betas 0.9.*has 2"),
    ],
)
def test_optimizers_that_cannot_make_a_step_are_refused(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_optimizer(optimization(*flags), nn.Linear(3, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", timm.optim.list_optimizers())
def test_every_optimizer_of_timm_works_or_is_refused(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    try:
        optimizer = create_optimizer(optimization("--opt", name, "--lr", "0.01"), model)
    except UsageError as error:
        assert "\n" not in str(error) and f"--opt {name}: " in str(error)
        return
    model(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()


def test_trying_an_optimizer_draws_nothing_from_the_run():
    torch.manual_seed(1)
    expected = torch.rand(3)
    model = nn.Linear(3, 2)
    torch.manual_seed(1)
    create_optimizer(optimization("--opt", "kron"), model)
    assert torch.equal(torch.rand(3), expected)
