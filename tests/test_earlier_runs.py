"""Runs of earlier versions: their folder and their checkpoints, which hold flags in one flat dict, still serve.

``earlier_run`` was written before configurations were stored by subject: 2 epochs of ``resnet10t`` with 8 to 16
channels on all digits, 29.2 % right.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import subp_ext
from subp_dist import train
from subp_dist.checkpoint import load_checkpoint
from subp_dist.config import Resolved
from subp_dist.errors import UsageError
from subp_dist.export import Network, formats
from subp_dist.options import parse_args
from subp_dist.run_folder import read_config
from subp_dist.validate import Run, compare

EARLIER = Path(__file__).resolve().parent / "earlier_run"
FLAGS = [
    *("resnet10t", "--data-dir", "builtin", "--batch-size", "400", "--lr-base", "0.2", "--block-size", "8"),
    *("--model-kwargs", "channels=[8,8,8,16]", "stem_width=8", "--skip", "*downsample*"),
    *("--prune-start", "0", "--prune-end", "1", "--experiment", "run"),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "run"))


def test_the_folder_and_the_checkpoint_say_the_same():
    config = read_config(EARLIER)
    assert config == Resolved.from_dict(load_checkpoint(EARLIER / "last.pt")["config"]).replace(resume=None)
    assert (config.data.num_classes, config.data.mean, config.optimization.lr) == (10, (0.1307,), 0.2 * 400 / 256)
    assert config.model.model_kwargs == ("channels=[8,8,8,16]", "stem_width=8")


def test_it_is_exported(tmp_path):
    network = Network.open(EARLIER / "last.pt")
    formats.export(network, "subp", tmp_path / "model.subp")
    images = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    found, expected = (subp_ext.Session(path).run(images) for path in (tmp_path / "model.subp", EARLIER / "model.subp"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert network.metadata["class_names"] == [str(digit) for digit in range(10)]


def test_it_is_validated(monkeypatch):
    monkeypatch.setattr("subp_dist.validate.time_in_turns", lambda contenders: {name: [1.0] for name in contenders})
    run = Run.open(EARLIER)
    comparison = compare(run, None, threads=1)
    assert comparison["columns"]["sparse, torch"]["top1"] == pytest.approx(29.2)
    assert comparison["same_predictions"] == comparison["images"] == 1000


def test_a_finished_one_is_exported_again_as_it_was(folder, caplog):
    train.main(parse_args([*FLAGS, "--epochs", "2", "--output", str(folder.parent), "--resume", "auto"]))
    assert "resuming with other flags" not in caplog.text
    expected, found = (load_file(path / "model.safetensors") for path in (EARLIER, folder))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    assert (folder / "resolved.yaml").is_file()


def test_one_goes_on(folder, caplog):
    train.main(parse_args([*FLAGS, "--epochs", "3", "--output", str(folder.parent), "--resume", "auto"]))
    changes = next(r.getMessage() for r in caplog.records if "resuming with other flags" in r.getMessage())
    assert changes == "resuming with other flags: epochs 2 -> 3"
    state = load_checkpoint(folder / "last.pt")
    assert state["epoch"] == 2 and state["config"]["optimization"]["epochs"] == 3 and "args" not in state


def test_another_network_is_refused(folder):
    other = ["--epochs", "3", "--block-size", "16", "--output", str(folder.parent), "--resume", "auto"]
    with pytest.raises(UsageError, match="trained with --block-size 8, this run has 16"):
        train.main(parse_args([*FLAGS, *other]))


def test_its_flags_repeat_it(folder):
    given = parse_args(["--config", str(folder / "args.yaml")])
    written = yaml.safe_load((folder / "args.yaml").read_text())
    # Flags that it did not have yet are at their defaults.
    later = {name: value for name, value in parse_args(["resnet18"]).flags().items() if name not in written}
    assert given.flags() | {"preset": None} == later | written | {"resume": None}
