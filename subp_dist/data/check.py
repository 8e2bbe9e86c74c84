"""``--check-data``: every file of both splits is tried before a training, and all that is wrong with them is listed."""

from __future__ import annotations

import sys
from collections.abc import Callable

from timm.data import ImageDataset

from ..config import DataConfig
from ..cores import usable_cores
from ..errors import UsageError
from .beton import Beton
from .choice import choose_loader
from .folders import ClassFolders
from .pictures import Pictures as PictureFiles
from .splits import check_same_classes, class_names, open_split
from .storage import Storage
from .write import Pictures, verify


def check_data(config: DataConfig) -> int:
    """Try all files, with a progress bar, and print what is wrong to standard error; returns how many things are.

    A picture that cannot be read counts, a file that is left out because it is no picture (hidden ones aside), a split
    that cannot be opened, and classes that differ between the splits.

    Raises:
        UsageError: there is no data to check.
    """
    if not config.data_dir and not config.dataset:
        raise UsageError("--check-data: set --data-dir, or --dataset")
    if config.data_dir == "builtin":
        return 0
    betons = choose_loader(config)
    if betons:
        return _check_splits([lambda path=path: _check_beton(Beton.open(path)) for path in betons])
    splits = (config.train_split, config.val_split)
    return _check_splits([lambda split=split: _check_pictures(config, split) for split in splits])


def _check_splits(checks: list[Callable[[], tuple[int, list[str] | None]]]) -> int:
    wrong, classes = 0, []
    for check in checks:
        try:
            count, names = check()
        except UsageError as error:
            count, names = 1, None
            _tell(str(error))
        wrong += count
        classes.append(names)
    if None not in classes:
        try:
            check_same_classes(classes[0], classes[-1], "the data")
        except UsageError as error:
            wrong += 1
            _tell(str(error))
    return wrong


def _check_pictures(config: DataConfig, split: str) -> tuple[int, list[str] | None]:
    mode = "L" if config.in_chans == 1 else "RGB"
    found = PictureFiles(open_split(config.dataset, config.data_dir or "", split, mode), mode)
    workers = usable_cores()
    sound, _ = verify(Pictures(found.dataset, mode), Storage(0, 0.0), workers, skip=True)
    broken, left_out = len(found) - len(sound), 0
    if isinstance(found.dataset, ImageDataset) and isinstance(found.reader, ClassFolders):
        left_out = found.reader.count_left_out()
    print(f"{split}: {len(sound)} pictures can be read, {broken} cannot; {left_out} files are no pictures")
    return broken + left_out, class_names(found.dataset)


def _check_beton(beton: Beton) -> tuple[int, list[str] | None]:
    sound = beton.without_broken()
    broken = len(beton) - len(sound)
    print(f"{beton.path.name}: {len(sound)} pictures can be read, {broken} cannot")
    return broken, beton.class_names


def _tell(text: str) -> None:
    print(f"wrong: {text}", file=sys.stderr)
