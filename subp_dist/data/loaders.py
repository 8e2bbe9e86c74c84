"""Loaders for training and validation; every validation image is delivered exactly once at any world size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm.data
from torch.utils.data import Dataset, Subset

from ..config import AugmentationConfig, DataConfig
from ..cores import usable_cores
from ..errors import UsageError
from ..process_group import Rank
from . import digits
from .augment import ImageAugment, timm_transform
from .beton import Beton, sidecar_of
from .choice import choose_loader
from .ffcv_loader import Crop, FFCVLoader, Output, choose_reading
from .guarded import GuardedLoader
from .pictures import Pictures
from .resolutions import Resolutions
from .resumable import ResumableLoader
from .splits import check_same_classes, class_names, open_split, spread_out

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        config, augmentation: as they were given.
        loader: what reads the images, ``ffcv`` or ``timm``; as it was asked for where both would do the same.
        train, val: data sets of (image ``[C, H, W]`` float32, label), or FFCV's files.
        num_classes, input_size: classes, and (channels, height, width) of an image.
        mean, std: normalisation per channel, for whoever serves the model later.
        class_names: name of each class, or None where the data has none.
        resolutions: size of training images by epoch.
        transform: makes the training transform for a size, for pictures.
        crop_pct, interpolation: of validation's central square, and filter of all resizes; None where nothing is
            resized.
    """

    config: DataConfig
    augmentation: AugmentationConfig
    loader: str
    train: Dataset | Beton
    val: Dataset | Beton
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None = None
    resolutions: Resolutions | None = None
    transform: Callable[[int], Callable] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of all images that a network meets: those of validation first, then those of training only."""
        channels, side, _ = self.input_size
        sides = {pixels for _, pixels in self.resolutions.steps} if self.resolutions else set()
        return [self.input_size, *((channels, pixels, pixels) for pixels in sorted(sides - {side}))]

    def train_loader(self, rank: Rank, seed: int, channels_last: bool = False) -> ResumableLoader | FFCVLoader:
        """Shuffled anew each epoch (``loader.set_epoch``); incomplete batches are dropped.

        Raises:
            UsageError: a rank's share is smaller than a batch.
        """
        batch_size, share = self.config.batch_size, len(self.train) // rank.world_size
        if share < batch_size:
            raise UsageError(
                f"{len(self.train)} training images over {rank.world_size} ranks are {share} each, less than a "
                f"batch of {batch_size}: set a smaller --batch-size, or NPROC"
            )
        if isinstance(self.train, Beton):
            varied = self.augmentation
            resize_filter = self.config.train_interpolation or self.interpolation
            crop = Crop(True, varied.scale, varied.ratio, varied.hflip, filter=resize_filter)
            augment = ImageAugment.for_images(varied, self.input_size[1])
            output = Output(self.mean, self.std, rank.device, channels_last, augment)
            return self._ffcv_loader(self.train, rank, batch_size, self.resolutions.at, crop, output, seed=seed)

        def resize(epoch: int) -> None:
            if self.transform is not None:
                self.train.transform = self.transform(self.resolutions.at(epoch))

        settings = _loading(self.config, rank) | {"on_epoch": resize}
        return ResumableLoader(self.train, batch_size, rank.rank, rank.world_size, seed, **settings)

    def val_loader(
        self, rank: Rank, channels_last: bool = False, limit: int | None = None
    ) -> GuardedLoader | FFCVLoader:
        """This rank's share of the validation images, in order: no padding, so sums over ranks are exact.

        Args:
            rank: this process.
            channels_last: memory format of FFCV's images.
            limit: look at so many images only, spread over all.
        """
        batch_size = self.config.validation_batch_size or self.config.batch_size
        if isinstance(self.val, Beton):
            crop = Crop(False, share=self.crop_pct, filter=self.interpolation)
            output = Output(self.mean, self.std, rank.device, channels_last)
            return self._ffcv_loader(self.val, rank, batch_size, self.input_size[1], crop, output, limit=limit)
        share = Subset(self.val, spread_out(len(self.val), limit)[rank.rank :: rank.world_size].tolist())
        return GuardedLoader(share, batch_size, **_loading(self.config, rank))

    def _ffcv_loader(
        self,
        beton: Beton,
        rank: Rank,
        batch_size: int,
        size: int | Callable[[int], int],
        crop: Crop,
        output: Output,
        seed: int = 0,
        limit: int | None = None,
    ) -> FFCVLoader:
        import psutil

        available = psutil.virtual_memory().available
        page_cache, why = choose_reading(beton.file_size, available, rank.world_size, ordered=not crop.train)
        page_cache = page_cache or beton.kept is not None  # FFCV's page order knows whole files only
        _logger.info("%s: %d images, %s", beton.path.name, len(beton), why)
        share, workers = (rank.rank, rank.world_size), self.config.workers
        return FFCVLoader(beton, batch_size, size, crop, output, *share, seed, workers, page_cache, limit)


def _loading(config: DataConfig, rank: Rank) -> dict:
    workers = 0 if config.data_dir == "builtin" else min(config.workers, usable_cores())
    pin_memory = rank.device.type == "cuda"
    return {"num_workers": workers, "pin_memory": pin_memory}


def create_data(config: DataConfig, augmentation: AugmentationConfig, model_config: dict, epochs: int) -> Data:
    """The data of a run.

    Args:
        config: where it is and how it is read.
        augmentation: how training images are varied.
        model_config: the model's ``pretrained_cfg``; its image size, mean, std and crop are the defaults.
        epochs: of the run, which a schedule of image sizes must fit.

    Raises:
        UsageError: there is no such data, or a part of it is missing.
    """
    if not config.data_dir and not config.dataset:
        raise UsageError("no data given: set --data-dir to a folder with train/ and val/, or to 'builtin' for digits")
    data = _open(config, augmentation, model_config, epochs)
    counts = len(data.train), len(data.val), data.num_classes
    _logger.info("images: %d for training, %d for validation; %d classes", *counts)
    return data


def _open(config: DataConfig, augmentation: AugmentationConfig, model_config: dict, epochs: int) -> Data:
    if config.data_dir == "builtin":
        _logger.info("loader: none; the built-in digits lie in memory")
        return _digits(config, augmentation)
    images = _resolve_images(config, model_config)
    betons = choose_loader(config)
    resolutions = Resolutions.parse(config.res_schedule, images["input_size"][1], epochs)
    shared = {key: images[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    shared |= {"config": config, "augmentation": augmentation, "resolutions": resolutions}
    if betons:
        return _from_betons(config, images["crop_mode"], betons, shared)
    return _from_pictures(config, augmentation, images, shared)


def _from_pictures(config: DataConfig, augmentation: AugmentationConfig, images: dict, shared: dict) -> Data:
    mode = "L" if config.in_chans == 1 else "RGB"
    splits = (config.train_split, config.val_split)
    train, val = (Pictures(open_split(config.dataset, config.data_dir, split, mode), mode) for split in splits)
    if config.broken == "skip":
        from .write import sound_pictures

        for pictures in (train, val):
            pictures.kept = sound_pictures(pictures)
    settings = {key: images[key] for key in ("interpolation", "mean", "std")}

    def transform(size: int) -> Callable:
        return timm_transform(
            (images["input_size"][0], size, size),
            **settings | ({"interpolation": config.train_interpolation} if config.train_interpolation else {}),
            is_training=True,
            no_aug=augmentation.no_aug,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            hflip=augmentation.hflip,
            vflip=augmentation.vflip,
            color_jitter=augmentation.color_jitter or None,
            auto_augment=augmentation.aa,
            re_prob=augmentation.reprob,
            re_mode=augmentation.remode,
            re_count=augmentation.recount,
        )

    train.transform = transform(images["input_size"][1])
    crop = {key: images[key] for key in ("crop_pct", "crop_mode")}
    val.transform = timm_transform(images["input_size"], **settings, **crop)
    names = class_names(train.dataset)
    check_same_classes(names, class_names(val.dataset), config.data_dir or config.dataset)
    num_classes = _count_classes(config, names, f"--dataset {config.dataset}")
    return Data(
        loader="timm", train=train, val=val, num_classes=num_classes, class_names=names, transform=transform, **shared
    )


def _from_betons(config: DataConfig, crop_mode: str, paths: tuple[Path, Path], shared: dict) -> Data:
    channels, height, width = shared["input_size"]
    if channels != 3:
        raise UsageError(f"--in-chans {channels}: .beton files hold colour pictures; --loader timm reads grey ones")
    if crop_mode != "center" or shared["crop_pct"] > 1 or height != width:
        raise UsageError(
            f"--loader ffcv crops a square from within an image; the model wants {height}x{width}, crop_mode "
            f"{crop_mode}, crop_pct {shared['crop_pct']}: set --img-size and --crop-pct, or use --loader timm"
        )
    for flag, is_given in (
        ("--vflip", shared["augmentation"].vflip > 0),
        ("--no-aug", shared["augmentation"].no_aug),
        ("--train-interpolation random", config.train_interpolation == "random"),
    ):
        if is_given:
            raise UsageError(f"{flag}: only pictures are loaded so; leave it out, or use --loader timm")
    train, val = (Beton.open(path) for path in paths)
    for beton, other in ((train, val), (val, train)):
        if beton.class_names is None and other.class_names is not None:
            missing = sidecar_of(beton.path)
            raise UsageError(f"{missing}: no such file; it names the classes of {beton.path.name}: copy it there too")
    where = f"{train.path.name} and {val.path.name}, which launch/write_ffcv.sh writes together"
    check_same_classes(train.class_names, val.class_names, where)
    if config.broken == "skip":
        train, val = train.without_broken(), val.without_broken()
    num_classes = _count_classes(config, train.class_names, f"{paths[0].name}, which was not written by this package,")
    for beton in (train, val):
        if beton.labels.max() >= num_classes:
            raise UsageError(f"--num-classes {num_classes}: {beton.path.name} has the label {beton.labels.max()}")
    return Data(loader="ffcv", train=train, val=val, num_classes=num_classes, class_names=train.class_names, **shared)


def _count_classes(config: DataConfig, names: list[str] | None, source: str) -> int:
    num_classes = config.num_classes or (len(names) if names else None)
    if num_classes is None:
        raise UsageError(f"{source} does not say how many classes it has: set --num-classes")
    if names is not None and num_classes < len(names):
        raise UsageError(f"--num-classes {num_classes}: the data has {len(names)} classes")
    return num_classes


def _resolve_images(config: DataConfig, model_config: dict) -> dict:
    """Image size, normalisation, crop: the flags over the model's own."""
    flags = {key: getattr(config, key) for key in ("img_size", "mean", "std", "crop_pct", "interpolation")}
    given = {key: value for key, value in flags.items() if value is not None}
    channels = config.in_chans or 3
    if channels not in (1, 3):
        raise UsageError(f"--in-chans {channels}: pictures are read as grey (1) or colour (3)")
    for key in ("mean", "std"):
        if len(given.get(key, ())) not in (0, 1, channels):
            raise UsageError(
                f"--{key} {' '.join(map(str, given[key]))}: expected one value or {channels}, one a channel"
            )
    images = timm.data.resolve_data_config(given | {"in_chans": channels}, pretrained_cfg=model_config)
    images["input_size"] = (channels, *images["input_size"][1:])
    for key in ("mean", "std"):
        if len(images[key]) != channels:
            images[key] = (sum(images[key]) / len(images[key]),) * channels
    return images


def _digits(config: DataConfig, augmentation: AugmentationConfig) -> Data:
    if config.in_chans not in (None, 1):
        raise UsageError(f"--in-chans {config.in_chans}: the built-in digits are grey; leave it out")
    if config.num_classes not in (None, digits.NUM_CLASSES):
        raise UsageError(f"--num-classes {config.num_classes}: the built-in digits have {digits.NUM_CLASSES}")
    if config.loader == "ffcv" or config.res_schedule:
        flag = "--res-schedule" if config.res_schedule else "--loader ffcv"
        raise UsageError(f"{flag}: the built-in digits lie in memory, in one size; leave it out")
    for flag, given in (("mean", config.mean), ("std", config.std)):
        if len(given or (0,)) != 1:
            raise UsageError(
                f"--{flag} {' '.join(map(str, given))}: expected one value, for the built-in digits are grey"
            )
    size, mean, std = config.img_size or digits.SIZE, config.mean or digits.MEAN, config.std or digits.STD
    return Data(
        config=config,
        augmentation=augmentation,
        loader=config.loader,
        train=digits.Digits(True, size, mean, std, augmentation),
        val=digits.Digits(False, size, mean, std),
        num_classes=digits.NUM_CLASSES,
        input_size=(1, size, size),
        mean=mean,
        std=std,
        class_names=[str(digit) for digit in range(digits.NUM_CLASSES)],
    )
