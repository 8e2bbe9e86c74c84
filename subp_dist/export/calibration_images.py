"""Pictures to calibrate on: a run's training data through the validation transform, any folder, or random numbers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..config import Resolved
from ..data import Data, create_data
from ..data.augment import timm_transform
from ..data.folders import readable_extensions
from ..data.pictures import Pictures
from ..data.splits import spread_out
from ..errors import UsageError
from ..process_group import Rank

Images = tuple[np.ndarray, np.ndarray | None]


def calibration_images(data: Data, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training pictures, spread over all, as they would be validated on.

    Args:
        data: of a run.
        count: how many; fewer if there are fewer.

    Returns:
        Images [n, C, H, W] float32, normalised, and their labels [n].

    Raises:
        DataError: a picture cannot be read.
    """
    train = data.train
    if isinstance(train, Pictures):
        train = copy.copy(train)
        train.transform = cast("Pictures", data.val).transform
    loader = replace(data, val=train).val_loader(Rank(0, 1, torch.device("cpu")), limit=count)
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.ascontiguousarray(images, np.float32), labels


def images_of_run(config: Resolved, model: nn.Module, data_dir: Path | None, count: int) -> Images:
    """Pictures of a run's training data, or of another folder: one like the run's own, or of any pictures.

    Raises:
        UsageError: there is no such folder, or it has no pictures.
    """
    if data_dir is not None:
        _check_folder(data_dir)
        if not any((data_dir / split).is_dir() for split in ("train", config.data.train_split)) and not any(
            data_dir.glob("*.beton")
        ):
            data = config.data
            size = (data.in_chans, data.img_size, data.img_size)
            settings = {
                "mean": data.mean,
                "std": data.std,
                "crop_pct": data.crop_pct,
                "interpolation": data.interpolation,
            }
            return _loose(data_dir, model, size, {k: v for k, v in settings.items() if v is not None}, count), None
        config = config.replace(data_dir=str(data_dir), loader="auto")
    pretrained = cast("dict[str, Any]", getattr(model, "pretrained_cfg", {}))
    return calibration_images(
        create_data(config.data, config.augmentation, pretrained, config.optimization.all_epochs), count
    )


def images_of_folder(folder: Path, model: nn.Module, size: tuple[int, int, int], count: int) -> np.ndarray:
    """Any pictures below a folder, as timm validates a model on them.

    Raises:
        UsageError: there is no such folder, or it has no pictures.
    """
    _check_folder(folder)
    return _loose(folder, model, size, {}, count)


def random_images(input_size: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    """Normally distributed pixels, [count, C, H, W]: for networks with random weights, which have no data."""
    return np.random.default_rng(seed).standard_normal((count, *input_size), np.float32)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"--data-dir {folder}: no such folder; it takes one of pictures to calibrate on")


class _Files(torch.utils.data.Dataset):
    """Picture files without labels, as ``Pictures`` reads data sets."""

    def __init__(self, paths: list[Path]) -> None:
        self.samples = [(path, 0) for path in paths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.samples[index][0]) as opened:
            return opened.copy(), 0


def _loose(
    folder: Path, model: nn.Module, size: tuple[int, int, int], settings: dict[str, Any], count: int
) -> np.ndarray:
    endings = readable_extensions()
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in endings and not path.name.startswith(".")
    )
    if not paths:
        raise UsageError(f"--data-dir {folder}: no pictures in it; it takes a folder of pictures to calibrate on")
    pretrained = cast("dict[str, Any]", getattr(model, "pretrained_cfg", {}))
    known = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    given = {key: pretrained[key] for key in known if pretrained.get(key) is not None} | settings
    pictures = Pictures(_Files(paths), "L" if size[0] == 1 else "RGB", timm_transform(size, **given))
    return np.stack([pictures[int(index)][0].numpy() for index in spread_out(len(pictures), count)])
