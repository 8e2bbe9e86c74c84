"""Where the values of a network carry the images of a batch: what ``independence`` follows through its operators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from subp_ext import Ref

from .fuse import Argument, Shape

# The batch that sizes are taken at: a prime beyond any channel count, so that a size is a multiple of it exactly where
# it carries the images.
BATCH = 1_000_003


@dataclass(frozen=True)
class Images:
    """Where a value carries the images: dimension `dim`, in row-major order of outer x images x inner."""

    dim: int
    outer: int = 1
    inner: int = 1


class Count:
    """A number that follows from the number of images."""


State = Images | Count | None  # None: the same for all images
COUNT = Count()


class Mixed(Exception):
    """Images are mixed, or not known to stay apart; the text goes after the operator's name."""


class Operand(NamedTuple):
    state: State
    shape: Shape


@dataclass(frozen=True)
class Call:
    """A node as the rules see it: arguments, the operands among them, and the shape of the result (of a tensor)."""

    args: dict[str, Any]  # by the operator's schema
    states: dict[str, State]
    shapes: dict[str, Shape]
    out: Shape

    def operand(self, value: Argument) -> Operand:
        if not isinstance(value, Ref) or value.name not in self.shapes:
            raise Mixed("has an argument that is not known to be a tensor")
        return Operand(self.states[value.name], self.shapes[value.name])

    @property
    def main(self) -> Operand:
        """The operand that most operators are about."""
        return self.operand(self.args.get("self", self.args.get("input")))

    @property
    def carried(self) -> Images:
        """Where the main operand carries the images, all other operands being the same for all of them."""
        others = refs_in(self.args.values())
        others.remove(self.args.get("self", self.args.get("input")))  # once: it may be its own parameter
        if not isinstance(self.main.state, Images) or any(isinstance(self.states[ref.name], Images) for ref in others):
            raise Mixed("takes parameters that depend on the image, or on the number of images")
        return self.main.state


def refs_in(values: Iterable[Argument]) -> list[Ref]:
    found = []
    for value in values:
        if isinstance(value, Ref):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += refs_in(value)
    return found
