"""subp_dist.data.resample against Pillow's own resize: every byte, for boxes of noise from 1 to 400 pixels.

Noise, because on smooth pictures wrong weights hide behind the rounding. Speed is out of scope.
"""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("numba", reason="numba, which comes with ffcv, is not installed")
from subp_dist.data.resample import FILTERS, count_taps, resample

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (400, 400, 3), dtype=np.uint8)
FACTOR, OFFSET = np.float32([0.5, 2, -1]), np.float32([0, -3, 7])


def resized(box, name: Image.Resampling, full, first, size: int, flip: bool) -> np.ndarray:
    top, left, height, width = box
    # In two steps: where one side grows and the other shrinks, Pillow 13 takes the rows first.
    wide = Image.fromarray(NOISE[top : top + height, left : left + width]).resize((full[1], height), name)
    square = np.asarray(wide.resize(full[::-1], name))[first[0] : first[0] + size, first[1] : first[1] + size]
    return square[:, ::-1] if flip else square


@pytest.mark.parametrize("name", FILTERS)
def test_every_byte_is_pillows(name):
    for _ in range(60):
        height, width = RANDOM.integers(1, 401, 2) if RANDOM.random() < 0.8 else RANDOM.integers(1, 5, 2)
        box = *(int(RANDOM.integers(401 - side)) for side in (height, width)), int(height), int(width)
        size = int(RANDOM.integers(1, 120))
        full = tuple(int(side) for side in RANDOM.integers(size, 2 * size, 2))
        first = tuple(int(RANDOM.integers(side - size + 1)) for side in full)
        flip, taps = bool(RANDOM.random() < 0.5), count_taps(name, max(height, width), size)
        expected = resized(box, Image.Resampling[name.upper()], full, first, size, flip)
        settings = box, FILTERS[name], full, first, flip, taps
        found = np.zeros((size, size, 3), np.uint8)
        resample(NOISE, *settings, None, None, False, found)
        np.testing.assert_array_equal(found, expected)
        for planar in (False, True):
            normalized = np.zeros((3, size, size) if planar else (size, size, 3), np.float32)
            resample(NOISE, *settings, FACTOR, OFFSET, planar, normalized)
            result = normalized.transpose(1, 2, 0) if planar else normalized
            np.testing.assert_array_equal(result, expected * FACTOR + OFFSET)


def test_only_the_box_counts():
    other = NOISE.copy()
    other[:50], other[:, 150:] = 0, 255
    box, taps = (50, 20, 200, 130), count_taps("lanczos", 200, 32)
    found = np.zeros((2, 32, 32, 3), np.uint8)
    for image, out in zip((NOISE, other), found, strict=True):
        resample(image, box, FILTERS["lanczos"], (32, 32), (0, 0), False, taps, None, None, False, out)
    np.testing.assert_array_equal(*found)
