"""timm's auto-augment policies on the Pillow of today, which refuses some of what they draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import auto_augment

from ..seeds import kept_cpu_generators


def make_valid(transform: Any, channels: int = 3) -> None:
    """Change the operations of a transform, in place, so that all they draw is valid; then try it on one picture.

    Args:
        transform: of ``timm.data.create_transform``, with an auto-augment policy.
        channels: of its pictures, 1 or 3.

    Raises:
        ValueError, AssertionError: the policy cannot be applied, as one of more layers than it has operations.
    """
    for operation in _find(transform, auto_augment.AugmentOp):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    kinds = (auto_augment.RandAugment, auto_augment.AutoAugment, auto_augment.AugMixAugment)
    with kept_cpu_generators():
        for policy in _find(transform, kinds):
            policy(Image.new("L" if channels == 1 else "RGB", (8, 8)))


def _posterize(image: Image.Image, bits_to_keep: int, **more: Any) -> Image.Image:
    """As timm's, of one bit where it draws none or less: Pillow takes 1 to 8."""
    return auto_augment.posterize(image, max(1, bits_to_keep), **more)


def _find(thing: Any, kinds: type | tuple[type, ...]) -> Iterator[Any]:
    """Everything of some kinds within a transform."""
    if isinstance(thing, kinds):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _find(part, kinds)
    else:
        for name in ("transforms", "policy", "ops"):
            yield from _find(getattr(thing, name, ()), kinds)
