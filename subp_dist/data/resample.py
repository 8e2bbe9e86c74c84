"""Pillow's resize, compiled: the same pixels to the bit, with normalisation and flip on the way.

Pillow resizes the width, rounds to bytes, and resizes the height; shrinking widens the filter, so that no detail turns
into an alias. Weights are integers of 22 fractional bits. torchvision, and with it timm, resizes pictures in this way;
OpenCV's filters, which FFCV uses, give others. Pillow 13 takes the height first where it shrinks and the width grows,
which happens to crops of training alone, and moves the rounding. This module needs numba at import.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Half the width of each filter, in pixels of the smaller of the two grids; the order gives a filter its number.
_SUPPORTS = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
FILTERS = {name: number for number, name in enumerate(_SUPPORTS)}
_BOX, _BILINEAR, _HAMMING, _BICUBIC, _LANCZOS = FILTERS.values()
_HALF_WIDTHS = np.array(list(_SUPPORTS.values()))
_BITS = 22
_HALF = np.int64(1 << (_BITS - 1))
_options = {"nogil": True, "error_model": "numpy"}


def count_taps(name: str, source: int, target: int) -> int:
    """Pixels that one pixel of the result is made of, at most: an even number.

    Args:
        name: of the filter.
        source, target: pixels of a side, before and after.
    """
    taps = 2 * math.ceil(_SUPPORTS[name] * max(1.0, source / target)) + 1
    return taps + taps % 2


@njit(**_options)
def _sinc(x):
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


@njit(**_options)
def _filter(kind, x):
    if kind == _BOX:
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    if kind == _LANCZOS:
        return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0
    x = abs(x)
    if kind == _BILINEAR:
        return 1 - x if x < 1 else 0.0
    if kind == _HAMMING:
        return 1.0 if x == 0 else 0.0 if x >= 1 else _sinc(x) * (0.54 + 0.46 * math.cos(x * math.pi))
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


@njit(**_options)
def _weigh(kind, source, full, first, flip, start, weights):
    """First pixel ``[n]`` and weights ``[taps, n]`` of ``n`` pixels of the result, from pixel ``first`` of ``full`` on.

    Returns:
        The taps that are used.
    """
    count, used = len(start), 0
    scale = source / full
    stretch = max(scale, 1.0)
    reach = _HALF_WIDTHS[kind] * stretch
    for i in range(count):
        centre = (first + i + 0.5) * scale
        low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), source)
        total = 0.0
        for x in range(low, high):
            total += _filter(kind, (x - centre + 0.5) * (1 / stretch))
        position = count - 1 - i if flip else i
        start[position] = low
        weights[:, position] = 0
        for x in range(low, high):
            weight = _filter(kind, (x - centre + 0.5) * (1 / stretch)) / total * (1 << _BITS)
            weights[x - low, position] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        used = max(used, high - low)
    return used


@njit(**_options)
def _to_byte(total):
    return np.uint8(min(max(total >> _BITS, 0), 255))


@njit(**_options)
def _convolve_row(pixels, start, weights, taps, red_green, blue, sums, out):
    """One row ``[3 * width]`` to three planes ``[3, n]``.

    A multiplication of 64 bits weighs red and green at once: their sums stay within 32 bits each.
    """
    for x in range(len(pixels) // 3):
        red_green[x] = np.int64(pixels[3 * x]) | (np.int64(pixels[3 * x + 1]) << 32)
        blue[x] = pixels[3 * x + 2]
    both, third = sums[0], sums[1]
    # Unsigned indices: signed ones would be checked for being negative, pixel by pixel.
    for tap in range(0, taps, 2):
        for x in range(len(start)):
            a = start[x] + np.uint32(tap)
            b = a + np.uint32(1)
            u, v = np.int64(weights[tap, x]), np.int64(weights[tap + 1, x])
            before = (_HALF | (_HALF << 32), _HALF) if tap == 0 else (both[x], third[x])
            both[x] = before[0] + red_green[a] * u + red_green[b] * v
            third[x] = before[1] + blue[a] * u + blue[b] * v
    for x in range(len(start)):
        red = np.int32(both[x])
        out[0, x], out[1, x] = _to_byte(red), _to_byte((both[x] - red) >> 32)
    for x in range(len(start)):
        out[2, x] = _to_byte(third[x])


@njit(**_options)
def _convolve_columns(planes, channel, first, weights, taps, y, sums):
    """Sums ``[n]`` for row ``y`` of the result, before their fraction is cut off."""
    sums[:] = _HALF
    for tap in range(taps):
        weight = weights[tap, y]
        if weight != 0:
            row = planes[channel, first + tap]
            for x in range(len(sums)):
                sums[x] += np.int32(row[x]) * weight


@njit(**_options)
def _interleave(line, out):
    red, green, blue = line[0], line[1], line[2]
    for x in range(line.shape[1]):
        out[3 * x], out[3 * x + 1], out[3 * x + 2] = red[x], green[x], blue[x]


@njit(**_options)
def _interleave_normalized(line, factor, offset, out):
    red, green, blue = line[0], line[1], line[2]
    a, b, c = factor[0], factor[1], factor[2]
    d, e, f = offset[0], offset[1], offset[2]
    for x in range(line.shape[1]):
        out[3 * x] = np.float32(red[x]) * a + d
        out[3 * x + 1] = np.float32(green[x]) * b + e
        out[3 * x + 2] = np.float32(blue[x]) * c + f


@njit(**_options)
def resample(image, box, kind, full, first, flip, taps, factor, offset, planar, out):
    """Cut a box out of an image, resize it to a grid of pixels, and keep a square of that.

    Args:
        image: ``[height, width, 3]`` uint8.
        box: (top, left, height, width); nothing beyond it counts.
        kind: number of the filter, see ``FILTERS``.
        full: (rows, columns) of the whole grid.
        first: (row, column) of it where the square starts.
        flip: mirror the square from left to right.
        taps: ``count_taps`` for the larger shrinking of the two sides, or more.
        factor, offset: ``[3]`` float32; what is stored is byte * factor + offset. None: store bytes.
        planar: ``out`` is ``[3, size, size]``, else ``[size, size, 3]``.
        out: the square; float32, or uint8 without ``factor``.
    """
    upper, left, height, width = box
    size = out.shape[1]
    column, row = np.empty(size, np.uint32), np.empty(size, np.uint32)
    column_weights, row_weights = np.empty((taps, size), np.int32), np.empty((taps, size), np.int32)
    column_taps = _weigh(kind, width, full[1], first[1], flip, column, column_weights)
    row_taps = _weigh(kind, height, full[0], first[0], False, row, row_weights)
    top, bottom = row[0], min(row[size - 1] + row_taps, height)
    # Weights of zero look at the pixels beyond an edge: zeros, here.
    red_green, blue = np.zeros(width + taps, np.int64), np.zeros(width + taps, np.int64)
    planes, wide_sums = np.empty((3, bottom - top, size), np.uint8), np.empty((2, size), np.int64)
    for y in range(top, bottom):
        line = image[upper + y, left : left + width].reshape(-1)
        _convolve_row(line, column, column_weights, column_taps, red_green, blue, wide_sums, planes[:, y - top])
    sums, line = np.empty((3, size), np.int32), np.empty((3, size), np.uint8)
    for y in range(size):
        for c in range(3):
            _convolve_columns(planes, c, row[y] - top, row_weights, row_taps, y, sums[c])
            for x in range(size):
                line[c, x] = _to_byte(sums[c, x])
        if factor is None:
            _interleave(line, out[y].reshape(-1))
        elif planar:
            for c in range(3):
                a, b, values, target = factor[c], offset[c], line[c], out[c, y]
                for x in range(size):
                    target[x] = np.float32(values[x]) * a + b
        else:
            _interleave_normalized(line, factor, offset, out[y].reshape(-1))
