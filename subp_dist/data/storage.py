"""How pictures are stored in ``.beton`` files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import UsageError

_LONGEST_JPEG = 65500  # pixels of a side


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        max_resolution: larger images are shrunk until their longer side has so many pixels; 0: never.
        jpeg_share: share of the images that are stored as JPEG, the others raw.
        quality: of the JPEGs, 1 to 100.
    """

    max_resolution: int = 500
    jpeg_share: float = 0.5
    quality: int = 90

    @classmethod
    def parse(cls, text: str) -> Storage:
        """From a preset, such as ``500_0.50_90``.

        Raises:
            UsageError: not a preset.
        """
        found = re.fullmatch(r"(\d+)_([01](?:\.\d+)?)_(\d+)", text)
        if not found or float(found[2]) > 1 or not 1 <= int(found[3]) <= 100:
            raise UsageError(
                f"{text!r}: expected MAXRESOLUTION_JPEGSHARE_QUALITY, such as 500_0.50_90 (256_1.0_90: small JPEGs; "
                "256_0.0_90: small raw images; 0 keeps the size)"
            )
        return cls(int(found[1]), float(found[2]), int(found[3]))

    def __str__(self) -> str:
        return f"{self.max_resolution}_{self.jpeg_share:.2f}_{self.quality}"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of an image of these as it is stored.

        Raises:
            ValueError: it cannot be stored.
        """
        shrink = min(1.0, (self.max_resolution or math.inf) / max(height, width))
        stored = int(shrink * height), int(shrink * width)
        if min(stored) == 0:
            raise ValueError(f"{width}x{height} pixels are too narrow to be shrunk to {self.max_resolution}")
        if self.jpeg_share and max(stored) > _LONGEST_JPEG:
            raise ValueError(f"{width}x{height} pixels are too many for a JPEG: set a largest resolution")
        return stored

    def field(self):
        """FFCV's description of the same."""
        from ffcv.fields import RGBImageField

        mode = {0.0: "raw", 1.0: "jpg"}.get(self.jpeg_share, "proportion")
        return RGBImageField(
            write_mode=mode,
            max_resolution=self.max_resolution or None,
            compress_probability=self.jpeg_share,
            jpeg_quality=self.quality,
        )
