"""What an exported file takes, returns and runs on, read from the file itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import subp_ext
from subp_ext import Graph, TensorSpec, UniformBlockSparse

from .example import Example
from .verify import run_session


@dataclass(frozen=True)
class SparseLayers:
    """Layers whose weights have one block size.

    Attributes:
        block_size: N of the 1xN blocks.
        layers: how many.
        kept: share of their weights that is stored.
        padding: share of the blocks stored that are zeros, which make the rows of a layer as long as its longest.
    """

    block_size: int
    layers: int
    kept: float
    padding: float


@dataclass(frozen=True)
class ExportSummary:
    """What an export found out; ``str()`` is for people.

    Attributes:
        path: of the file.
        nbytes: its size.
        inputs, outputs: names, shapes (None: any size) and types.
        independent_images: whether a session may run a large batch in parts.
        notes: why it may not, and why sizes are fixed.
        sparse: layers with uniform block sparse weights, by block size.
        shares: of the multiply-accumulates those on sparse kernels, on dense ones and on fallbacks.
        fallbacks: operators that run on NumPy, and how many of each.
    """

    path: Path
    nbytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    independent_images: bool
    notes: tuple[str, ...]
    sparse: tuple[SparseLayers, ...]
    shares: dict[str, float]
    fallbacks: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.nbytes / 1e6:.1f} MB"]
        lines += [
            f"  {'input' if spec in self.inputs else 'output'} {_line(spec)}" for spec in self.inputs + self.outputs
        ]
        apart = "every image is computed alone" if self.independent_images else "images of a batch depend on each other"
        lines += [f"  {apart}", *(f"  {note}" for note in self.notes)]
        for group in self.sparse:
            padded = f", {group.padding:.1%} of their blocks are padding" if group.padding else ""
            lines.append(f"  {group.layers} layers in 1x{group.block_size} blocks, {group.kept:.1%} kept{padded}")
        lines.append(
            f"  {self.shares['sparse']:.1%} of the MACs are on sparse kernels, {self.shares['dense']:.1%} dense"
        )
        if self.fallbacks:
            names = ", ".join(f"{op} ({count})" if count > 1 else op for op, count in self.fallbacks.items())
            lines.append(f"  without a kernel, on NumPy: {names}; {self.shares['fallback']:.1%} of the MACs")
        return "\n".join(lines)


def summarize(path: Path, example: Example) -> ExportSummary:
    """Read a file and run it once.

    Args:
        path: of the file.
        example: of its inputs.
    """
    graph = subp_ext.load(path)
    with subp_ext.Session(path) as session:
        run_session(session, example.fitting(graph))
        report = session.report()
    fallbacks: dict[str, int] = {}
    for row in report.fallbacks:
        fallbacks[row.op] = fallbacks.get(row.op, 0) + 1
    return ExportSummary(
        path,
        path.stat().st_size,
        tuple(graph.inputs),
        tuple(graph.outputs),
        graph.metadata.get("independent_images") is True,
        tuple(graph.metadata.get("notes", [])),
        tuple(_sparse_layers(graph)),
        report.shares,
        fallbacks,
    )


def _line(spec: TensorSpec) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype} [{sizes}]"


def _sparse_layers(graph: Graph) -> list[SparseLayers]:
    groups: dict[int, list[UniformBlockSparse]] = {}
    for constant in graph.constants.values():
        if isinstance(constant, UniformBlockSparse) and constant.indices.shape[1] < constant.shape[1]:
            groups.setdefault(constant.block_size, []).append(constant)
    return [_of_group(block_size, weights) for block_size, weights in sorted(groups.items(), reverse=True)]


def _of_group(block_size: int, weights: list[UniformBlockSparse]) -> SparseLayers:
    stored = sum(weight.values.size for weight in weights)
    dense = sum(weight.values.size // weight.indices.shape[1] * weight.shape[1] for weight in weights)
    empty = sum(int((~weight.values.any(axis=(2, 3, 4))).sum()) for weight in weights)
    blocks = sum(weight.indices.size for weight in weights)
    return SparseLayers(block_size, len(weights), stored / dense, empty / blocks)
