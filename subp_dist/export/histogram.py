"""What values a tensor takes over many images, in memory of a fixed size, and the range for 256 levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subp_ext.dtypes import DTYPES, Quantization, ValueType

# Bins are at least half as many: some 16 to each of the 256 levels.
BINS = 8192

# Candidates for each end of a range in the search for the least error.
_CANDIDATES = 256

Function = Callable[[np.ndarray], np.ndarray]


class Histogram:
    """Counts of values in bins that are a power of two wide, so that bins merge exactly when the range grows.

    Attributes:
        low, high: the smallest and the largest value.
        zeros: how many were 0, which quantization keeps exact; they are in no bin.
        exponent, first, counts: bin i holds the values from (first + i) * 2**exponent to the next.
    """

    def __init__(self) -> None:
        self.low, self.high, self.zeros = np.inf, -np.inf, 0
        self.exponent, self.first = -126, 0
        self.counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts more values.

        Raises:
            ValueError: one is infinite or not a number.
        """
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("computes values that are infinite or not a number")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        places = np.floor(values.ravel() * np.float32(2.0**-self.exponent)).astype(np.int64) - self.first
        # A value beside the end of the last bin, when the product is rounded.
        found = np.bincount(np.clip(places, 0, len(self.counts) - 1, out=places), minlength=len(self.counts))
        zeros = values.size - int(np.count_nonzero(values))
        found[-self.first] -= zeros
        self.zeros += zeros
        self.counts += found

    def merge(self, other: Histogram) -> None:
        """Adds what another has counted."""
        self.low, self.high, self.zeros = (
            min(self.low, other.low),
            max(self.high, other.high),
            self.zeros + other.zeros,
        )
        self._cover(min(self.low, 0.0), max(self.high, 0.0), at_least=other.exponent)
        places = other.places(self.exponent) - self.first
        np.add.at(self.counts, places, other.counts)

    def _cover(self, low: float, high: float, at_least: int = -126) -> None:
        """Makes the bins reach from low to high."""
        exponent = max(self.exponent, at_least)
        while high / 2.0**exponent - low / 2.0**exponent > BINS - 2:
            exponent += 1
        first, last = int(np.floor(low / 2.0**exponent)), int(np.floor(high / 2.0**exponent))
        if (exponent, first, last - first + 1) == (self.exponent, self.first, len(self.counts)):
            return
        counts = np.zeros(last - first + 1, np.int64)
        if len(self.counts):
            np.add.at(counts, np.clip(self.places(exponent) - first, 0, len(counts) - 1), self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts

    def places(self, exponent: int) -> np.ndarray:
        """The numbers of its bins among bins that are wider."""
        return (np.arange(len(self.counts)) + self.first) >> min(exponent - self.exponent, 62)

    @property
    def width(self) -> float:
        """From the smallest value or 0 to the largest or 0."""
        return max(self.high, 0.0) - min(self.low, 0.0)

    def percentile(self, share: float) -> tuple[float, float]:
        """The range that leaves out `100 - share` percent of the values at each end, and holds 0."""
        edges, counts = self._edges_and_counts()
        counts = counts.astype(np.float64)
        counts[-self.first] += self.zeros
        below, cut = np.cumsum(counts) / counts.sum(), 1 - share / 100
        low = edges[int(np.searchsorted(below, cut, "right"))]
        high = edges[min(int(np.searchsorted(below, 1 - cut, "left")) + 1, len(edges) - 1)]
        return max(min(low, 0.0), min(self.low, 0.0)), min(max(high, 0.0), max(self.high, 0.0))

    def least_squares(self, function: Function | None = None) -> tuple[float, float]:
        """The range with the least mean squared error of `function(quantized)` against `function(value)`.

        The error is that of rounding, a twelfth of the squared step where the function has slope 1, and that of
        cutting off. Each depends on one end alone, or on the step, so that all pairs of ends are tried at once.
        """
        edges, counts = self._edges_and_counts()
        at_edges = edges if function is None else function(edges)
        middle = (at_edges[1:] + at_edges[:-1]) / 2
        slope = np.diff(at_edges) / np.diff(edges)
        rounding = np.concatenate([[0.0], np.cumsum(counts * slope**2)])
        sums = [np.concatenate([[0.0], np.cumsum(counts * middle**power)]) for power in range(3)]

        def cut(sums: list[np.ndarray], places: np.ndarray) -> np.ndarray:
            """Squared errors of all values that become the value at a place."""
            value = at_edges[places]
            return sums[2] - 2 * value * sums[1] + value**2 * sums[0]

        zero = -self.first
        lows, highs = zero - _spread(zero), zero + _spread(len(counts) - zero)
        below = cut([part[lows] for part in sums], lows)
        above = cut([part[-1] - part[highs] for part in sums], highs)
        steps = (edges[highs][None, :] - edges[lows][:, None]) / 255
        inside = rounding[highs][None, :] - rounding[lows][:, None]
        error = below[:, None] + above[None, :] + steps**2 / 12 * inside
        error[steps == 0] = np.inf
        low, high = np.unravel_index(error.argmin(), error.shape)
        # The ends of the outermost bins lie beyond the outermost values.
        return max(float(edges[lows[low]]), min(self.low, 0.0)), min(float(edges[highs[high]]), max(self.high, 0.0))

    def _edges_and_counts(self) -> tuple[np.ndarray, np.ndarray]:
        edges = (np.arange(len(self.counts) + 1) + self.first) * 2.0**self.exponent
        return edges, self.counts


def _spread(count: int) -> np.ndarray:
    """Places from 0 to `count`: some evenly, some ever closer to 0, for tensors with a few far values."""
    even = np.linspace(0, count, _CANDIDATES)
    near = np.geomspace(1, max(count, 1), _CANDIDATES // 4)
    return np.unique(np.clip(np.rint(np.concatenate([even, near])), 0, count).astype(np.int64))


def activation_type(low: float, high: float) -> ValueType:
    """uint8 with one scale for values from `low` to `high`, extended so that 0 is among them and exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    # Nothing but zeros, as behind a ReLU that is never on: any scale will do.
    scale = np.float32((high - low) / 255) if high > low else np.float32(1 / 255)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    zero = np.int32(np.clip(np.rint(-low / float(scale)), 0, 255))
    return ValueType(DTYPES["uint8"], Quantization(scale, zero))
