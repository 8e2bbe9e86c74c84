"""The numbers that flags take: each has its type and its range beside its definition, checked for all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Number:
    """The type of a flag that takes a number, or several; not-a-number and infinity are in no range.

    Attributes:
        kind: int or float.
        low, high: its range.
        above, below: leave out ``low``, or ``high``.
        or_zero: 0 is fine, too.
        rising: several values, none smaller than the one before.
        noun: what it is.
        hint: ends the message of what is expected.
    """

    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    or_zero: bool = False
    rising: bool = False
    noun: str = "a number"
    hint: str = ""

    @property
    def __name__(self) -> str:  # argparse says it where a text is no number
        return self.kind.__name__

    def __call__(self, text: str) -> float:
        return self.kind(text)

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if value == 0 and self.or_zero:
            return True
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def expected(self) -> str:
        """The range in words."""
        if self.kind is int:
            text = f"whole numbers from {self.low} to {self.high}"
        elif self.high < math.inf and self.low > -math.inf:
            text = f"{self.noun} in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        elif self.low > -math.inf:
            text = f"{self.noun} above {self.low:g}" if self.above else f"{self.low:g} or more"
        else:
            text = "a finite number"
        return f"{'0, or ' if self.or_zero else ''}{text}{', rising' if self.rising else ''}{self.hint}"

    def refuses(self, values: Sequence[float]) -> bool:
        """Whether a value is out of the range, or smaller than the one before where they must rise."""
        if any(value not in self for value in values):
            return True
        return self.rising and any(a > b for a, b in zip(values, values[1:], strict=False))


def whole(low: int, high: int = 2**31 - 1, **more) -> Number:
    """Integers; what is larger overflows in one library or another."""
    return Number(int, low, high, **more)


COUNT, WHOLE = whole(1), whole(0)
PROBABILITY = Number(low=0, high=1)
SHARE = Number(low=0, high=1, below=True)
POSITIVE = Number(low=0, above=True)
STRENGTH = Number(low=0.001, high=1000, or_zero=True)
NOT_NEGATIVE = Number(low=0)
FINITE = Number()


def check_range(flag: str, number: Number, value: float | Sequence[float] | None) -> None:
    """Raise a UsageError if what a flag was given is out of its range; None is what was not given."""
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if number.refuses(values):
        raise UsageError(f"{flag} {' '.join(map(str, values))}: expected {number.expected()}")


def check_order(smaller: str, low: float | None, larger: str, high: float | None) -> None:
    """Raise a UsageError where the value of one flag is above that of another, and both are known."""
    if low is not None and high is not None and low > high:
        raise UsageError(f"--{smaller} {low:g}: expected at most --{larger}, which is {high:g}")
