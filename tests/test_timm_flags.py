"""subp_dist.timm_flags: files of timm's training script, as it writes them and as people write them.

``files/timm_args.yaml`` has all flags of the script of timm 1.0; what each means was read there. Rates and epochs are
worked out by hand, or asked of timm. Out of scope: ranges of values (test_ranges.py).
"""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from subp_dist.config import TrainConfig
from subp_dist.errors import UsageError
from subp_dist.flags import build_parser
from subp_dist.models import create_pretrained
from subp_dist.options import parse_args
from subp_dist.resolve import learning_rate
from subp_dist.timm_flags import FOREIGN

FILE = Path(__file__).parent / "files/timm_args.yaml"
DOCS = Path(__file__).resolve().parent.parent / "docs/timm.md"


def with_values(tmp_path: Path, **changed) -> Path:
    values = yaml.safe_load(FILE.read_text()) | changed
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "args.yaml"


def test_the_file_of_a_run_of_timm_is_taken(caplog):
    given = parse_args(["--config", str(FILE)])
    optimization, augmentation = given.optimization, given.augmentation
    assert (given.model.name, given.model.amp, given.model.drop_path) == ("resnet50", True, 0.05)
    assert (optimization.opt, optimization.epochs, optimization.cooldown_epochs) == ("lamb", 100, 10)
    assert (augmentation.aa, augmentation.reprob, augmentation.remode) == ("rand-m7-mstd0.5-inc1", 0.25, "pixel")
    assert (augmentation.color_jitter, augmentation.mixup) == (0.4, 0.1)
    assert (given.data.train_interpolation, given.data.interpolation) == ("random", None)
    assert (given.run.output, given.run.device, given.run.checkpoint_hist) == ("output", "auto", 10)
    (record,) = caplog.records
    assert "\n" not in record.getMessage() and "'lr_k_decay'" in record.getMessage()


def test_every_flag_of_timm_is_known():
    ours = {option[2:].replace("-", "_") for action in build_parser()._actions for option in action.option_strings}
    assert set(yaml.safe_load(FILE.read_text())) - ours - set(FOREIGN) == {"data"}
    assert not set(FOREIGN) & ours


def test_what_stands_at_timms_default_asks_for_nothing_and_all_else_is_told_at_once(tmp_path):
    changed = {
        "aug_repeats": 3, "layer_decay": 0.7, "warmup_prefix": True, "mixup_off_epoch": 20, "opt_kwargs": {"lam": 1},
        "kd_model_name": "resnet101", "log_wandb": True, "no_prefetcher": True,
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        parse_args(["--config", str(with_values(tmp_path, **changed, epochs="many"))])
    text = str(caught.value)
    assert "\n" not in text and "epochs: 'many'" in text
    for flag in ("aug_repeats: 3", "layer_decay: 0.7", "warmup_prefix: True", "mixup_off_epoch: 20", "opt_kwargs: {"):
        assert f"{flag}" in text and "would change the training" in text
    assert "kd_model_name: 'resnet101'" in text and "--kd-model" in text
    assert "wandb" not in text and "prefetcher" not in text


@pytest.mark.parametrize("flag", sorted(flag for flag, foreign in FOREIGN.items() if not foreign.idle))
def test_a_flag_that_would_change_the_training_is_refused_by_name(tmp_path, flag):
    with pytest.raises(UsageError, match=f"{flag}: .*would change the training"):
        parse_args(["--config", str(with_values(tmp_path, **{flag: 0.123}))])


def test_a_misspelt_flag_is_not_taken_for_one_of_timm(tmp_path):
    with pytest.raises(UsageError, match="there is no flag 'layer_dekay'"):
        parse_args(["--config", str(with_values(tmp_path, layer_dekay=0.7))])


@pytest.mark.parametrize(
    ("opt", "scale", "expected"),
    [
        ("lamb", "", 0.005 * 2), ("adamw", "", 0.005 * 2), ("sgd", "", 0.005 * 4), ("lamb", "linear", 0.005 * 4),
        ("sgd", "sqrt", 0.005 * 2),
    ],
)  # fmt: skip
def test_the_learning_rate_grows_as_in_timm(tmp_path, opt, scale, expected):
    given = parse_args(["--config", str(with_values(tmp_path, opt=opt, lr_base_scale=scale))])
    assert learning_rate(given.optimization, 256, 4) == pytest.approx(expected)


def test_words_of_timm_are_said_in_ours(tmp_path):
    words = {"data_dir": None, "data": "/d", "color_jitter": None, "model_kwargs": {"stem_width": 16, "act": "silu"}}
    given = parse_args(["--config", str(with_values(tmp_path, **words, pretrained=True, pin_mem=True, reprob=0.0))])
    assert given.data.data_dir == "/d" and given.augmentation.color_jitter == 0
    assert set(given.model.model_kwargs) == {"stem_width=16", "act=silu"} and given.model.pretrained


def test_the_device_of_another_file_is_a_wish(tmp_path):
    (tmp_path / "own.yaml").write_text("model: resnet18\ndevice: cuda\n")
    assert parse_args(["--config", str(tmp_path / "own.yaml")]).run.device == "cuda"


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "step", "multistep", "constant", "plateau", "wsd"])
@pytest.mark.parametrize("cooldown", [0, 7])
def test_a_run_has_as_many_epochs_as_in_timm(sched, cooldown):
    config = (
        TrainConfig().replace(epochs=40, cooldown_epochs=cooldown, sched=sched, lr=0.1, decay_epochs=9).optimization
    )
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(config), updates_per_epoch=5)
    assert config.all_epochs == epochs
    if cooldown and epochs > 40:
        for epoch in range(39, epochs):
            scheduler.step(epoch + 1, 50.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(config.min_lr)


def test_the_table_of_the_documentation_is_complete():
    rows = {line.split("|")[1].strip().strip("`") for line in DOCS.read_text().splitlines() if line.startswith("| `")}
    assert {f"--{flag.replace('_', '-')}" for flag in FOREIGN} <= rows
    assert all(foreign.why in DOCS.read_text() for foreign in FOREIGN.values())


def test_weights_that_cannot_be_had_are_one_line(monkeypatch):
    with pytest.raises(UsageError, match="--pretrained: timm has no trained weights of botnet50ts_256; leave it out"):
        create_pretrained("botnet50ts_256")

    def offline(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError) as caught:
        create_pretrained("resnet18", num_classes=3)
    text = str(caught.value)
    assert "couldn't connect to the hub" in text and "\n" not in text and "--initial-checkpoint" in text
