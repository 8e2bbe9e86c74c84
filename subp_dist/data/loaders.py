"""Loaders for training and validation; every validation image is delivered exactly once at any world size."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import timm.data
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..distributed import Rank
from ..errors import UsageError
from . import digits
from .resumable import ResumableLoader

_VAL_FOLDERS = ("val", "validation", "valid", "test", "eval")


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        train, val: data sets of (image ``[C, H, W]`` float32, label).
        num_classes, input_size: classes, and (channels, height, width) of an image.
        mean, std: normalisation per channel, for whoever serves the model later.
        class_names: name of each class, or None where the data has none.
    """

    train: Dataset
    val: Dataset
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None = None

    def train_loader(self, args: argparse.Namespace, rank: Rank) -> ResumableLoader:
        """Shuffled anew each epoch (``loader.set_epoch``); incomplete batches are dropped.

        Raises:
            UsageError: a rank's share is smaller than a batch.
        """
        share = len(self.train) // rank.world_size
        if share < args.batch_size:
            raise UsageError(
                f"{len(self.train)} training images over {rank.world_size} ranks are {share} each, less than a "
                f"batch of {args.batch_size}: set a smaller --batch-size, or NPROC"
            )
        settings = _loading(args, rank)
        return ResumableLoader(self.train, args.batch_size, rank.rank, rank.world_size, args.seed, **settings)

    def val_loader(self, args: argparse.Namespace, rank: Rank) -> DataLoader:
        """This rank's share of the validation images, in order: no padding, so sums over ranks are exact."""
        share = Subset(self.val, range(rank.rank, len(self.val), rank.world_size))
        return DataLoader(share, args.validation_batch_size or args.batch_size, **_loading(args, rank))


def _loading(args: argparse.Namespace, rank: Rank) -> dict:
    workers = 0 if args.data_dir == "builtin" else min(args.workers, len(os.sched_getaffinity(0)))
    return {"num_workers": workers, "pin_memory": rank.device.type == "cuda"}


def create_data(args: argparse.Namespace, model_config: dict) -> Data:
    """The data of a run.

    Args:
        args: the flags of ``subp_dist.options``.
        model_config: the model's ``pretrained_cfg``; its image size, mean, std and crop are the defaults.

    Raises:
        UsageError: there is no such data, or a part of it is missing.
    """
    if not args.data_dir and not args.dataset:
        raise UsageError("no data given: set --data-dir to a folder with train/ and val/, or to 'builtin' for digits")
    if args.data_dir == "builtin":
        return _digits(args)
    config = _resolve_config(args, model_config)
    train, val = _datasets(args)
    shared = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    train.transform = timm.data.create_transform(
        **shared,
        is_training=True,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        color_jitter=args.color_jitter or None,
        auto_augment=args.aa,
        re_prob=args.reprob,
    )
    val.transform = timm.data.create_transform(**shared, crop_pct=config["crop_pct"], crop_mode=config["crop_mode"])
    names = _class_names(train)
    if names is not None and names != _class_names(val):
        raise UsageError(
            f"{args.data_dir}: the class folders of training ({len(names)}) and validation "
            f"({len(_class_names(val) or [])}) differ; both need the same names"
        )
    num_classes = args.num_classes or (len(names) if names else None)
    if num_classes is None:
        raise UsageError(f"--dataset {args.dataset} does not say how many classes it has: set --num-classes")
    if names is not None and num_classes < len(names):
        raise UsageError(f"--num-classes {num_classes}: the data has {len(names)} classes")
    return Data(train, val, num_classes, config["input_size"], config["mean"], config["std"], names)


def _resolve_config(args: argparse.Namespace, model_config: dict) -> dict:
    """Image size, normalisation, crop: the flags over the model's own."""
    given = {key: value for key, value in vars(args).items() if value not in (None, "")}
    config = timm.data.resolve_data_config(given, pretrained_cfg=model_config)
    channels = args.in_chans or 3
    if channels not in (1, 3):
        raise UsageError(f"--in-chans {channels}: pictures are read as grey (1) or colour (3)")
    config["input_size"] = (channels, *config["input_size"][1:])
    for key in ("mean", "std"):
        if len(config[key]) != channels:
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config


def _digits(args: argparse.Namespace) -> Data:
    if args.in_chans not in (None, 1):
        raise UsageError(f"--in-chans {args.in_chans}: the built-in digits are grey; leave it out")
    if args.num_classes not in (None, digits.NUM_CLASSES):
        raise UsageError(f"--num-classes {args.num_classes}: the built-in digits have {digits.NUM_CLASSES}")
    size = args.img_size or digits.SIZE
    train, val = digits.Digits(train=True, size=size), digits.Digits(train=False, size=size)
    names = [str(digit) for digit in range(digits.NUM_CLASSES)]
    return Data(train, val, digits.NUM_CLASSES, (1, size, size), digits.MEAN, digits.STD, names)


def _datasets(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    if not args.dataset:
        root = Path(args.data_dir)
        if not root.is_dir():
            raise UsageError(f"--data-dir {root}: no such folder; expected one with train/ and val/ in it")
        if not (root / args.train_split).is_dir():
            raise UsageError(f"--data-dir {root}: it has no {args.train_split}/ (see --train-split)")
        if not any((root / name).is_dir() for name in (args.val_split, *_VAL_FOLDERS)):
            raise UsageError(f"--data-dir {root}: it has no val/ or validation/ (see --val-split)")
    mode = "L" if args.in_chans == 1 else "RGB"
    found = []
    for split in (args.train_split, args.val_split):
        try:
            found.append(timm.data.create_dataset(args.dataset, args.data_dir, split=split, input_img_mode=mode))
        except (AssertionError, OSError, RuntimeError, ValueError, ImportError) as error:
            raise UsageError(f"cannot read the split {split!r} of {args.dataset or args.data_dir}: {error}") from error
        if isinstance(found[-1], IterableDataset):
            raise UsageError(f"--dataset {args.dataset}: streams are not supported; unpack it to a folder of pictures")
    return found[0], found[1]


def _class_names(dataset: Dataset) -> list[str] | None:
    """Names of the classes by index, from a folder reader or a torchvision data set."""
    mapping = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    return sorted(mapping, key=mapping.get) if mapping else None
