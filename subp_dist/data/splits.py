"""The splits of a folder of class folders, or of a timm data set, opened with errors that say what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import timm.data
from timm.data import ImageDataset
from torch.utils.data import Dataset, IterableDataset

from ..errors import UsageError
from .folders import ClassFolders

_logger = logging.getLogger(__name__)

# Names under which a validation split is looked for, whichever of them was asked for.
VAL_NAMES = ("val", "validation", "valid", "test", "eval")


def open_split(dataset: str, root: str, split: str, mode: str = "RGB") -> Dataset:
    """One split.

    Args:
        dataset: timm dataset name, such as ``torch/cifar10``; empty for folders.
        root: the folder with the splits in it, or where the data set lies.
        split: its name.
        mode: Pillow's mode of the images.

    Raises:
        UsageError: there is no such thing, or nothing in it.
    """
    if dataset and "/" not in dataset:
        raise UsageError(f"--dataset {dataset}: expected PREFIX/NAME, such as torch/cifar10; leave it out for folders")
    if dataset.lower().startswith("torch/") and not root:
        raise UsageError(f"--dataset {dataset}: set --data-dir to the folder that it lies in")
    if not dataset:
        return _open_folder(_folder_of(Path(root), split), split)
    try:
        found = timm.data.create_dataset(dataset, root=root, split=split, input_img_mode=mode)
    except (AssertionError, OSError, RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"cannot read the split {split!r} of {dataset}: {error}") from error
    if isinstance(found, IterableDataset):
        raise UsageError(f"--dataset {dataset}: streams are not supported; unpack it to a folder of pictures")
    if not len(found):
        raise UsageError(f"{dataset}: the split {split!r} has no images")
    return found


def _open_folder(folder: Path, split: str) -> Dataset:
    """A folder of class folders; what is left out of it is logged."""
    reader = ClassFolders(str(folder))
    if not len(reader):
        raise UsageError(
            f"cannot read the split {split!r}: {reader.report() or f'{folder} is empty'}; expected "
            f"{folder}/CLASS/PICTURE"
        )
    if "" in reader.class_to_idx:
        raise UsageError(f"{folder}: pictures lie in it, not in class folders; expected {folder}/CLASS/PICTURE")
    if (report := reader.report()) is not None:
        _logger.warning("%s", report)
    return ImageDataset(str(folder), reader=reader)


def _folder_of(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected one with train/ and val/ of class folders in it")
    names = (split, *VAL_NAMES) if split in VAL_NAMES else (split,)
    # timm knows other synonyms, and reads the whole of the root where it finds none.
    folder = next((root / name for name in names if name and (root / name).is_dir()), None)
    if folder is None:
        raise UsageError(f"{root}: it has no {split}/; name the splits with --train-split and --val-split")
    return folder


def class_to_idx(dataset: Dataset) -> dict[str, int] | None:
    """Classes by name, where the data knows them.

    torchvision's ImageNet has several names for a class, and the same for two; its folders' names tell them apart.
    """
    source = getattr(dataset, "reader", dataset)
    return getattr(source, "wnid_to_idx", None) or getattr(source, "class_to_idx", None)


def class_names(dataset: Dataset) -> list[str] | None:
    """Names of the classes by index, where the data knows them."""
    mapping = class_to_idx(dataset)
    return sorted(mapping, key=mapping.get) if mapping else None


def spread_out(total: int, limit: int | None) -> np.ndarray:
    """Indices of all images, or of ``limit`` at equal distances: pictures are often sorted by class."""
    count = total if limit is None else min(total, limit)
    return np.arange(count) * total // count


def check_same_classes(train: list[str] | None, val: list[str] | None, where: str) -> None:
    """Compare what training and validation call their classes.

    Raises:
        UsageError: they differ; the first names that only one of them has are in the message.
    """
    if train == val:
        return
    train, val = set(train or ()), set(val or ())
    only = [
        f"only in {name}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for name, names in (("training", train - val), ("validation", val - train))
        if names
    ]
    raise UsageError(
        f"{where}: the classes of training ({len(train)}) and validation ({len(val)}) differ; "
        f"{'; '.join(only) or 'they are in another order'}; both need the same"
    )
