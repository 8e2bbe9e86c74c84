"""Values of a plan that share memory: parts of a concatenation lie in its result, results continue in an operand's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from subp_ext.memory import Buffer
from subp_ext.plan import Step
from subp_ext.tensor import At, Call, Tensor


def elide_concatenations(steps: Sequence[Step]) -> None:
    """Computes what is concatenated in its place in the result, so that nothing is copied.

    The last concatenation comes first: its result may hold those of earlier ones.
    """
    for step in reversed(steps):
        if not step.concatenates:
            continue
        out, start, copied, parts = step.writes[0], 0, [], len(step.reads)
        for part in step.reads:
            if not _place_inside(part, out, start):
                copied.append((part, start))
            start += part.view.nbytes
        first, begin = step.reads[0].buffer.root(), step.reads[0].start
        if len(copied) == len(step.reads) and _adjacent(step.reads) and not out.buffer.parent:
            # All of them live side by side in the result of a later concatenation already.
            out.buffer.alias(first[0], first[1] + begin)
            copied = []
        step.bind = _copies(out, copied)
        step.reads = [part for part, _ in copied]
        step.why = f"{parts - len(copied)} of {parts} parts are computed in place"
        step.kernel = "numpy" if copied else "none"


def reuse_operands(steps: Sequence[Step], buffers: Iterable[Buffer]) -> None:
    """Lets a result continue in the memory of an operand that nothing else reads, this step aside.

    Nor may the step itself read that memory a second time, in another order: the result may be there already.
    """
    shared = {id(b.root()[0]) for b in buffers if b.parent}
    for number, step in enumerate(steps):
        target = step.writes[0].buffer
        for operand in step.in_place:
            source, start = operand.buffer.root()
            free = source.last == number and start + operand.start == 0 and id(source) not in shared
            free &= all(_same_place(read, operand) or read.buffer.root()[0] is not source for read in step.reads)
            if free and id(target) not in shared and not target.parent and source.nbytes == target.nbytes:
                target.alias(source, 0)
                break


def _same_place(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same elements of one buffer, in the same order."""
    laid = [(t.buffer, t.start, t.view.shape, t.view.strides, t.view.dtype) for t in (a, b)]
    return laid[0] == laid[1]


def _place_inside(part: Tensor, out: Tensor, start: int) -> bool:
    """Makes a part of a concatenation live inside its result, if it is a buffer of its own."""
    if part.buffer.parent or not part.whole or part.buffer is out.buffer.root()[0]:
        return False
    part.buffer.alias(out.buffer, start)
    return True


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether they follow each other in one buffer."""
    places = [(root, start + part.start) for part in parts for root, start in [part.buffer.root()]]
    ends = [at + part.view.nbytes for part, (_, at) in zip(parts, places, strict=True)]
    same = all(root is places[0][0] for root, _ in places) and all(part.view.flags.c_contiguous for part in parts)
    return same and all(end == at for end, (_, at) in zip(ends[:-1], places[1:], strict=True))


def _copies(out: Tensor, parts: Sequence[tuple[Tensor, int]]) -> Callable[[At], Call]:
    """Copies contiguous parts into a contiguous whole, each at its byte."""

    def bind(at: At) -> Call:
        whole = at(out).reshape(-1)
        size = whole.itemsize
        pairs = [
            (whole[start // size : (start + part.view.nbytes) // size], at(part).reshape(-1)) for part, start in parts
        ]

        def call() -> None:
            for target, source in pairs:
                np.copyto(target, source)

        return call

    return bind
