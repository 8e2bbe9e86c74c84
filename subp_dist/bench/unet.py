"""A segmentation network to measure: a timm ResNet-18 as encoder and a U-Net's decoder, registered as timm models.

``unet_resnet18`` resizes bilinearly, ``unet_resnet18_transposed`` with transposed convolutions of 2x2.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ["UNet"]

DECODER_CHANNELS = (256, 128, 64, 32, 16)

_CFG = {
    "input_size": (3, 256, 256), "num_classes": 21, "pool_size": None, "crop_pct": 1.0, "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "encoder.conv1", "classifier": "head",
}  # fmt: skip
default_cfgs = generate_default_cfgs({"unet_resnet18": _CFG, "unet_resnet18_transposed": _CFG})


def _convolution(channels: int, outputs: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Block(nn.Module):
    """Doubles the size, takes in the encoder's features of that size, and convolves twice."""

    def __init__(self, channels: int, skipped: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        up = (
            nn.ConvTranspose2d(channels, channels, 2, 2) if transposed else nn.Upsample(scale_factor=2, mode="bilinear")
        )
        self.up = up
        self.first, self.second = _convolution(channels + skipped, outputs), _convolution(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        return self.second(self.first(x if skip is None else torch.cat([x, skip], 1)))


class UNet(nn.Module):
    """Classes of every pixel: ``[B, in_chans, H, W]`` to ``[B, num_classes, H, W]``, H and W multiples of 32."""

    def __init__(self, num_classes: int = 21, in_chans: int = 3, transposed: bool = False) -> None:
        super().__init__()
        self.encoder = timm.create_model("resnet18", features_only=True, in_chans=in_chans)
        *skipped, deepest = self.encoder.feature_info.channels()
        inputs, skips = (deepest, *DECODER_CHANNELS[:-1]), (*skipped[::-1], 0)
        self.blocks = nn.ModuleList(
            _Block(*sizes, transposed) for sizes in zip(inputs, skips, DECODER_CHANNELS, strict=True)
        )
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encoder(x)
        for block, skip in zip(self.blocks, [*skips[::-1], None], strict=True):
            x = block(x, skip)
        return self.head(x)


def _made(name: str, pretrained: bool, arguments: dict[str, Any]) -> UNet:
    known = {key: arguments[key] for key in ("num_classes", "in_chans") if key in arguments}
    if pretrained:
        raise RuntimeError(f"{name} has no trained weights")
    model = UNet(**known, transposed=name.endswith("transposed"))
    model.pretrained_cfg = _CFG | {"num_classes": known.get("num_classes", _CFG["num_classes"])}
    return model


@register_model
def unet_resnet18(pretrained: bool = False, **arguments: Any) -> UNet:
    """With bilinear resizing."""
    return _made("unet_resnet18", pretrained, arguments)


@register_model
def unet_resnet18_transposed(pretrained: bool = False, **arguments: Any) -> UNet:
    """With transposed convolutions."""
    return _made("unet_resnet18_transposed", pretrained, arguments)
