"""launch/recipes/imagenet: the published rows, and each of them from end to end on a few photographs.

The table is that of the paper, written down once more. End to end: 64 pixels, 16 + 4 of each of two classes, one epoch;
one recipe in the fast suite, all ten on both loaders in the slow one. Out of scope: accuracy.
"""

import json
from pathlib import Path

import pytest
import torch
from photographs import write_photographs

from subp_dist import train
from subp_dist.data.storage import Storage
from subp_dist.data.write import open_pictures, verify, write
from subp_dist.options import parse_args
from subp_dist.process_group import Rank

RECIPES = Path(__file__).resolve().parent.parent / "launch/recipes/imagenet"
# model, pruned blocks of 128, downsample convolutions dense, MACs kept in G
PUBLISHED = {
    "resnet18": ("resnet18", 60, True, 1.03),
    "resnet34": ("resnet34", 59, True, 2.04),
    "resnet50-2g": ("resnet50", 66, False, 2.04),
    "resnet50-1g": ("resnet50", 98.5, False, 1.04),
    "mobilenetv1_100": ("mobilenetv1_100", 69, False, 0.278),
}
ALL = [f"{name}-1x{size}" for name in PUBLISHED for size in (16, 32)]


def test_every_published_row_has_its_recipe():
    assert {path.stem for path in RECIPES.iterdir()} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_recipes_are_the_published_settings(name):
    given = parse_args(["--config", str(RECIPES / f"{name}.yaml")])
    row, _, size = name.rpartition("-1x")
    model, blocks, dense_downsample, _ = PUBLISHED[row]
    pruning, optimization = given.pruning, given.optimization
    assert (given.model.name, pruning.block_size, given.run.experiment) == (model, int(size), name)
    assert pruning.prune_rate == pytest.approx(blocks / 128, abs=1e-9)
    assert pruning.skip == (("*downsample*",) if dense_downsample else ())
    assert (optimization.opt, optimization.lr, optimization.lr_base) == ("momentum", None, 0.1)
    assert (optimization.lr_base_size, optimization.momentum, optimization.weight_decay) == (256, 0.9, 1e-4)
    assert (given.augmentation.smoothing, optimization.sched, optimization.warmup_epochs) == (0.1, "cosine", 0)
    assert (optimization.epochs, pruning.prune_start, pruning.prune_end) == (250, 10, 180)
    assert (pruning.prune_schedule, pruning.criterion) == ("cubic", "bpar")
    assert (given.data.img_size, given.data.crop_pct, given.model.amp) == (224, 0.875, True)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Pictures and, beside them, .beton files."""
    root = write_photographs(tmp_path_factory.mktemp("photographs"), 16, 4)
    for split in ("train", "val"):
        pictures = open_pictures("", str(root), split)
        storage = Storage(128)
        indices, largest = verify(pictures, storage, 1, skip=False)
        write(root / f"{split}_{storage}.beton", pictures, indices, storage, 1, largest)
    return root


def run(name: str, loader: str, photographs: Path, output: Path) -> dict:
    tiny = {"epochs": 1, "prune-start": 0, "prune-end": 0, "img-size": 64, "batch-size": 16, "workers": 2}
    flags = [text for flag, value in tiny.items() for text in (f"--{flag}", str(value))]
    where = ["--data-dir", str(photographs), "--loader", loader, "--output", str(output), "--device", "cpu"]
    folder = train.main(parse_args(["--config", str(RECIPES / f"{name}.yaml"), *flags, *where]))
    return json.loads((folder / "report.json").read_text())


def check(report: dict, name: str, loader: str) -> None:
    blocks = PUBLISHED[name.rpartition("-1x")[0]][1]
    pruned = [layer for layer in report["layers"] if layer["reason"] is None]
    assert pruned and all(
        layer["blocks_per_row"] - layer["kept"] == int(blocks / 128 * layer["blocks_per_row"]) for layer in pruned
    )
    assert report["timings"]["loader"] == loader
    assert 0 <= report["timings"]["data_share"] <= 1
    assert report["files"]["model.subp"] > 0


def test_a_recipe_runs_from_end_to_end_on_both_loaders(photographs, tmp_path):
    for loader in ("ffcv", "timm"):
        check(run("resnet18-1x16", loader, photographs, tmp_path / loader), "resnet18-1x16", loader)
    # The same weights, validated through both loaders.
    accuracies = {}
    for loader in ("ffcv", "timm"):
        flags = ["--data-dir", str(photographs), "--img-size", "64", "--batch-size", "4", "--loader", loader]
        model, data = train.create_model_and_data(parse_args(["test_resnet", *flags]))
        model.eval()
        hits = 0
        with torch.inference_mode():
            for images, labels in data.val_loader(Rank(0, 1, torch.device("cpu"))):
                hits += int((model(images).argmax(1) == labels).sum())
        accuracies[loader] = hits
    assert abs(accuracies["ffcv"] - accuracies["timm"]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["ffcv", "timm"])
@pytest.mark.parametrize("name", ALL)
def test_every_recipe_runs_from_end_to_end(photographs, tmp_path, name, loader):
    check(run(name, loader, photographs, tmp_path), name, loader)
