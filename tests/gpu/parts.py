"""What the checks are made of: a run on random images, put together as a training puts it together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from subp_dist.build import build_training, plan_model
from subp_dist.data import Data
from subp_dist.models import create_model
from subp_dist.options import parse_args
from subp_dist.process_group import Rank
from subp_dist.resolve import resolve
from subp_dist.training import Training

CLASSES, MEAN, STD = 10, (0.5,) * 3, (0.2,) * 3


@dataclass(frozen=True)
class Place:
    """Where a check runs: on a device, in small (on a CPU, to try the checks themselves), with a folder to write to."""

    device: torch.device
    tiny: bool
    folder: Path
    network: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether this is what is to be proven."""
        return self.device.type == "cuda"

    @property
    def model(self) -> str:
        """A network for checks of what is right, not of how fast."""
        return self.network or ("test_resnet" if self.tiny else "resnet18")

    @property
    def pixels(self) -> int:
        """Side of the images of those."""
        return 32 if self.tiny else 64


def make_data(place: Place, images: int) -> Data:
    """Random images and labels, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorDataset:
        shape = count, 3, place.pixels, place.pixels
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        return TensorDataset(torch.randn(shape, generator=generator), labels)

    given = parse_args([place.model, "--batch-size", "8", "--workers", "0"])
    size = (3, place.pixels, place.pixels)
    train, val = split(images), split(16)
    return Data(given.data, given.augmentation, "timm", train, val, CLASSES, size, MEAN, STD)


def make_training(place: Place, *flags: str, rank: Rank | None = None, images: int = 48) -> tuple[Training, Data]:
    """A run of batches of 8, with a mask update every second step until all of its target is reached in epoch 1."""
    rank = rank or Rank(0, 1, place.device)
    always = ["--batch-size", "8", "--workers", "0", "--no-export", "--epochs", "3", "--lr", "0.02"]
    always += ["--prune-start", "0", "--prune-end", "1", "--prune-interval", "2", "--log-interval", "1000000"]
    given = parse_args([place.model, *always, *flags])
    torch.manual_seed(given.run.seed)
    data = make_data(place, images)
    model = create_model(place.model, num_classes=CLASSES)
    planned = plan_model(given, model, data.sizes)
    config = resolve(given, data, planned.rate, rank.world_size, rank.device.type)
    return build_training(config, rank, planned, data), data


def loader_of(training: Training, data: Data, epoch: int = 0, first_batch: int = 0):
    """Batches of an epoch, as a run has them."""
    loader = data.train_loader(training.rank, training.config.run.seed, training.config.model.channels_last)
    loader.set_epoch(epoch, first_batch=first_batch)
    return loader


def same_state(found: object, expected: object, where: str = "") -> list[str]:
    """Where two nested states differ in any bit."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), where
        return [text for key in expected for text in same_state(found[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=True)
        return [text for number, pair in enumerate(pairs) for text in same_state(*pair, f"{where}.{number}")]
    if isinstance(expected, Tensor):
        return [] if torch.equal(found.cpu(), expected.cpu()) else [where]
    return [] if found == expected else [f"{where}: {found} != {expected}"]


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def peak_bytes(place: Place, work: Callable[[], object]) -> int | None:
    """Most memory of the GPU that some work took beyond what was in use before; None on a CPU."""
    if not place.on_gpu:
        work()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def wait(place: Place) -> None:
    """Wait until the device has done all that it was given."""
    if place.on_gpu:
        torch.cuda.synchronize()
