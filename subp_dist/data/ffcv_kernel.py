"""The compiled loop over the images of a batch: read, decode, crop, resize, flip, normalise.

The codecs, the crops and the storage are FFCV's; one loop instead of FFCV's chain of operations keeps each image in the
cache of its core from the first step to the last, and lets every image draw from a seed of its own. This module needs
FFCV at import.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES, get_center_crop, get_random_crop
from ffcv.libffcv import imdecode, resize_crop
from ffcv.memory_managers import MemoryManager
from numba import njit, prange

_options = {"nogil": True, "error_model": "numpy"}
_decode, _resize = njit(**_options)(imdecode), njit(**_options)(resize_crop)
_random_crop, _center_crop = njit(**_options)(get_random_crop), njit(**_options)(get_center_crop)
_JPEG = IMAGE_MODES["jpg"]
_loops: dict[tuple, Callable] = {}


@njit(**_options)
def _seed_of(epoch_seed, index):
    """splitmix64: neighbouring images must not have neighbouring seeds."""
    value = epoch_seed + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) & np.uint64(0xFFFFFFFF)


@njit(**_options)
def _flip(image):
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width // 2):
            for c in range(3):
                image[y, x, c], image[y, width - 1 - x, c] = image[y, width - 1 - x, c], image[y, x, c]


@njit(fastmath=True, **_options)
def _store(image, factor, offset, planar, out):
    height, width, _ = image.shape
    if factor is None:
        out[:] = image
    elif planar:
        for c in range(3):
            a, b = factor[c], offset[c]
            for y in range(height):
                for x in range(width):
                    out[c, y, x] = image[y, x, c] * a + b
    else:
        # Rows as they lie in memory, against factors repeated along the row: one vector instruction for any channel.
        for y in range(height):
            source, target = image[y].reshape(-1), out[y].reshape(-1)
            for j in range(len(source)):
                target[j] = source[j] * factor[j] + offset[j]


def batch_loop(manager: MemoryManager) -> Callable:
    """The loop for a way of reading; compiled at its first call, and shared by all files that are read in this way.

    Its arguments:
        indices: ``[n]``, images of the batch.
        epoch_seed: uint64.
        train, scale, ratio, hflip, share: see ``Crop``.
        mode, height, width, data_ptr: of all images in the file.
        state: of the memory manager.
        scratch: ``[threads, bytes of the largest image]`` uint8.
        small: ``[threads, size, size, 3]`` uint8.
        factor, offset: of the normalisation, per channel, repeated along a row if not planar; None: copy bytes.
        planar: ``out`` is ``[n, 3, size, size]``, else ``[n, size, size, 3]``.
        out, failed: the images, float32 or uint8; and ``[n]``, whether an image could not be decoded.
    """
    key = type(manager), int(manager.reader.page_size)
    if key not in _loops:
        _loops[key] = _make_loop(manager.compile_reader())
    return _loops[key]


def _make_loop(read: Callable) -> Callable:
    @njit(parallel=True, **_options)
    def loop(indices, epoch_seed, train, scale, ratio, hflip, share, mode, height, width, data_ptr, state,
             scratch, small, factor, offset, planar, out, failed):  # fmt: skip
        workers = len(scratch)
        for worker in prange(workers):
            for position in range(worker, len(indices), workers):
                index = indices[position]
                data, h, w = read(data_ptr[index], state), height[index], width[index]
                if mode[index] == _JPEG:
                    pixels = scratch[worker, : h * w * 3]
                    failed[position] = _decode(data, pixels, h, w, h, w, 0, 0, 1, 1, False, False) != 0
                else:
                    pixels = data
                image = pixels.reshape(h, w, 3)
                flip = False
                if train:
                    np.random.seed(_seed_of(epoch_seed, index))
                    top, left, crop_h, crop_w = _random_crop(h, w, scale, ratio)
                    flip = np.random.random() < hflip
                else:
                    top, left, crop_h, crop_w = _center_crop(h, w, None, share)
                _resize(image, top, top + crop_h, left, left + crop_w, small[worker])
                if flip:
                    _flip(small[worker])
                _store(small[worker], factor, offset, planar, out[position])

    return loop
