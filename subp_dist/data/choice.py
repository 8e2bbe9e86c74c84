"""Which loader a run uses: FFCV on ``.beton`` files, or torch's on pictures; and why."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from ..config import DataConfig
from ..errors import UsageError
from .beton import INSTALL, find_beton
from .splits import VAL_NAMES

_logger = logging.getLogger(__name__)
_ASKED = "loader: %s, because --loader says so"


def choose_loader(config: DataConfig) -> tuple[Path, Path] | None:
    """The ``.beton`` files of training and validation to read, or None for pictures read by torch's loader.

    ``--loader auto`` takes FFCV where its files are there and it is installed; what was taken, and why, is logged.

    Raises:
        UsageError: the loader that was asked for cannot be had.
    """
    has_pictures = bool(config.dataset) or (Path(config.data_dir) / config.train_split).is_dir()
    if config.loader == "timm" and has_pictures:
        _logger.info(_ASKED, "timm")
        return None
    files, why_not = _betons(config)
    if config.loader == "ffcv":
        if not files:
            raise UsageError(f"--loader ffcv: {why_not}")
        _logger.info(_ASKED, "ffcv")
        return files
    if config.loader == "timm":
        if files:
            raise UsageError(
                f"--loader timm reads folders of pictures, and {config.data_dir} holds .beton files: leave --loader out"
            )
        _logger.info(_ASKED, "timm")
        return None
    if files and importlib.util.find_spec("ffcv") is None:
        if not has_pictures:
            raise UsageError(f"{files[0]}: .beton files need ffcv, which is not installed: {INSTALL}")
        files, why_not = None, f"ffcv, which reads the .beton files there much faster, is not installed: {INSTALL}"
    if files:
        _logger.info("loader: ffcv, because %s and %s are there", files[0].name, files[1].name)
    elif has_pictures or not why_not.startswith("found only"):
        _logger.info("loader: timm, because %s", why_not)
    else:
        raise UsageError(f"--data-dir {config.data_dir}: {why_not}")
    return files


def _betons(config: DataConfig) -> tuple[tuple[Path, Path] | None, str]:
    """Both files, or why not."""
    if config.dataset:
        return None, "--dataset names pictures, not .beton files"
    root = Path(config.data_dir)
    if not root.is_dir():
        raise UsageError(
            f"--data-dir {root}: no such folder; expected one with train/ and val/, or .beton files, in it"
        )
    train = find_beton(root, (config.train_split,))
    val = find_beton(root, (config.val_split, *VAL_NAMES))
    if train and val:
        return (train, val), ""
    if train or val:
        missing = config.train_split if val else config.val_split
        return None, f"found only {(train or val).name}, and no file of the split {missing!r} beside it"
    return None, f"{root} has no .beton files (launch/write_ffcv.sh writes them)"
