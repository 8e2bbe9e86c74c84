"""subp_dist.options: the command line over a YAML file over the defaults, and what is refused."""

import ast
import pwd
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from subp_dist.errors import UsageError
from subp_dist.flag_values import as_path, as_path_text, parse_macs
from subp_dist.flags import build_parser
from subp_dist.options import parse_args
from subp_ext.bench.arguments import as_path as as_path_of_runtime


def test_defaults_are_the_published_recipe():
    given = parse_args(["resnet50"])
    optimization, pruning, augmentation = given.optimization, given.pruning, given.augmentation
    assert (optimization.lr_base, optimization.lr_base_size) == (0.1, 256)
    assert (optimization.momentum, optimization.weight_decay) == (0.9, 1e-4)
    assert (optimization.opt, optimization.sched) == ("momentum", "cosine")
    assert (optimization.warmup_epochs, optimization.epochs) == (0, 250)
    assert (pruning.criterion, pruning.tau, pruning.alpha, pruning.prune_schedule) == ("bpar", 1.0, 1.0, "cubic")
    assert (pruning.block_size, pruning.sr_ste_decay) == (16, 2e-4)
    assert (augmentation.smoothing, augmentation.color_jitter) == (0.1, 0.0)


def test_int8_needs_the_export():
    assert parse_args(["resnet18"]).run.export_dtype == "float32"
    assert parse_args(["resnet18", "--export-dtype", "int8"]).run.export_dtype == "int8"
    with pytest.raises(UsageError, match="--export-dtype int8 with --no-export: int8 is made of what is exported"):
        parse_args(["resnet18", "--export-dtype", "int8", "--no-export"])


def test_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: resnet18\nlr: 0.3\nprune-rate: 0.25\nskip: ['*downsample*']\namp: true\n"
    )
    given = parse_args(["--config", str(tmp_path / "run.yaml"), "--lr", "0.2"])
    assert (given.model.name, given.optimization.lr, given.model.amp) == ("resnet18", 0.2, True)
    assert (given.pruning.prune_rate, given.pruning.skip) == (0.25, ("*downsample*",))
    assert parse_args(["resnet34", "--config", str(tmp_path / "run.yaml")]).model.name == "resnet34"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prun_rate: 0.5", "no flag 'prun_rate'"),
        ("lr: fast", "lr: 'fast': expected float"),
        ("amp: 1", "expected true or false"),
        ("skip: conv1", "expected a list"),
        ("lr: [1]", "expected a single value"),
        ("criterion: l3", "expected one of l1, l2, bpar"),
        ("epochs: 2.5", "expected int"),
        ("- a", "expected lines of"),
        ("a: [", "run.yaml"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_args(["resnet18", "--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune-rate", "-0.1"],
        ["--prune-rate", "1"],
        ["--prune-rate", "nan"],
        ["--epochs", "0"],
        ["--batch-size", "0"],
        ["--tau", "0"],
        ["--smoothing", "1"],
        ["--mixup", "0.2", "--batch-size", "7"],
        ["--warmup-epochs", "5", "--epochs", "5"],
        ["--workers", "-1"],
        ["--block-size", "12"],
        ["--model-ema-decay", "2"],
        ["--model-ema-decay", "nan"],
        ["--momentum", "1"],
        ["--drop", "7"],
        ["--drop-path", "-0.1"],
        ["--clip-grad", "0"],
        ["--sr-ste-decay", "nan"],
        ["--weight-decay", "-1"],
        ["--lr", "nan"],
        ["--lr-base", "inf"],
        ["--alpha", "nan"],
        ["--no-such-flag"],
        ["--prune", "0.5"],
        ["--config", "nowhere.yaml"],
    ],
)
def test_bad_values_are_usage_errors(flags):
    with pytest.raises(UsageError):
        parse_args(["resnet18", *flags])


def test_every_flag_is_explained():
    assert all(action.help for action in build_parser()._actions)


@pytest.mark.parametrize(("text", "macs"), [("2.0G", 2e9), ("300M", 3e8), ("5k", 5e3), ("1000", 1e3)])
def test_macs_with_suffix(text, macs):
    assert parse_macs(text) == macs


@pytest.mark.parametrize("text", ["", "G", "-1G", "two", "0", "nan"])
def test_bad_macs(text):
    with pytest.raises(UsageError, match="--target-macs"):
        parse_macs(text)


@pytest.mark.parametrize(
    "line, message",
    [
        ("skip:", "skip: None: expected a value; leave the line out for the default"),
        ("prune-rate:", "expected a value.*0.5"),
        ("weight_decay: null", "expected a value"),
        ("scale: [0.08]", "expected 2 values"),
        ("mean: []", "expected one or more values"),
    ],
)
def test_empty_values_in_a_file_are_refused(tmp_path, line, message):
    (tmp_path / "run.yaml").write_text(f"model: resnet18\n{line}\n")
    with pytest.raises(UsageError, match=message):
        parse_args(["--config", str(tmp_path / "run.yaml")])


def test_an_empty_value_is_the_default_where_that_is_none(tmp_path):
    (tmp_path / "run.yaml").write_text("model: resnet18\nlr:\n")
    assert parse_args(["--config", str(tmp_path / "run.yaml")]).optimization.lr is None


def test_what_people_type_from_timm_is_taken(tmp_path):
    (tmp_path / "run.yaml").write_text("model: resnet34\nwd: 0.3\ninput_size: [3, 96, 96]\n")
    given = parse_args(["-c", str(tmp_path / "run.yaml"), "--model", "resnet18"])
    assert given.model.name == "resnet18" and given.optimization.weight_decay == 0.3
    assert (given.data.in_chans, given.data.img_size) == (3, 96)
    given = parse_args(["--model", "resnet18", "--wd", "2e-5", "--input-size", "1", "64", "64"])
    assert (given.optimization.weight_decay, given.data.in_chans, given.data.img_size) == (2e-5, 1, 64)
    assert parse_args(["resnet18", "--model", "resnet18"]).model.name == "resnet18"


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/", ""])
def test_names_of_timms_hub_are_timms_names(prefix):
    given = parse_args([f"{prefix}resnet18.a1_in1k", "--kd-model", f"{prefix}resnet50"])
    assert (given.model.name, given.distillation.kd_model) == ("resnet18.a1_in1k", "resnet50")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnet34", "--model", "resnet18"], "--model resnet18: the model is resnet34 already"),
        (["resnet18", "--input-size", "3", "64", "96"], "--input-size 3 64 96: expected a square"),
        (["resnet18", "--input-size", "3", "64", "64", "--img-size", "32"], "--input-size 3 64 64: --img-size says 32"),
        (["resnet18", "--input-size", "3", "64"], "--input-size: expected 3 arguments"),
        (["--model"], "--model: expected one argument"),
    ],
)
def test_what_contradicts_itself_is_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        parse_args(flags)


def test_all_that_is_wrong_with_a_file_is_told_in_one_line(tmp_path):
    (tmp_path / "args.yaml").write_text(
        "model: resnet18\nlr: fast\neval_metrik: top1\nmixup_modus: batch\nlog_wandb: false\nepochs: 2.5\n"
    )
    with pytest.raises(UsageError) as caught:
        parse_args(["--config", str(tmp_path / "args.yaml")])
    text = str(caught.value)
    assert (
        "lr: 'fast': expected float; epochs: 2.5: expected int; there are no flags 'eval_metrik', 'mixup_modus'" in text
    )
    assert "\n" not in text and "log_wandb" not in text


def test_flags_of_timm_that_are_off_are_passed_over_in_one_line(tmp_path, caplog):
    (tmp_path / "args.yaml").write_text(
        "model: resnet18\nlog_wandb: false\nhead_init_scale: null\nclass_map: ''\nmodel_kwargs: {}\n"
        "interpolation: ''\nresume: ''\naa: null\ninput_size: null\n"
    )
    given = parse_args(["--config", str(tmp_path / "args.yaml")])
    assert given.model.model_kwargs == () and given.data.interpolation is None
    (record,) = caplog.records
    assert "'log_wandb', 'head_init_scale', 'class_map'" in record.getMessage()


ROOT = Path(__file__).resolve().parent.parent
PATH_METAVARS = {"FILE", "DIR", "RUN", "RUN_OR_CHECKPOINT", "GRID", "CSV", "SRC", "DST", "FILE.subp", "SWEEP.json"}
PATH_FLAGS = {"--output", "--data-dir", "--config", "--json", "--plot", "--files", "--results", "--betons"}


def arguments_of_all_parsers() -> list:
    """(where, name, metavar, type) of every argument of every command, as the source has it."""
    found = []
    for file in (*ROOT.glob("subp_dist/**/*.py"), *ROOT.glob("ext/**/*.py")):
        if "add_argument" not in file.read_text():
            continue
        tree = ast.parse(file.read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).split(".")[-1] not in ("add", "add_argument"):
                continue
            names = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            said = {keyword.arg: ast.unparse(keyword.value).strip("'") for keyword in call.keywords}
            found.append((f"{file.name}:{call.lineno}", names, said.get("metavar"), said.get("type")))
    return found


def test_every_argument_that_is_a_path_has_the_type_of_paths():
    arguments = arguments_of_all_parsers()
    paths = [entry for entry in arguments if entry[2] in PATH_METAVARS or PATH_FLAGS & set(entry[1])]
    assert len(paths) > 30
    assert [entry for entry in paths if entry[3] not in ("as_path", "as_path_text")] == []
    assert [entry for entry in arguments if entry[3] == "Path"] == []


@pytest.mark.parametrize("convert", [as_path, as_path_text, as_path_of_runtime])
def test_a_home_folder_is_written_out(monkeypatch, convert):
    monkeypatch.setenv("HOME", "/home/ann bé")
    assert str(convert("~/runs")) == "/home/ann bé/runs" and str(convert("~")) == "/home/ann bé"
    assert str(convert("~root/x")) == f"{pwd.getpwnam('root').pw_dir}/x"
    assert (str(convert("a/~/b")), str(convert("auto"))) == ("a/~/b", "auto")
    with pytest.raises(ArgumentTypeError, match="'~nobody-of-this-name/x': .*home folder"):
        convert("~nobody-of-this-name/x")


def test_home_folders_in_flags_and_in_files(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("model: resnet18\ndata_dir: ~/data\noutput: ~nobody-of-this-name\n")
    with pytest.raises(UsageError, match="output: '~nobody-of-this-name': .*no home folder"):
        parse_args(["--config", "~/run.yaml"])
    (tmp_path / "run.yaml").write_text("model: resnet18\ndata_dir: ~/data\n")
    given = parse_args(["--config=~/run.yaml", "--output=~/runs", "--resume", "~/last.pt", "--initial-checkpoint=~/w"])
    assert given.data.data_dir == f"{tmp_path}/data"
    assert (given.run.output, given.run.resume) == (f"{tmp_path}/runs", f"{tmp_path}/last.pt")
    assert given.model.initial_checkpoint == f"{tmp_path}/w"
    assert parse_args(["resnet18"]).data.data_dir is None and parse_args(["resnet18"]).model.initial_checkpoint == ""
    with pytest.raises(UsageError, match="--output: '~nobody-of-this-name': .*no home folder"):
        parse_args(["resnet18", "--output", "~nobody-of-this-name"])
