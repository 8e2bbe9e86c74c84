"""What a run records, read back with TensorBoard's own reader: pictures at milestones, names in order, one layout."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from subp_dist.errors import UsageError
from subp_dist.monitor import LAYOUT, Monitor
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

MACS = {"0": 100, "1": 16 * 64, "2": 50}


def small_pruner(rate: float = 0.5) -> SUBPPruner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(4, 4))
    return SUBPPruner(model, PruneSchedule(rate, 1, 4, "linear"))


def record(folder: Path, pruner: SUBPPruner, interval: int = 100, epochs: range = range(6)) -> None:
    """Ten steps an epoch, as a run records them."""
    monitor = Monitor(folder, epochs[0], 10 * epochs[0])
    for epoch in epochs:
        update = pruner.step(epoch)
        monitor.mask_update(update, pruner.report(MACS), pruner.masks, 10 * epoch, epoch % interval == 0)
        monitor.train_step(1 / (epoch + 1), 0.1, 2.0, 10 * epoch + 5)
        monitor.speed(100.0, 0.1, 10 * epoch + 9)
        monitor.validation({"loss": 1.0, "top1": 50.0, "top5": 90.0, "raw_loss": 2.0, "raw_top1": 40.0}, 10 * epoch + 9)
    monitor.finish(pruner.report(MACS), pruner.masks, {"lr": 0.1, "skip": ["a"]}, {"top1": 50.0})
    monitor.close()


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("run")
    record(folder, small_pruner())
    return read(folder)


def test_masks_are_drawn_when_pruning_starts_on_the_way_at_the_target_and_at_the_end(events):
    assert events.Tags()["images"] == ["sparsity_masks/1"]
    pictures = events.Images("sparsity_masks/1")
    assert [picture.step for picture in pictures] == [20, 30, 40, 59]
    shares = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB")
        assert image.width >= 700 and image.height >= 200
        colors = {color: count for count, color in image.getcolors(1 << 20)}
        pruned, kept = colors[222, 226, 230], colors[31, 78, 121]
        shares.append(round(pruned / (pruned + kept), 1))
    assert shares == [0.2, 0.3, 0.5, 0.5]


def test_masks_are_drawn_at_intervals_once_anything_is_pruned(tmp_path):
    record(tmp_path, small_pruner(), interval=1)
    assert [picture.step for picture in read(tmp_path).Images("sparsity_masks/1")] == [20, 30, 40, 50, 59]


def test_a_dense_run_has_no_pictures_of_masks(tmp_path):
    record(tmp_path, small_pruner(0.0), interval=1)
    assert read(tmp_path).Tags()["images"] == []


def test_a_resumed_run_goes_on_with_its_pictures(tmp_path):
    pruner = small_pruner()
    record(tmp_path, pruner, epochs=range(4))  # interrupted after this, with a picture of its end
    record(tmp_path, pruner, epochs=range(3, 6))
    assert [picture.step for picture in read(tmp_path).Images("sparsity_masks/1")] == [20, 40, 59]


def test_scores_have_histograms_where_masks_have_pictures(events):
    assert [histogram.step for histogram in events.Histograms("sparsity_scores/1")] == [0, 20, 30, 40]


def test_what_was_learned_comes_first_and_what_came_of_it_last(events):
    tags = (tag for kind in ("scalars", "images", "histograms") for tag in events.Tags()[kind])
    assert list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(tags))) == [
        *("learning", "sparsity", "sparsity_change", "sparsity_macs", "sparsity_masks", "sparsity_per_layer"),
        *("sparsity_scores", "training", "training_result", "validation"),
    ]


def test_the_layout_names_what_is_recorded_in_the_order_of_the_story(events):
    content = events.summary_metadata["custom_scalars__config__"] and events.Tensors("custom_scalars__config__")[0]
    layout = layout_pb2.Layout.FromString(content.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["learning", "sparsity", "training"]
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert tags == [tag for charts in LAYOUT.values() for _, named in charts.values() for tag in named]
    assert set(tags) <= set(events.Tags()["scalars"])


def test_a_monitor_without_a_folder_does_nothing():
    monitor, pruner = Monitor(None), small_pruner()
    monitor.mask_update(pruner.step(4), pruner.report(MACS), pruner.masks, 0, True)
    monitor.finish(pruner.report(MACS), pruner.masks, {}, {})
    monitor.validation({"loss": 1.0}, 0)
    monitor.close()


def test_lines_go_nowhere_where_standard_output_is_closed(tmp_path, monkeypatch):
    monitor = Monitor(tmp_path)
    monkeypatch.setattr(sys, "stdout", None)
    monitor.line("epoch 0")
    monitor.close()


def test_standard_output_on_a_full_disk_is_not_taken_for_the_folder(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monitor = Monitor(tmp_path)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(UsageError, match=r"^cannot write to standard output: No space left on device. Earlier"):
        monitor.line("epoch 0")
    monitor.close()
