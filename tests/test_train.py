"""subp_dist.train end to end on the built-in digits: what a run leaves, resume, features, bad input.

Model: timm's `test_resnet` (0.4 M parameters), 1 to 4 epochs, on one rank in this process; several ranks are in
test_launch.py, single steps in test_loop.py. Exactness: a resumed run must equal an undisturbed one bit for bit. Out of
scope: accuracy beyond "it learns".
"""

import csv
import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import subp_ext
from subp_dist import build, loop, pruner, train
from subp_dist.data import digits
from subp_dist.errors import NotFiniteError, Stopped, UsageError
from subp_dist.options import parse_args
from subp_dist.parametrization import block_mask_of

FLAGS = ["test_resnet", "--data-dir", "builtin", "--batch-size", "64", "--lr", "0.1", "--log-interval", "5"]


@pytest.fixture
def few_digits(monkeypatch):
    """Every fifth digit: 800 to train on, 200 to test."""
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels[::5], labels[::5]))


def run_and_export(output: Path, *flags: str) -> Path:
    return train.main(parse_args([*FLAGS, "--output", str(output), *flags]))


def run(output: Path, *flags: str) -> Path:
    """Without the export, which takes longer than such a training."""
    return run_and_export(output, "--no-export", *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One run on every other digit that others look at: the target is reached in the last two of four epochs."""
    pixels, labels = digits.load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", lambda: (pixels[::2], labels[::2]))
        return run_and_export(
            tmp_path_factory.mktemp("runs"), "--epochs", "4", "--prune-start", "0", "--prune-end", "2"
        )


def test_run_directory_is_complete(finished):
    assert {path.name for path in finished.iterdir()} == {
        *(
            "args.yaml",
            "resolved.yaml",
            "summary.csv",
            "last.pt",
            "previous.pt",
            "best.pt",
            "tensorboard",
            "model.safetensors",
            "model.subp",
        ),
        "report.json",
    }
    assert "num_classes" not in yaml.safe_load((finished / "args.yaml").read_text())
    assert yaml.safe_load((finished / "resolved.yaml").read_text())["data"]["num_classes"] == 10
    rows = list(csv.DictReader((finished / "summary.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[-1]["val_top1"]) > 60


def test_best_is_chosen_only_at_the_target_rate(finished):
    rows = list(csv.DictReader((finished / "summary.csv").open()))
    at_target = [row for row in rows if float(row["sparsity"]) > 0.499]
    assert [int(row["epoch"]) for row in at_target] == [2, 3]
    best = torch.load(finished / "best.pt", weights_only=True)
    assert best["best"] == max(float(row["val_top1"]) for row in at_target)


def test_no_best_before_the_target_rate(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "finish", lambda *_: None)
    original = train.train_epoch

    def stop_after_one(training, loader, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return original(training, loader, epoch, *rest)

    monkeypatch.setattr(train, "train_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--epochs", "3")
    folder = next(tmp_path.iterdir())
    assert (folder / "last.pt").exists()
    assert not (folder / "best.pt").exists()


def test_plain_weights_load_strictly_and_are_uniformly_sparse(finished):
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    model.load_state_dict(load_file(finished / "model.safetensors"), strict=True)
    weight = model.get_submodule("layers.1.0.conv2" if hasattr(model, "layers") else "layer2.0.conv2").weight
    rows = weight.detach().unflatten(0, (-1, 16)).abs().sum((1, 3, 4)) > 0
    kept = rows.sum(1)
    assert kept.min() == kept.max() == weight.shape[1] - weight.shape[1] // 2


def test_exported_model_predicts_the_same_on_every_test_digit(finished):
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    model.load_state_dict(load_file(finished / "model.safetensors"))
    images = torch.stack([image for image, _ in digits.Digits(train=False)])
    with torch.inference_mode():
        expected = model(images).numpy()
    found = subp_ext.Session(finished / "model.subp").run(images.numpy())
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).max() < 1e-4


def test_report_says_what_was_asked_and_achieved(finished):
    report = json.loads((finished / "report.json").read_text())
    pruned = [layer for layer in report["layers"] if layer["reason"] is None]
    assert pruned
    for layer in pruned:
        assert layer["kept"] == layer["blocks_per_row"] - int(0.5 * layer["blocks_per_row"])
        assert layer["kept_asked"] == 0.5 * layer["blocks_per_row"]
    assert report["macs"]["kept"] == sum(layer["kept_macs"] for layer in report["layers"])
    weights = load_file(finished / "model.safetensors")
    parameters = [name for name, _ in timm.create_model("test_resnet", num_classes=10, in_chans=1).named_parameters()]
    zeros = sum(int((weights[name] == 0).sum()) for name in parameters if weights[name].ndim == 4)
    assert report["parameters"]["dense"] - report["parameters"]["kept"] == zeros
    assert report["files"]["model.subp"] < 0.75 * report["files"]["model.safetensors"]


def test_tensorboard_holds_what_the_documentation_lists(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {
        "learning/loss_train",
        "learning/loss_val",
        "learning/top1",
        "validation/top5",
        "sparsity/target",
        "sparsity/actual",
    }
    scalars |= {"sparsity_change/flip_rate", "sparsity_change/regrown", "sparsity_macs/kept", "sparsity_macs/dense"}
    scalars |= {"training/lr", "training/grad_norm", "training/img_per_s", "training/data_time"}
    assert scalars <= set(tags["scalars"])
    assert any(tag.startswith("sparsity_per_layer/") for tag in tags["scalars"])
    assert any(tag.startswith("sparsity_masks/") for tag in tags["images"])
    assert any(tag.startswith("sparsity_scores/") for tag in tags["histograms"])
    assert [event.value for event in events.Scalars("sparsity/target")][-1] == 0.5


def states_equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "features",
    [
        ["--model-ema", "--opt", "adamw", "--lr", "0.002", "--mixup", "0.2", "--sched-on-updates"],
        pytest.param([], marks=SLOW),
        ["--model-ema", "--regroup", "--initial-checkpoint", "TEACHER"],
        pytest.param(
            [
                "--amp",
                "--amp-dtype",
                "bfloat16",
                "--grad-accum-steps",
                "3",
                "--prune-interval",
                "5",
                "--clip-grad",
                "1",
            ],
            marks=SLOW,
        ),
        pytest.param(
            [
                *("--amp", "--amp-dtype", "float16", "--model-ema", "--grad-checkpointing", "--channels-last"),
                *("--layer-rates", "layer4*=0.75"),
                *("--kd-model", "test_resnet", "--kd-checkpoint", "TEACHER"),
            ],
            marks=SLOW,  # half precision takes minutes on a CPU
        ),
    ],
    ids=["ema-adamw-mixup", "plain", "regroup-ema", "bf16-accumulation-interval", "fp16-ema-checkpointing-teacher"],
)
def test_resumed_run_equals_an_undisturbed_one(few_digits, tmp_path, monkeypatch, features, request):
    if "TEACHER" in features:
        teacher = request.getfixturevalue("finished") / "model.safetensors"
        features = [str(teacher) if flag == "TEACHER" else flag for flag in features]
    flags = ["--epochs", "3", "--prune-start", "0", "--prune-end", "2", *features]  # stopped in the middle of it
    undisturbed = run(tmp_path / "a", *flags)
    backward, batches = loop._backward, itertools.count(1)

    def stopped_on_the_way(*args):
        if next(batches) == 17:
            signal.raise_signal(signal.SIGTERM)
        return backward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_backward", stopped_on_the_way)
        with pytest.raises(Stopped, match=f"in epoch 1, after {'2 of 4' if '3' in features else '5 of 12'} steps"):
            run(tmp_path / "b", *flags)
    resumed = run(tmp_path / "b", *flags, "--resume", "auto")
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (undisturbed, resumed))
    for part in ("model", "optimizer", "scheduler", "scaler", "updates", "best", *(["ema"] if "ema" in a else [])):
        assert states_equal(a[part], b[part]), part
    rows = [list(csv.DictReader((folder / "summary.csv").open())) for folder in (undisturbed, resumed)]
    assert [row["val_top1"] for row in rows[0]] == [row["val_top1"] for row in rows[1]]


@pytest.mark.parametrize(
    "features",
    [
        ["--channels-last"],
        ["--torchcompile", "aot_eager"],
        ["--amp", "--clip-grad", "0.02", "--clip-mode", "agc"],
        ["--bce-loss", "--cutmix", "0.5", "--sched", "step", "--decay-epochs", "1"],
        ["--criterion", "l1", "--tau", "0.01", "--score-latent", "--block-size", "8", "--prune-schedule", "zhu_gupta"],
        [
            "--criterion",
            "l2",
            "--target-macs",
            "1.5M",
            "--smoothing",
            "0",
            "--warmup-epochs",
            "1",
            "--drop-path",
            "0.1",
        ],
    ],
    ids=["channels-last", "compile", "bf16-agc", "bce-cutmix-step", "l1-sharp-1x8", "l2-target-macs"],
)
def test_training_features_run_to_uniform_masks_and_export(few_digits, tmp_path, features):
    exports = "--criterion" in features  # the others change nothing in what is exported
    folder = (run_and_export if exports else run)(tmp_path, "--epochs", "2", *features)
    report = json.loads((folder / "report.json").read_text())
    assert all(np.isfinite(value) for value in report["accuracy"].values())
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text())
    assert resolved["model"]["amp_dtype"] == "bfloat16"  # of a CPU, where nothing is asked
    for layer in report["layers"]:
        if layer["reason"] is None:
            asked = report["prune_rate"]["asked"]
            assert layer["kept"] == layer["blocks_per_row"] - int(asked * layer["blocks_per_row"])
    if "--target-macs" in features:
        assert report["macs"]["kept"] <= 1.5e6
    if exports:
        logits = subp_ext.Session(folder / "model.subp").run(np.zeros((2, 1, 28, 28), np.float32))
        assert logits.shape == (2, 10)


def test_saved_flags_repeat_the_run(few_digits, tmp_path):
    first = run(tmp_path / "a", "--epochs", "1", "--skip", "*downsample*", "--target-macs", "2M")
    again = train.main(parse_args(["--config", str(first / "args.yaml"), "--output", str(tmp_path / "b")]))
    a, b = load_file(first / "model.safetensors"), load_file(again / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_saved_flags_start_another_run_with_values_derived_anew(few_digits, tmp_path):
    flags = [flag for flag in FLAGS if flag not in ("--lr", "0.1")]
    first = train.main(parse_args([*flags, "--epochs", "1", "--output", str(tmp_path), "--no-export"]))
    given = parse_args(["--config", str(first / "args.yaml"), "--epochs", "100", "--batch-size", "128"])
    training, _ = train.set_up(given, train.init_process_group("cpu"))
    config = training.config
    assert config.optimization.lr == pytest.approx(0.1 * 128 / 256)
    assert (config.pruning.prune_start, config.pruning.prune_end) == (4, 25)
    before = yaml.safe_load((first / "resolved.yaml").read_text())
    assert (before["optimization"]["lr"], before["pruning"]["prune_end"]) == (pytest.approx(0.1 * 64 / 256), 0)


def test_a_model_is_planned_once(few_digits, monkeypatch):
    calls, plan = [], build.plan_layers
    for module in (build, pruner):
        monkeypatch.setattr(module, "plan_layers", lambda *args, **kwargs: calls.append(1) or plan(*args, **kwargs))
    train.set_up(
        parse_args([*FLAGS, "--no-export", "--epochs", "4", "--target-macs", "2M"]), train.init_process_group("cpu")
    )
    assert calls == [1]


def test_moving_average_is_as_sparse_as_the_model(few_digits, tmp_path):
    folder = run(tmp_path, "--epochs", "2", "--model-ema", "--model-ema-decay", "0.9")
    state = torch.load(folder / "last.pt", weights_only=True)
    masks = [key for key in state["model"] if key.endswith(".mask")]
    assert masks and all(torch.equal(state["model"][key], state["ema"][key]) for key in masks)
    assert all(state["ema"][key].dtype == torch.bool for key in masks)


def test_a_dense_run_is_a_run_at_rate_zero(few_digits, tmp_path):
    folder = run(tmp_path, "--epochs", "1", "--prune-rate", "0", "--no-export")
    report = json.loads((folder / "report.json").read_text())
    assert report["macs"]["kept"] == report["macs"]["dense"]
    assert not (folder / "model.subp").exists() and (folder / "best.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnet51", "--data-dir", "builtin"], r"no model 'resnet51'; did you mean .*resnet50"),
        (["resnet18.nope_in1k", "--data-dir", "builtin"], r"no weights 'nope_in1k' of resnet18"),
        (["test_resnet", "--data-dir", "nowhere"], r"nowhere: no such folder"),
        (["test_resnet"], r"set --data-dir"),
        (["test_resnet", "--data-dir", "builtin", "--prune-rate", "1"], r"--prune-rate 1.0: expected a share"),
        (["test_resnet", "--data-dir", "builtin", "--epochs", "9", "--prune-end", "9"], r"last epoch is 8"),
        (["vit_tiny_patch16_224", "--data-dir", "builtin", "--img-size", "224"], r"nothing to prune.*stem"),
        (["test_resnet", "--data-dir", "builtin", "--skip", "layer9*"], r"layer9\*' matches no convolution"),
        (["test_resnet", "--data-dir", "builtin", "--batch-size", "4001"], r"less than a\s+batch of 4001"),
        (["test_resnet", "--data-dir", "builtin", "--opt", "nope"], r"--opt nope"),
        (["test_resnet", "--data-dir", "builtin", "--sched", "nope"], r"nope"),
        (["test_resnet", "--data-dir", "builtin", "--target-macs", "1K"], r"one block left per row"),
        (["test_resnet", "--data-dir", "builtin", "--resume", "none.pt"], r"none.pt: no such checkpoint"),
        (["test_resnet", "--data-dir", "builtin", "--prune-interval", "9999"], r"--prune-interval 9999"),
        (["test_resnet", "--data-dir", "builtin", "--torchcompile", "nope"], r"no such backend"),
        (["test_resnet", "--data-dir", "builtin", "--initial-checkpoint", "none"], r"--initial-checkpoint none"),
        (
            ["halonet26t", "--data-dir", "builtin"],
            r"not run on images of \(1, 28, 28\): \w.*made for 256x256.*--img-size",
        ),
        (["test_resnet", "--data-dir", "builtin", "--device", "tpu"], r"expected auto, cpu or cuda"),
        (
            ["test_resnet", "--data-dir", "builtin", "--device", "cpu", "--batch-size", "96", "--sync-bn"],
            r"--sync-bn needs GPUs.*NPROC=1 and --batch-size 96",
        ),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        train.main(parse_args([*flags, "--no-export", "--output", str(tmp_path / "runs")]))
    assert not (tmp_path / "runs").exists()


def test_an_error_after_the_ranks_have_met_leaves_no_process_group(monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    here = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UsageError, match="set --data-dir"):
        train.main(parse_args(["test_resnet", "--device", "cpu"]))
    assert not dist.is_initialized()


def test_a_model_that_cannot_be_exported_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(subp_ext, "supported_ops", lambda: ("conv2d",))
    with pytest.raises(UsageError, match=r"subp_ext has no operator .*linear \(node linear\).*--no-export"):
        run_and_export(tmp_path / "runs", "--epochs", "1")
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_not_overwritten(finished):
    with pytest.raises(UsageError, match="already holds a run"):
        run(finished.parent, "--epochs", "4", "--experiment", finished.name)


def test_resume_refuses_another_network(finished, tmp_path):
    with pytest.raises(UsageError, match=r"--block-size 16, this run has 8"):
        run(tmp_path, "--epochs", "4", "--block-size", "8", "--resume", str(finished / "last.pt"))


def test_resume_refuses_fewer_epochs_than_are_done(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "done"))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"--epochs 2: the checkpoint has done 4 epochs already"):
        run(tmp_path, "--epochs", "2", "--experiment", "done", "--resume", "auto")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_resume_refuses_a_damaged_checkpoint(finished, tmp_path):
    damaged = tmp_path / "damaged.pt"
    shutil.copy(finished / "last.pt", damaged)
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size // 2)
    with pytest.raises(UsageError, match=r"damaged.pt: damaged, or not a checkpoint"):
        run(tmp_path / "runs", "--epochs", "4", "--resume", str(damaged))
    assert not (tmp_path / "runs").exists()


def test_unwritable_output_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the run's folder"):
        run(tmp_path / "file", "--epochs", "1")


def test_diverged_training_stops_with_a_hint(few_digits, tmp_path):
    with pytest.raises(NotFiniteError, match=r"the loss is (nan|inf) at epoch .* lower --lr"):
        run(tmp_path, "--epochs", "2", "--lr", "1e30")


def test_trained_weights_can_be_the_start(finished, few_digits, tmp_path):
    folder = run(
        tmp_path, "--epochs", "1", "--initial-checkpoint", str(finished / "model.safetensors"), "--lr", "0.001"
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["accuracy"]["top1"] > 80


def test_initial_checkpoints_of_both_kinds_give_the_same_start(finished, tmp_path):
    state = load_file(finished / "model.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    for path in (finished / "model.safetensors", tmp_path / "weights.pth"):
        model, _ = train.create_model_and_data(parse_args([*FLAGS, "--initial-checkpoint", str(path)]))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_initial_checkpoints_that_cannot_be_are_one_clear_error(finished, tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "junk.pth").write_text("root:x:0:0:root:/root:/bin/bash")
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    torch.save(timm.create_model("test_resnet", in_chans=1).state_dict(), tmp_path / "classes.pth")
    for path, message in (
        (tmp_path / "junk.safetensors", "header too large"),
        (tmp_path / "junk.pth", "junk.pth does not fit test_resnet"),
        (tmp_path / "other.pth", r"Missing key.*\.\.\."),
        (tmp_path / "classes.pth", r"size mismatch for fc.weight.*1000, 96.*10, 96"),
        (finished / "last.pt", r"last\.pt is for --resume; the weights of a run are in its model\.safetensors"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            run(tmp_path / "runs", "--initial-checkpoint", str(path))
        assert "--initial-checkpoint" in str(caught.value) and len(str(caught.value)) < 700


def test_an_update_reaches_the_moving_average_without_an_optimizer_step(few_digits):
    given = parse_args([*FLAGS, "--epochs", "4", "--model-ema", "--no-export"])
    training, _ = train.set_up(given, train.init_process_group("cpu"))
    training.update_masks(3, 0)
    for name, mask in training.pruner.masks.items():
        average = block_mask_of(training.ema.module.get_submodule(name)).mask
        assert not mask.all() and torch.equal(average, mask) and average is not mask


def test_masked_layers_are_the_pruned_ones_of_the_report(finished):
    training, _ = train.set_up(parse_args([*FLAGS, "--no-export", "--epochs", "4"]), train.init_process_group("cpu"))
    masked = {name for name, module in training.model.named_modules() if block_mask_of(module) is not None}
    report = json.loads((finished / "report.json").read_text())
    assert masked == {layer["name"] for layer in report["layers"] if layer["reason"] is None}


def test_a_run_that_goes_on_with_other_flags_uses_them(few_digits, tmp_path):
    """Longer, at another rate, momentum and decay: as the flags say, and down to 0 at the new end alone."""
    run(tmp_path, "--epochs", "2", "--experiment", "a")
    longer = ["--epochs", "4", "--lr", "0.05", "--weight-decay", "0.01", "--momentum", "0.8", "--sched", "cosine"]
    folder = run(tmp_path, *longer, "--prune-start", "0", "--prune-end", "1", "--experiment", "a", "--resume", "auto")
    rates = [float(row["lr"]) for row in csv.DictReader((folder / "summary.csv").open())]
    want = [0.05 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in (3, 4)]  # the row has the rate of what comes next
    assert rates[2:] == pytest.approx(want)
    groups = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.8} and {group["weight_decay"] for group in groups} == {0, 0.01}


def test_another_learning_rate_per_image_follows_the_batch_after_a_resume(few_digits, tmp_path):
    flags = [flag for flag in FLAGS if flag not in ("--lr", "0.1")]
    start = [
        *flags,
        "--output",
        str(tmp_path),
        "--no-export",
        "--sched",
        "step",
        "--decay-epochs",
        "9",
        "--sched-on-updates",
    ]
    train.main(parse_args([*start, "--epochs", "2"]))
    folder = train.main(parse_args([*start, "--epochs", "3", "--batch-size", "32", "--resume", "auto"]))
    rates = [float(row["lr"]) for row in csv.DictReader((folder / "summary.csv").open())]
    assert rates == pytest.approx([0.1 * 64 / 256, 0.1 * 64 / 256, 0.1 * 32 / 256])


def test_waiting_for_a_plateau_goes_on_after_a_resume(few_digits, tmp_path, monkeypatch):
    """With figures that do not improve, so that the rate falls every other epoch; 160 digits are enough for that."""
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels[::5], labels[::5]))
    monkeypatch.setattr(train, "validate", lambda *_: {"loss": 1.0, "top1": 10.0, "top5": 50.0})
    patient = build.scheduler_kwargs
    monkeypatch.setattr(build, "scheduler_kwargs", lambda config: patient(config) | {"patience_epochs": 1})
    plateau = ["--sched", "plateau", "--no-export"]
    schedule = ["--prune-start", "0", "--prune-end", "1"]
    undisturbed = run(tmp_path / "a", "--epochs", "6", *plateau, *schedule)
    run(tmp_path / "b", "--epochs", "4", *plateau, *schedule)
    resumed = run(tmp_path / "b", "--epochs", "6", *plateau, *schedule, "--resume", "auto")
    a, b = ([row["lr"] for row in csv.DictReader((f / "summary.csv").open())] for f in (undisturbed, resumed))
    assert a == b and len(set(a)) > 2


def test_a_checkpoint_of_another_folder_does_not_mix_two_runs(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "other")
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").glob("*.*") if path.is_file()}
    with pytest.raises(UsageError, match="already holds a run"):
        run(tmp_path, "--epochs", "5", "--experiment", "other", "--resume", str(finished / "last.pt"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "other").glob("*.*") if path.is_file()}


def test_a_run_that_is_killed_before_it_has_copied_its_start_is_started_again(
    finished, few_digits, tmp_path, monkeypatch
):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/args.yaml").write_text("")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    schedule = ["--prune-start", "0", "--prune-end", "2"]
    folder = run(tmp_path, "--epochs", "4", *schedule, "--experiment", "new", "--resume", str(finished / "last.pt"))
    assert (folder / "report.json").is_file()


def test_a_run_that_goes_on_elsewhere_keeps_its_best(finished, few_digits, tmp_path, monkeypatch):
    schedule = ["--prune-start", "0", "--prune-end", "2"]
    folder = run(tmp_path, "--epochs", "4", *schedule, "--experiment", "done", "--resume", str(finished / "last.pt"))
    old, new = (torch.load(f / "best.pt", weights_only=True) for f in (finished, folder))
    assert states_equal(old["model"], new["model"])
    assert states_equal(load_file(folder / "model.safetensors"), load_file(finished / "model.safetensors"))

    monkeypatch.setattr(train, "validate", lambda *_: {"loss": 1.0, "top1": 1.0, "top5": 1.0})  # never the best again
    folder = run(tmp_path, "--epochs", "5", *schedule, "--experiment", "on", "--resume", str(finished / "last.pt"))
    assert json.loads((folder / "report.json").read_text())["accuracy"]["top1"] == old["best"]

    shutil.copy(finished / "last.pt", tmp_path / "alone.pt")
    folder = run(tmp_path, "--epochs", "5", *schedule, "--experiment", "new", "--resume", str(tmp_path / "alone.pt"))
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == 4  # its best is not at hand: the next one


def test_a_diverged_network_is_not_saved_over_a_good_one(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *_: {"loss": float("nan"), "top1": 10.0, "top5": 50.0})
    with pytest.raises(NotFiniteError, match="the validation loss is nan after epoch 0: lower --lr"):
        run(tmp_path, "--epochs", "2")
    assert not list(tmp_path.glob("*/*.pt"))


def test_a_cooldown_stays_at_the_last_rate_and_the_newest_epochs_are_kept(few_digits, tmp_path):
    flags = ("--epochs", "2", "--cooldown-epochs", "2", "--min-lr", "0.001", "--checkpoint-hist", "2")
    folder = run(tmp_path, *flags)
    rates = [float(row["lr"]) for row in csv.DictReader((folder / "summary.csv").open())]
    assert len(rates) == 4 and rates[1:] == [0.001] * 3
    assert sorted(path.name for path in folder.glob("epoch-*.pt")) == ["epoch-0002.pt", "epoch-0003.pt"]
    for epoch in (2, 3):
        assert torch.load(folder / f"epoch-000{epoch}.pt", weights_only=True)["epoch"] == epoch
