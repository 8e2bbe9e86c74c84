"""What the float32 network computes on calibration images: shapes, histograms of values, means of layers, results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

import subp_ext
from subp_ext import Graph, TensorSpec
from subp_ext.dtypes import ValueType
from subp_ext.operators import NUMBER, OPERATORS, VIEW

from ..errors import UsageError
from .histogram import Histogram
from .placement import HEAVY, Placement, operands

# Fewer say too little about the range of any value.
FEWEST_IMAGES = 8

# Images that run together while all their values are looked at.
_TOGETHER = 2

# Operators with several results, which no session can hand out as one.
_SEVERAL = (
    *("split", "split_with_sizes", "chunk", "unbind", "max_pool2d_with_indices", "var_mean", "meshgrid", "max", "min"),
    *("native_layer_norm", "native_group_norm", "native_batch_norm", "native_dropout"),
    *("_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
)


@dataclass
class Observations:
    """What a network computes on calibration images.

    Attributes:
        histograms: by value.
        means: by convolution or linear layer, of each output channel, over the first ``counted`` images.
        results: of the network's first output, [images, ...].
        counted: images that the means are taken over.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    results: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counted: int = 0


def check_images(graph: Graph, images: np.ndarray) -> None:
    """Refuses images that say nothing about the values to come.

    Raises:
        UsageError: there are too few, they are of another size, not numbers, or all the same.
    """
    shape = graph.inputs[0].shape
    if len(graph.inputs) != 1:
        raise UsageError(f"int8 needs a network of one input; this graph has {len(graph.inputs)}")
    if graph.inputs[0].dtype != "float32" or any(node.type is not None for node in graph.nodes):
        raise UsageError("int8 needs a network in float32; this graph is quantized already")
    if images.ndim != len(shape) or any(w not in (None, s) for w, s in zip(shape[1:], images.shape[1:], strict=True)):
        raise UsageError(f"calibration images have shape {list(images.shape)}; the network takes {list(shape)}")
    if len(images) < FEWEST_IMAGES:
        raise UsageError(f"{len(images)} calibration images are too few; give {FEWEST_IMAGES} or more, better hundreds")
    if len(images) < (shape[0] or 0):
        raise UsageError(f"{len(images)} calibration images are too few; the network takes {shape[0]} at a time")
    if not np.isfinite(images).all():
        raise UsageError("calibration images hold values that are infinite or not a number; check mean and std")
    # Over the pixels of a channel: what a picture of one colour, normalised, differs by between channels is no content.
    if not np.ptp(images.reshape(len(images), images.shape[1], -1), axis=2).any() or not np.ptp(images, axis=0).any():
        raise UsageError(f"all {len(images)} calibration images are the same, or of one colour; give real pictures")


def batches(images: np.ndarray, graph: Graph, size: int) -> Iterator[np.ndarray]:
    """The images a few at a time; as many as the graph takes where it fixes that, and the last left out then."""
    fixed = graph.inputs[0].shape[0]
    size = fixed or size
    for start in range(0, len(images), size):
        if fixed is None or start + size <= len(images):
            yield images[start : start + size]


def value_shapes(graph: Graph, image: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Shapes of all values that are tensors and that integers may have a part in.

    Args:
        graph: in float32.
        image: a batch of them.
    """
    several = {node.output for node in graph.nodes if OPERATORS[node.op].shape is NUMBER or node.op in _SEVERAL}
    names = [node.output for node in graph.nodes if node.op in HEAVY or OPERATORS[node.op].shape is VIEW]
    names += [name for node in graph.nodes for name in operands(node)]
    wanted = [name for name in dict.fromkeys(names) if name not in several and name not in graph.constants]
    return {name: np.shape(array) for name, array in run_values(graph, image, wanted).items()}


def observed_graph(graph: Graph, names: Sequence[str], types: Mapping[str, ValueType] | None = None) -> Graph:
    """The graph with these values as its outputs, in this order; float32 unless a type is given."""
    given = {} if types is None else {name: types[name] for name in names}
    outputs = [
        TensorSpec(name, (None,), *((given[name].dtype.name, given[name].quantization) if name in given else ()))
        for name in names
    ]
    return replace(graph, outputs=outputs)


def run_values(
    graph: Graph, image: np.ndarray, names: Sequence[str], types: Mapping[str, ValueType] | None = None
) -> dict[str, np.ndarray]:
    """Values of a graph on one batch, as they are stored."""
    session = subp_ext.Session(observed_graph(graph, names, types))
    found = session.run(image)
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))


def observe(placement: Placement, images: np.ndarray, counted: int) -> Observations:
    """Runs the float32 network on all images.

    Args:
        placement: says which values matter.
        images: as ``check_images`` accepts them.
        counted: so many images count for the means of layers.

    Raises:
        UsageError: a value is infinite or not a number; the message names its node.
    """
    graph, values = placement.graph, sources(placement)
    layers = [node for node in graph.nodes if node.op in HEAVY and node.output in placement.int8]
    names = list(dict.fromkeys([*values, *(node.output for node in layers), graph.outputs[0].name]))
    session = subp_ext.Session(observed_graph(graph, names))
    found, seen = Observations(), 0
    sums: dict[str, np.ndarray] = {}
    results = []
    for batch in batches(images, graph, _TOGETHER):
        run = session.run(batch)
        arrays = dict(zip(names, run if isinstance(run, tuple) else (run,), strict=True))
        for name in values:
            try:
                found.histograms.setdefault(name, Histogram()).add(arrays[name])
            except ValueError as error:
                raise UsageError(f"node {name!r} {error} on calibration images; int8 cannot hold them") from error
        if seen < counted:
            for node in layers:
                sums[node.output] = sums.get(node.output, 0.0) + channel_sums(arrays[node.output], node.op)
            found.counted += len(batch)
        seen += len(batch)
        results.append(arrays[graph.outputs[0].name].copy())
    found.results = np.concatenate(results)
    if not np.isfinite(found.results).all():
        raise UsageError("the network's results on calibration images are infinite or not a number")
    found.means = {layer: total / found.counted for layer, total in sums.items()}
    return found


def channel_sums(array: np.ndarray, op: str) -> np.ndarray:
    """Sums over images of the means over pixels, of each output channel of a convolution or linear layer."""
    axes = tuple(range(1, array.ndim - 1)) if op == "linear" else tuple(range(2, array.ndim))
    return np.asarray(array.mean(axes, dtype=np.float64).sum(0))


def sources(placement: Placement) -> list[str]:
    """Values that need a scale: those kept as uint8, and those in float32 that integers read."""
    read = [name for node in placement.graph.nodes if node.output in placement.int8 for name in operands(node)]
    several = {node.output for node in placement.graph.nodes if node.op in _SEVERAL}
    # What passes its operand on has its scale, and no values of its own.
    passed = {name for name, kind in placement.kinds.items() if kind in ("pass", "cat")}
    return [name for name in dict.fromkeys([*read, *sorted(placement.stored)]) if name not in several | passed]
