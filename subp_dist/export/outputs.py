"""The results of a model, nested as they may be: flattened in order, and named by their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind, TensorArgument

from subp_ext import Graph, Node, Ref, TensorSpec

from ..errors import UsageError
from ..torch_compat import pytree
from .fuse import renamed


def output_values(program: ExportedProgram) -> list[tuple[str, str | None]]:
    """The node behind every tensor that the model returns, in order, and its name.

    Returns:
        The node's name, and the keys that lead to the result ("a.0"); None where there are only positions. Results
        that are None are left out.

    Raises:
        UsageError: a result is no tensor; or the model writes to its buffers or its input.
    """
    written = [spec for spec in program.graph_signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]
    if written:
        raise UsageError(
            f"a run changes {written[0].target!r} of the model ({written[0].kind.name.lower()}), which a file cannot; "
            "batch norms and counters must not be in training mode: check what the model does after eval()"
        )
    arguments = [spec.arg for spec in program.graph_signature.output_specs]
    found = []
    for argument, name in zip(arguments, _names(program, len(arguments)), strict=True):
        if isinstance(argument, TensorArgument):
            found.append((argument.name, name))
        elif not isinstance(argument, ConstantArgument) or argument.value is not None:
            value = getattr(argument, "value", argument)
            raise UsageError(f"result {name or len(found)!r} is {value!r}; expected tensors alone")
    if not found:
        raise UsageError("the model returns no tensor")
    return found


def _names(program: ExportedProgram, number: int) -> list[str | None]:
    structure = program.call_spec.out_spec
    try:
        paths = [path for path, _ in pytree.tree_flatten_with_path(structure.unflatten(range(number)))[0]]
    except (ValueError, TypeError):  # a class of results that has no keys
        return [None] * number
    return [_name(path) for path in paths]


def _name(path: pytree.KeyPath) -> str | None:
    if all(isinstance(entry, pytree.SequenceKey) for entry in path):
        return None
    parts = (getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))) for entry in path)
    return ".".join(map(str, parts))


def chosen_names(found: Sequence[str | None], given: Sequence[str] | None) -> Sequence[str | None]:
    """The names that somebody gives to the results, or those found.

    Raises:
        UsageError: they are not as many, or one stands twice.
    """
    if given is None:
        return found
    if len(given) != len(found) or len(set(given)) != len(given):
        raise UsageError(f"names has {', '.join(given)}; expected a name of its own for each of {len(found)} outputs")
    return given


def name_outputs(graph: Graph, names: Sequence[str | None]) -> Graph:
    """The graph with its outputs named, each a value of its own.

    Where a name is taken by an input or a constant, the output is `output.NAME`.
    """
    taken = {spec.name for spec in graph.inputs} | set(graph.constants)
    produced = {node.output for node in graph.nodes}
    repeated = Counter(spec.name for spec in graph.outputs)
    new: dict[str, str] = {}
    added: list[Node] = []
    outputs: list[TensorSpec] = []
    for number, (spec, name) in enumerate(zip(graph.outputs, names, strict=True)):
        if name is None:
            name = spec.name if repeated[spec.name] == 1 else f"{spec.name}.{number}"
        if name != spec.name and name in taken:
            name = f"output.{name}"
        name = _free(name, {output.name for output in outputs})
        if spec.name in produced and repeated[spec.name] == 1:
            new[spec.name] = name
        elif name != spec.name:
            added.append(Node("alias", name, {"self": Ref(spec.name)}))
        outputs.append(replace(spec, name=name))
    # A node that is no output makes room for an output of its name.
    wanted = {spec.name for spec in outputs}
    for value in sorted((produced & wanted) - set(new)):
        new[value] = _free(value, produced | taken | wanted)
    nodes = [replace(renamed(node, new), output=new.get(node.output, node.output)) for node in graph.nodes]
    return replace(graph, outputs=outputs, nodes=[*nodes, *(renamed(node, new) for node in added)])


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    return next(free for free in chain([name], (f"{name}_{n}" for n in count(1))) if free not in taken)


def flatten_outputs(results: object) -> list[np.ndarray]:
    """What a model returned, as arrays in the order of its file's outputs."""
    return [leaf.numpy() for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
