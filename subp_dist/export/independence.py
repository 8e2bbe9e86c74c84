"""Whether the images of a batch depend on each other, derived from a traced graph.

Every value is either the same for all images, or carries them in one dimension, which may hold other things before and
after them (`[B, C]` as `[B * C]`, windows as `[B * windows]`). A rule per operator says where the result carries them,
or why the operator mixes them. What has no rule is taken to mix: the answer may be too careful, never too bold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from subp_ext import Graph, Node, Ref

from .fuse import Argument, Shape
from .image_rules import rule_of
from .image_state import BATCH, COUNT, Call, Images, Mixed, State, refs_in

# Arguments that give a result its shape, and nothing else.
_SHAPES = {"size", "shape", "sizes", "repeats", "N"}


def why_dependent(graph: Graph, shapes: dict[str, Shape], numbers: Mapping[str, tuple[float, bool]]) -> str | None:
    """Says why the images of a batch may depend on each other.

    Args:
        graph: as ``trace`` returns it.
        shapes: of every tensor in it, at a batch of ``BATCH``.
        numbers: those that follow from sizes, and whether the number of images is among these.

    Returns:
        The node and the reason; None if it is certain that every image is computed alone.
    """
    known = {name: value for name, (value, counts) in numbers.items() if not counts}
    states: dict[str, State] = dict.fromkeys(graph.constants)
    for spec in graph.inputs:
        if spec.shape[:1] != (None,):
            return f"the batch size of input {spec.name!r} is fixed"
        if shapes[spec.name][0] != BATCH or any(size % BATCH == 0 for size in shapes[spec.name][1:]):
            return f"input {spec.name!r} does not have one entry per image"
        states[spec.name] = Images(0)
    for node in graph.nodes:
        try:
            if node.output in numbers:
                states[node.output] = COUNT if numbers[node.output][1] else None
            else:
                states[node.output] = _state(_with_numbers(node, known), states, shapes)
        except Mixed as reason:
            return f"node {node.output!r} ({node.op}) {reason}"
    for spec in graph.outputs:
        if states[spec.name] != Images(0):
            return f"output {spec.name!r} does not have one entry per image"
    return None


def _with_numbers(node: Node, known: Mapping[str, float]) -> Node:
    """The node with numbers that are the same for any batch in place of their names."""

    def known_or_same(value: Argument) -> Argument:
        if isinstance(value, Ref):
            return known.get(value.name, value)
        return [known_or_same(item) for item in value] if isinstance(value, list) else value

    return replace(node, args={name: known_or_same(value) for name, value in node.args.items()})


def _state(node: Node, states: dict[str, State], shapes: dict[str, Shape]) -> State:
    read = {ref.name: states[ref.name] for ref in node.refs()}
    out = shapes.get(node.output)
    if all(state is None for state in read.values()):
        return None
    counts = any(state is COUNT for state in read.values())
    if out is None and all(state is COUNT for state in read.values()):
        return COUNT
    if counts and node.op != "slice":
        for name, value in node.args.items():
            if name not in _SHAPES and any(states[ref.name] is COUNT for ref in refs_in([value])):
                raise Mixed("computes with the number of images")
    rule = rule_of(node.op)
    if rule is None:
        raise Mixed("has no rule that says whether images stay apart")
    try:
        state = rule(Call(node.args, states, shapes, out or ()))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise Mixed(f"has arguments that no rule covers ({error!r})") from error
    if out is not None:
        _check_shape(state, out)
    return state


def _check_shape(state: State, shape: Shape) -> None:
    """The shape must carry the images where the state says, and nowhere else."""
    carrying = [dim for dim, size in enumerate(shape) if size > 0 and size % BATCH == 0]
    expected = [state.dim] if isinstance(state, Images) else []
    if min(shape, default=1) < 0 or carrying != expected:
        raise Mixed("has a shape that does not follow from the number of images")
    if isinstance(state, Images) and shape[state.dim] != state.outer * BATCH * state.inner:
        raise Mixed("has a shape that does not follow from the number of images")
