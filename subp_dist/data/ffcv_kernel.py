"""The compiled loop over the images of a batch: read, decode, crop, resize, flip, normalise.

The JPEG decoder, the crops and the storage are FFCV's; one loop instead of FFCV's chain of operations keeps each image
in the cache of its core from the first step to the last, and lets every image draw from a seed of its own. This module
needs FFCV at import.
"""

from __future__ import annotations

import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES, get_random_crop
from ffcv.libffcv import imdecode
from numba import njit, prange

from .resample import resample

_options = {"nogil": True, "error_model": "numpy"}
_decode, _random_crop = njit(**_options)(imdecode), njit(**_options)(get_random_crop)
_JPEG = IMAGE_MODES["jpg"]


@njit(**_options)
def _seed_of(epoch_seed, index):
    """splitmix64: neighbouring images must not have neighbouring seeds."""
    value = epoch_seed + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) & np.uint64(0xFFFFFFFF)


@njit(**_options)
def _centre(height, width, shorter, size):
    """The grid (rows, columns) of torchvision's Resize(shorter), and where its CenterCrop(size) starts in it."""
    least = min(height, width)
    full = int(shorter * height / least), int(shorter * width / least)
    return full, (int(round((full[0] - size) / 2)), int(round((full[1] - size) / 2)))


@njit(parallel=True, **_options)
def batch_loop(indices, epoch_seed, train, scale, ratio, hflip, shorter, kind, taps, mode, height, width, start, length,
               memory, scratch, factor, offset, planar, out, failed):  # fmt: skip
    """Make a batch. Nothing in it is of one file: FFCV's own readers are compiled for a size of pages, and to compile
    one breaks what was compiled before (it changes numba's type of all arrays of bytes, by which code is found).

    Args:
        indices: ``[n]``, images of the batch.
        epoch_seed: uint64.
        train, scale, ratio, hflip: see ``Crop``.
        shorter: pixels that the shorter side is resized to before the centre is cut out; not in training.
        kind, taps: of the filter, see ``resample``.
        mode, height, width: of all images in the file.
        start, length: ``[n]``, where the bytes of each image of the batch lie in ``memory``.
        memory: ``[bytes]`` uint8, not writeable.
        scratch: ``[threads, bytes of the largest image]`` uint8.
        factor, offset, planar: of the normalisation, see ``resample``.
        out, failed: the images, float32 or uint8; and ``[n]``, whether an image could not be decoded.
    """
    workers, size = len(scratch), out.shape[2]
    for worker in prange(workers):
        for position in range(worker, len(indices), workers):
            index = indices[position]
            data, h, w = memory[start[position] : start[position] + length[position]], height[index], width[index]
            if mode[index] == _JPEG:
                pixels = scratch[worker, : h * w * 3]
                failed[position] = _decode(data, pixels, h, w, h, w, 0, 0, 1, 1, False, False) != 0
            else:
                pixels = data
            image = pixels.reshape(h, w, 3)
            if train:
                np.random.seed(_seed_of(epoch_seed, index))
                box = _random_crop(h, w, scale, ratio)
                full, first, flip = (size, size), (0, 0), np.random.random() < hflip
            else:
                full, first = _centre(h, w, shorter, size)
                box, flip = (0, 0, h, w), False
            resample(image, box, kind, full, first, flip, taps, factor, offset, planar, out[position])
