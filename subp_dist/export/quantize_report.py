"""What quantization did to a network, layer by layer, and how far its results are from float32's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from subp_ext import Graph, Node, UniformBlockSparse

from .calibrate import run_values
from .placement import HEAVY, Placement, Shapes, layer_name


@dataclass(frozen=True)
class LayerRow:
    """What became of a layer or an operator.

    Attributes:
        name, op: of its module, or of its value; its operator.
        type: ``int8`` or ``float32``.
        reason: why.
        scale, zero_point: of its result, where that is uint8.
        sqnr: signal to noise of its result against float32, in dB, errors of earlier layers included.
        macs: multiply-accumulates for one image, of kept weights.
    """

    name: str
    op: str
    type: str
    reason: str
    scale: float | None = None
    zero_point: int | None = None
    sqnr: float | None = None
    macs: int = 0


@dataclass(frozen=True)
class QuantizeReport:
    """What quantization did to a network.

    Attributes:
        layers: in order.
        images: that it was calibrated on.
        agreement: percent of them with float32's prediction.
        top1: of float32 and of int8 on them, in percent; None without labels.
        sqnr: of the network's result, in dB.
    """

    layers: list[LayerRow]
    images: int
    agreement: float
    top1: tuple[float, float] | None
    sqnr: float

    @property
    def int8_macs_share(self) -> float:
        """Share of the multiply-accumulates that run in int8."""
        total = sum(row.macs for row in self.layers)
        return sum(row.macs for row in self.layers if row.type == "int8") / max(total, 1)

    @property
    def kept(self) -> dict[str, str]:
        """Convolutions and linear layers in float32, and why."""
        return {row.name: row.reason for row in self.layers if row.type == "float32"}

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.int8_macs_share:.1%} of the MACs in int8"]
        if self.top1 is not None:
            parts.append(f"top-1 {self.top1[1]:.1f} % (float32 {self.top1[0]:.1f} %)")
        parts.append(f"float32's prediction on {self.agreement:.1f} % of {self.images} calibration images")
        if self.kept:
            reasons = dict.fromkeys(self.kept.values())
            names = {why: ", ".join(name for name in self.kept if self.kept[name] == why) for why in reasons}
            parts.append("in float32: " + ", ".join(f"{names[reason]} ({reason})" for reason in reasons))
        return "; ".join(parts)

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return {
            "layers": [vars(row) for row in self.layers], "images": self.images, "agreement": self.agreement,
            "top1": self.top1, "sqnr": self.sqnr, "int8_macs_share": self.int8_macs_share,
        }  # fmt: skip


def agreement(exact: np.ndarray, quantized: np.ndarray) -> float:
    """Percent of predictions that are the same: the largest along the second dimension."""
    return 100 * float((exact.argmax(1) == quantized.argmax(1)).mean())


def top1(results: np.ndarray, labels: np.ndarray) -> float:
    """Percent of right predictions; the first label counts for results of fewer images."""
    return 100 * float((results.argmax(1) == labels[: len(results)]).mean())


def sqnr(exact: np.ndarray, quantized: np.ndarray) -> float:
    """Signal over noise in dB, between -200 and 200, which equal results have, zeros too."""
    real = exact.astype(np.float64)
    signal, noise = float((real**2).sum()), float(((real - quantized) ** 2).sum())
    if noise == 0:
        return 200.0
    return 10 * float(np.log10(max(signal, noise * 1e-20) / max(noise, signal * 1e-20)))


def describe_layers(
    placement: Placement, graph: Graph, images: np.ndarray, shapes: Shapes, equalized: Collection[str] = ()
) -> list[LayerRow]:
    """A row for every layer, and for every other node that runs on integers.

    Args:
        placement: what was quantized, in float32.
        graph: the result.
        images: a few, to measure errors on.
        shapes: of values.
        equalized: values whose channels were brought to one range.
    """
    typed = {node.output.removesuffix(".uint8"): node for node in graph.nodes if node.op != "quantize"}
    measured = [name for name in sorted(placement.stored) if typed[name].type is not None or typed[name].op in HEAVY]
    noise = _noise(placement.graph, graph, measured, images)
    rows = []
    for node in placement.graph.nodes:
        int8 = node.output in placement.int8
        if not int8 and node.op not in HEAVY:
            continue
        made = typed[node.output].type if node.output in placement.stored else None
        scale = None if made is None or made.quantization is None else made.quantization
        rows.append(
            LayerRow(
                layer_name(node),
                node.op,
                "int8" if int8 else "float32",
                _reason(node, placement, equalized),
                None if scale is None else float(scale.scale),
                None if scale is None else int(scale.zero_point),
                noise.get(node.output),
                _macs(node, placement.graph, shapes),
            )
        )
    return rows


def _reason(node: Node, placement: Placement, equalized: Collection[str]) -> str:
    if node.output in placement.reasons:
        return placement.reasons[node.output]
    if node.op not in HEAVY:
        return "between int8 layers"
    if node.output in equalized:
        return "uint8 result, a range for each channel"
    return "uint8 result" if node.output in placement.stored else "float32 result, which is all that is read of it"


def _noise(exact: Graph, quantized: Graph, names: list[str], images: np.ndarray) -> dict[str, float]:
    """Signal to noise of values, in dB."""
    types = {node.output: node.type for node in quantized.nodes}
    names = [name for name in names if types.get(name) is not None]
    if not names:
        return {}
    expected = run_values(exact, images, names)
    found = run_values(quantized, images, names, types)
    return {name: sqnr(expected[name], types[name].to_float(found[name])) for name in names}


def _macs(node: Node, graph: Graph, shapes: Shapes) -> int:
    """Multiply-accumulates for one image, those of pruned blocks left out."""
    if node.op not in HEAVY or node.output.removesuffix(".sum") not in shapes:
        return 0
    weight = graph.constants.get(getattr(node.args["weight"], "name", ""))
    if weight is None:
        return 0
    shape = shapes[node.output.removesuffix(".sum")]
    positions = int(np.prod(shape[1:-1] if node.op == "linear" else shape[2:]))
    kept = weight.kept_share if isinstance(weight, UniformBlockSparse) else 1.0
    return round(positions * int(np.prod(weight.shape)) * kept)
