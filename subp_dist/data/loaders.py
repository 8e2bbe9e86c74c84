"""Loaders for training and validation; every validation image is delivered exactly once at any world size."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm.data
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import UsageError
from ..process_group import Rank
from . import digits
from .augment import ImageAugment, timm_transform
from .beton import Beton, sidecar_of
from .choice import choose_loader
from .ffcv_loader import Crop, FFCVLoader, Output, choose_reading
from .resolutions import Resolutions
from .resumable import ResumableLoader, leave_stopping_to_the_rank
from .splits import check_same_classes, class_names, open_split, spread_out

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        train, val: data sets of (image ``[C, H, W]`` float32, label), or FFCV's files.
        num_classes, input_size: classes, and (channels, height, width) of an image.
        mean, std: normalisation per channel, for whoever serves the model later.
        class_names: name of each class, or None where the data has none.
        resolutions: size of training images by epoch.
        transform: makes the training transform for a size, for pictures.
        crop_share, interpolation: of validation's central square, and filter of all resizes, for FFCV's files.
    """

    train: Dataset | Beton
    val: Dataset | Beton
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None = None
    resolutions: Resolutions | None = None
    transform: Callable[[int], Callable] | None = None
    crop_share: float = 0.875
    interpolation: str = "bilinear"

    def train_loader(self, args: argparse.Namespace, rank: Rank) -> ResumableLoader | FFCVLoader:
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
        if isinstance(self.train, Beton):
            crop = Crop(True, tuple(args.scale), tuple(args.ratio), args.hflip, filter=self.interpolation)
            size = self.resolutions.at
            return self._ffcv_loader(self.train, args, rank, args.batch_size, size, crop, ImageAugment.from_args(args))

        def resize(epoch: int) -> None:
            if self.transform is not None:
                self.train.transform = self.transform(self.resolutions.at(epoch))

        settings = _loading(args, rank) | {"on_epoch": resize}
        return ResumableLoader(self.train, args.batch_size, rank.rank, rank.world_size, args.seed, **settings)

    def val_loader(self, args: argparse.Namespace, rank: Rank, limit: int | None = None) -> DataLoader | FFCVLoader:
        """This rank's share of the validation images, in order: no padding, so sums over ranks are exact.

        Args:
            args: the run's flags.
            rank: this process.
            limit: look at so many images only, spread over all.
        """
        batch_size = args.validation_batch_size or args.batch_size
        if isinstance(self.val, Beton):
            crop = Crop(False, share=self.crop_share, filter=self.interpolation)
            return self._ffcv_loader(self.val, args, rank, batch_size, self.input_size[1], crop, limit=limit)
        share = Subset(self.val, spread_out(len(self.val), limit)[rank.rank :: rank.world_size].tolist())
        return DataLoader(share, batch_size, **_loading(args, rank))

    def _ffcv_loader(
        self,
        beton: Beton,
        args: argparse.Namespace,
        rank: Rank,
        batch_size: int,
        size: int | Callable[[int], int],
        crop: Crop,
        augment: ImageAugment | None = None,
        limit: int | None = None,
    ) -> FFCVLoader:
        import psutil

        available = psutil.virtual_memory().available
        page_cache, why = choose_reading(beton.file_size, available, rank.world_size, ordered=not crop.train)
        _logger.info("%s: %d images, %s", beton.path.name, len(beton), why)
        output = Output(self.mean, self.std, rank.device, args.channels_last, augment)
        return FFCVLoader(
            beton,
            batch_size,
            size,
            crop,
            output,
            rank.rank,
            rank.world_size,
            args.seed,
            args.workers,
            page_cache,
            limit,
        )


def _loading(args: argparse.Namespace, rank: Rank) -> dict:
    workers = 0 if args.data_dir == "builtin" else min(args.workers, len(os.sched_getaffinity(0)))
    pin_memory = rank.device.type == "cuda"
    return {"num_workers": workers, "pin_memory": pin_memory, "worker_init_fn": leave_stopping_to_the_rank}


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
    betons = choose_loader(args)
    args.loader = "ffcv" if betons else "timm"
    resolutions = Resolutions.parse(args.res_schedule, config["input_size"][1], args.epochs)
    if betons:
        return _from_betons(args, config, betons, resolutions)
    mode = "L" if args.in_chans == 1 else "RGB"
    train, val = (open_split(args.dataset, args.data_dir, split, mode) for split in (args.train_split, args.val_split))
    settings = {key: config[key] for key in ("interpolation", "mean", "std")}

    def in_mode(transform: Callable) -> Callable:
        return _InMode(transform, mode) if args.dataset.lower().startswith("torch/") else transform

    def transform(size: int) -> Callable:
        created = timm_transform(
            args,
            (config["input_size"][0], size, size),
            **settings,
            is_training=True,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            color_jitter=args.color_jitter or None,
            auto_augment=args.aa,
            re_prob=args.reprob,
        )
        return in_mode(created)

    train.transform = transform(config["input_size"][1])
    crop = {key: config[key] for key in ("crop_pct", "crop_mode")}
    val.transform = in_mode(timm_transform(args, config["input_size"], **settings, **crop))
    names = class_names(train)
    check_same_classes(names, class_names(val), args.data_dir or args.dataset)
    num_classes = _count_classes(args, names, f"--dataset {args.dataset}")
    shared = config["mean"], config["std"], names, resolutions
    return Data(train, val, num_classes, config["input_size"], *shared, transform)


@dataclass(frozen=True)
class _InMode:
    """A transform of pictures made colour or grey before, which torchvision's data sets leave as they are."""

    transform: Callable
    mode: str

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.transform(picture.convert(self.mode))


def _from_betons(args: argparse.Namespace, config: dict, paths: tuple[Path, Path], resolutions: Resolutions) -> Data:
    channels, height, width = config["input_size"]
    if channels != 3:
        raise UsageError(f"--in-chans {channels}: .beton files hold colour pictures; --loader timm reads grey ones")
    if config["crop_mode"] != "center" or config["crop_pct"] > 1 or height != width:
        raise UsageError(
            f"--loader ffcv crops a square from within an image; {args.model} wants {height}x{width}, crop_mode "
            f"{config['crop_mode']}, crop_pct {config['crop_pct']}: set --img-size and --crop-pct, or use --loader timm"
        )
    train, val = (Beton.open(path) for path in paths)
    for beton, other in ((train, val), (val, train)):
        if beton.class_names is None and other.class_names is not None:
            missing = sidecar_of(beton.path)
            raise UsageError(f"{missing}: no such file; it names the classes of {beton.path.name}: copy it there too")
    where = f"{train.path.name} and {val.path.name}, which launch/write_ffcv.sh writes together"
    check_same_classes(train.class_names, val.class_names, where)
    num_classes = _count_classes(args, train.class_names, f"{paths[0].name}, which was not written by this package,")
    for beton in (train, val):
        if beton.labels.max() >= num_classes:
            raise UsageError(f"--num-classes {num_classes}: {beton.path.name} has the label {beton.labels.max()}")
    crop = {"crop_share": config["crop_pct"], "interpolation": config["interpolation"]}
    shared = config["mean"], config["std"], train.class_names, resolutions
    return Data(train, val, num_classes, config["input_size"], *shared, **crop)


def _count_classes(args: argparse.Namespace, names: list[str] | None, source: str) -> int:
    num_classes = args.num_classes or (len(names) if names else None)
    if num_classes is None:
        raise UsageError(f"{source} does not say how many classes it has: set --num-classes")
    if names is not None and num_classes < len(names):
        raise UsageError(f"--num-classes {num_classes}: the data has {len(names)} classes")
    return num_classes


def _resolve_config(args: argparse.Namespace, model_config: dict) -> dict:
    """Image size, normalisation, crop: the flags over the model's own."""
    given = {key: value for key, value in vars(args).items() if value not in (None, "")}
    channels = args.in_chans or 3
    if channels not in (1, 3):
        raise UsageError(f"--in-chans {channels}: pictures are read as grey (1) or colour (3)")
    for key in ("mean", "std"):
        if len(given.get(key, ())) not in (0, 1, channels):
            raise UsageError(
                f"--{key} {' '.join(map(str, given[key]))}: expected one value or {channels}, one a channel"
            )
    config = timm.data.resolve_data_config(given | {"in_chans": channels}, pretrained_cfg=model_config)
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
    if args.loader == "ffcv" or args.res_schedule:
        flag = "--res-schedule" if args.res_schedule else "--loader ffcv"
        raise UsageError(f"{flag}: the built-in digits lie in memory, in one size; leave it out")
    size = args.img_size or digits.SIZE
    train, val = digits.Digits(train=True, size=size), digits.Digits(train=False, size=size)
    names = [str(digit) for digit in range(digits.NUM_CLASSES)]
    return Data(train, val, digits.NUM_CLASSES, (1, size, size), digits.MEAN, digits.STD, names)
