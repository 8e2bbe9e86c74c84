"""Pictures with their labels, read strictly: each is what it is, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ..errors import DataError


class Pictures(Dataset):
    """A timm or torchvision data set of pictures; items are (what ``transform`` makes of the picture, label).

    timm's own ``__getitem__`` takes the next picture in place of one that it cannot read; here that raises.

    Args:
        dataset: with a timm reader, or with items (PIL image, label).
        mode: Pillow's mode of the images.
        transform: of a PIL image, or None.
        kept: indices of the pictures that are used, or None for all.

    Raises when it is indexed:
        DataError: the picture cannot be read, or not be transformed; the message names it.
    """

    def __init__(
        self,
        dataset: Dataset,
        mode: str = "RGB",
        transform: Callable[[Image.Image], Any] | None = None,
        kept: np.ndarray | None = None,
    ) -> None:
        self.dataset, self.reader = dataset, getattr(dataset, "reader", None)
        self.mode, self.transform, self.kept = mode, transform, kept

    def __len__(self) -> int:
        return len(self.dataset) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            picture, label = self.read(index)
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise DataError(
                f"{self.name(index)}: cannot be read ({reason(error)}): mend or remove it, or leave such pictures out "
                "with --broken skip"
            ) from error
        if self.transform is None:
            return picture, label
        try:
            return self.transform(picture), label
        except Exception as error:
            raise DataError(f"{self.name(index)}: its augmentation or resize failed ({reason(error)})") from error

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The whole picture in its mode, and its label; raises whatever there is to raise."""
        place = self._place(index)
        picture, label = (self.dataset if self.reader is None else self.reader)[place][:2]
        if label is None or label < 0:
            raise ValueError("it has no label")
        if isinstance(picture, Image.Image):
            return picture.convert(self.mode), int(label)
        with picture, Image.open(picture) as opened:
            return opened.convert(self.mode), int(label)

    def name(self, index: int) -> str:
        """How a person finds the picture."""
        place, samples = self._place(index), getattr(self.dataset, "samples", None)
        if self.reader is not None:
            return str(self.reader.filename(place, absolute=True))
        return str(samples[place][0]) if samples else f"image {place}"

    def _place(self, index: int) -> int:
        return index if self.kept is None else int(self.kept[index])


def reason(error: Exception) -> str:
    """What is wrong with a picture, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or empty"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
