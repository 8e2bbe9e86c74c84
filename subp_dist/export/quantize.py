"""Post-training static quantization of an exported graph to int8.

It works on the simplified graph that the runtime runs, not on torch's (PT2E of torchao): so what is calibrated and
corrected is what is deployed, with batch norms folded and residuals and activations fused. Weights are packed by then,
so that the zeros of pruned blocks are not stored, and stay zeros by construction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

import subp_ext
from subp_ext import Graph

from ..errors import UsageError
from ..flag_values import check_several
from .calibrate import Observations, batches, check_images, observe, sources, value_shapes
from .correct import corrected_biases
from .equalize import equalized
from .placement import HEAVY, Placement, Shapes, layer_name, place
from .quantize_report import QuantizeReport, agreement, describe_layers, sqnr, top1
from .scales import RANGES, choose_scales, quantized_graph
from .tables import with_tables

_logger = logging.getLogger(__name__)

# Images that biases are corrected on, and those that the errors of single layers are measured on.
_CORRECTED_ON, _MEASURED_ON = 64, 16

_TOGETHER = 8


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        range: how the range of a value follows from those seen: ``minmax``, ``percentile`` (99.99), ``mse`` (the least
            squared error), or ``auto``: ``percentile`` of sums that go below 0, ``mse`` of what a function bounds.
        bias_correction: keep the means of all layers' outputs.
        keep_float: patterns of layers that stay in float32.
        max_drop: points of top-1, or of agreement with float32 where there are no labels, that the result may lose on
            the calibration images; the most sensitive layers stay in float32 until it does. None accepts any.

    Raises:
        UsageError: a range that there is not, a drop outside of [0, 100], or patterns that are one text.
    """

    range: str = "auto"
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()
    max_drop: float | None = None

    def __post_init__(self) -> None:
        check_several(self.keep_float, "keep_float")
        if self.range not in RANGES:
            raise UsageError(f"--range {self.range}: expected one of {', '.join(RANGES)}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop {self.max_drop:g}: expected points between 0 and 100")


@dataclass(frozen=True)
class _Work:
    """What all attempts share: a float32 graph, ranges of it that are known, and how it is to be quantized."""

    graph: Graph
    ends: Mapping[str, float]
    images: np.ndarray
    options: QuantizeOptions
    shapes: Shapes

    def place(self, sensitive: Mapping[str, str]) -> Placement:
        return place(self.graph, self.shapes, self.options.keep_float, sensitive)

    def quantized(self, placement: Placement, found: Observations) -> Graph:
        scales = choose_scales(placement, found.histograms, self.options.range, self.ends)
        return quantized_graph(placement, scales)


@dataclass(frozen=True)
class _Attempt:
    placement: Placement
    graph: Graph
    results: np.ndarray
    found: Observations


def quantize_graph(
    graph: Graph, images: np.ndarray, options: QuantizeOptions = QuantizeOptions(), labels: np.ndarray | None = None
) -> tuple[Graph, QuantizeReport]:
    """Quantizes a graph to int8; activations that are a function of one byte become tables.

    Args:
        graph: in float32, as ``build_graph`` returns it.
        images: for calibration, [n, C, H, W] float32, normalised.
        options: how.
        labels: [n] classes of the images, to measure a drop of top-1.

    Returns:
        The graph, which takes the same images, and what became of each layer.

    Raises:
        UsageError: images or options do not fit, nothing can be quantized, or values are not numbers.
    """
    named, report = quantize_by_name(graph, images, options, labels)
    return with_tables(named), report


def quantize_by_name(
    graph: Graph, images: np.ndarray, options: QuantizeOptions, labels: np.ndarray | None = None
) -> tuple[Graph, QuantizeReport]:
    """As ``quantize_graph``, with the activations by their names, for other formats."""
    return quantize_from(graph, images, options, labels)[:2]


def quantize_from(
    graph: Graph, images: np.ndarray, options: QuantizeOptions, labels: np.ndarray | None = None
) -> tuple[Graph, QuantizeReport, Graph]:
    """As ``quantize_by_name``, and the graph in float32 that was rounded, its nodes named as those of the result."""
    images = np.ascontiguousarray(images, np.float32)
    check_images(graph, images)
    shapes = value_shapes(graph, next(batches(images, graph, 1)))
    work = _Work(*equalized(graph, images, place(graph, shapes, options.keep_float).int8), images, options, shapes)
    attempt = _attempt(work, {})
    if options.max_drop is not None:
        attempt = _within(attempt, work, labels)
    exact, results = attempt.found.results, attempt.results
    few = next(batches(images, graph, _TOGETHER))
    rows = describe_layers(attempt.placement, with_tables(attempt.graph), few, shapes, work.ends)
    pair = None if labels is None else (top1(exact, labels), top1(results, labels))
    report = QuantizeReport(rows, len(images), agreement(exact, results), pair, sqnr(exact, results))
    metadata = attempt.graph.metadata | {"dtype": "int8"}
    return replace(attempt.graph, metadata=metadata), report, attempt.placement.graph


def _attempt(work: _Work, sensitive: Mapping[str, str], found: Observations | None = None) -> _Attempt:
    """Quantizes with these layers in float32; what was observed before serves again where it says enough."""
    placement = work.place(sensitive)
    if found is None or not set(sources(placement)) <= found.histograms.keys():
        found = observe(placement, work.images, _CORRECTED_ON)
    named = work.quantized(placement, found)
    if work.options.bias_correction:
        biases = corrected_biases(with_tables(named), work.images, found.means, found.counted)
        named = replace(named, constants=named.constants | biases)
    return _Attempt(placement, named, run_all(with_tables(named), work.images), found)


def run_all(graph: Graph, images: np.ndarray) -> np.ndarray:
    """The first result of a graph on all images."""
    session = subp_ext.Session(graph)
    runs = [session.run(batch) for batch in batches(images, graph, _TOGETHER)]
    return np.concatenate([run[0] if isinstance(run, tuple) else run for run in runs])


def lost_points(exact: np.ndarray, quantized: np.ndarray, labels: np.ndarray | None) -> float:
    """Points of top-1 that are lost, or of agreement without labels."""
    if labels is None:
        return 100 - agreement(exact, quantized)
    return top1(exact, labels) - top1(quantized, labels)


def _within(first: _Attempt, work: _Work, labels: np.ndarray | None) -> _Attempt:
    """The attempt with the fewest layers in float32, most sensitive first, that loses no more than allowed.

    Raises:
        UsageError: only the network in float32 does.
    """
    limit, found = work.options.max_drop or 0.0, first.found

    def lost(attempt: _Attempt) -> float:
        return lost_points(found.results, attempt.results, labels)

    if lost(first) <= limit:
        return first
    order = _by_sensitivity(first, work)
    reason = f"sensitive: with all layers in int8 {lost(first):.1f} points are lost, more than {limit:g}"

    def with_float(count: int) -> _Attempt:
        return _attempt(work, dict.fromkeys(order[:count], reason), found)

    too_few, enough, best = 0, 1, None
    while best is None and enough < len(order):  # twice as many each time, then halving what is between
        attempt = with_float(enough)
        if lost(attempt) <= limit:
            best = attempt
        else:
            too_few, enough = enough, min(2 * enough, len(order) - 1) if enough < len(order) - 1 else len(order)
    if best is None:
        raise UsageError(
            f"--max-drop {limit:g}: with one layer in int8 alone, more points are lost; allow a larger drop"
        )
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        attempt = with_float(middle)
        if lost(attempt) <= limit:
            enough, best = middle, attempt
        else:
            too_few = middle
    return best


def _by_sensitivity(first: _Attempt, work: _Work) -> list[str]:
    """Layers in int8, first those that, quantized alone, add the most noise to the network's result."""
    nodes = [node for node in first.placement.graph.nodes if node.op in HEAVY and node.output in first.placement.int8]
    names = list(dict.fromkeys(map(layer_name, nodes)))
    few = work.images[: max(_MEASURED_ON, work.graph.inputs[0].shape[0] or 0)]
    noise = {}
    for name in names:
        others = {other: "measuring another layer" for other in names if other != name}
        placement = work.place(others)
        found = first.found
        if not set(sources(placement)) <= found.histograms.keys():  # of what only passed its operand on before
            found = observe(placement, few, 0)
        results = run_all(work.quantized(placement, found), few)
        noise[name] = sqnr(first.found.results[: len(results)], results)
        _logger.debug("%s alone in int8: %.1f dB", name, noise[name])
    return sorted(names, key=lambda name: noise[name])
