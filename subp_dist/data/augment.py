"""timm's augmentations beyond crop and flip, for batches of FFCV's loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..config import AugmentationConfig
from ..errors import DataError, UsageError
from ..seeds import derive_seed, kept_cpu_generators, kept_generators, seed_cpu, seed_with
from .pictures import reason
from .policies import make_valid


def timm_transform(size: int | tuple[int, int, int], **settings: Any) -> Any:
    """What ``timm.data.create_transform`` returns.

    Raises:
        UsageError: timm does not know the policy of ``--aa``, or a strength is out of its range.
    """
    try:
        created = timm.data.create_transform(size, **settings)
        if settings.get("auto_augment"):
            make_valid(created, size[0] if isinstance(size, tuple) else 3)
        return created
    except (AssertionError, ValueError) as error:
        policy = settings.get("auto_augment")
        if not policy:
            raise UsageError(f"the augmentation cannot be had: {error}") from error
        why = str(error) or "no policy of timm"  # some of its assertions say nothing
        raise UsageError(f"--aa {policy}: {why}; timm has policies such as rand-m9-mstd0.5, augmix-m3") from error


@dataclass(frozen=True)
class ImageAugment:
    """What ``--color-jitter``, ``--aa`` and ``--reprob`` ask for.

    Colours are timm's own transforms on PIL images, one image after the other: they cost several times what FFCV needs
    for all the rest. Erasing works on the normalised batch. Both draw from (seed, epoch, images) alone.

    Attributes:
        colours: PIL image -> PIL image, or None.
        erasing: batch ``[n, 3, H, W]``, changed in place, or None.
    """

    colours: Callable[[Image.Image], Image.Image] | None
    erasing: RandomErasing | None

    @classmethod
    def for_images(cls, config: AugmentationConfig, size: int, channels: int = 3) -> ImageAugment | None:
        """For square images of ``size`` pixels; None if the flags ask for nothing."""
        colours = erasing = None
        if config.color_jitter or config.aa:
            settings = {"color_jitter": config.color_jitter or None, "auto_augment": config.aa, "separate": True}
            if channels == 1:  # policies fill with the mean what they move in from outside
                settings |= {"mean": (0.0,), "std": (1.0,)}
            _, colours, _ = timm_transform((channels, size, size), is_training=True, **settings)
        if config.reprob:
            erasing = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device="cpu")
        return cls(colours, erasing) if colours or erasing else None

    def recolour(self, images: np.ndarray, indices: np.ndarray, seed: int, epoch: int, source: object) -> None:
        """Change ``[n, H, W, 3]`` uint8 in place; every image draws for itself.

        Raises:
            DataError: timm's transform failed; the message names the image and ``source``.
        """
        with kept_cpu_generators():
            for image, index in zip(images, indices, strict=True):
                seed_cpu(derive_seed(seed, epoch, int(index)))
                try:
                    image[:] = self.colours(Image.fromarray(image))
                except Exception as error:
                    text = f"{source}: image {index}: its augmentation failed ({reason(error)})"
                    raise DataError(text) from error

    def erase(self, images: Tensor, indices: np.ndarray, seed: int, epoch: int) -> None:
        """Erase rectangles of ``[n, 3, H, W]`` in place; what is put there is drawn on the images' device."""
        self.erasing.device = images.device
        with kept_generators(images.device):
            for image, index in zip(images, indices, strict=True):
                seed_with(images.device, derive_seed(seed, epoch, int(index), 1))
                self.erasing(image)
