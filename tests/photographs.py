"""Photographs for tests: cuts of the two that scikit-learn carries, as folders of classes."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image


@lru_cache
def originals() -> dict[str, Image.Image]:
    folder = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets/images"
    return {name: Image.open(folder / f"{name}.jpg").convert("RGB") for name in ("china", "flower")}


def write_photographs(root: Path, train: int, val: int, sizes=((160, 120), (110, 150), (128, 128))) -> Path:
    """``train/`` and ``val/`` of two classes, so many pictures in each class, of changing sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, picture in originals().items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                width, height = sizes[index % len(sizes)]
                left, top = random.integers(picture.width - width), random.integers(picture.height - height)
                picture.crop((left, top, left + width, top + height)).save(folder / f"{index:03d}.jpg", quality=95)
    return root
