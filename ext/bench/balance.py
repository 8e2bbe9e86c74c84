"""Uniform block rows against rows that keep different numbers of blocks, with the same total.

A thread that owns block rows is done when its rows are. Where every row keeps the same number of blocks, equal numbers
of rows are equal work; where pruning has chosen freely, a static schedule waits for the thread with the fullest rows,
and a dynamic one pays for handing out rows one by one. Here both run on the same kernels, a row at a time, so that
nothing but the counts and the schedule differs.

The free counts are those of unstructured 1xN magnitude pruning: normally distributed weights, the norms of whose
filters spread log-normally as those of trained networks do, and one threshold for all blocks of a layer.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext import runtime
from subp_ext.convolution import Convolution
from subp_ext.memory import aligned, aligned_empty
from subp_ext.sparse import UniformBlockSparse

if TYPE_CHECKING:
    from subp_ext.bench.kernels import Layer

# Standard deviation of the logarithm of a filter's norm.
SPREAD = 0.3

# The thread counts whose imbalance is computed from the counts alone.
COMPUTED_THREADS = (2, 4, 8, 16)

SCHEDULES = ("uniform", "non-uniform, static", "non-uniform, dynamic")


@dataclasses.dataclass(frozen=True)
class Balance:
    """All pruned layers of a network on one number of threads, in ms."""

    threads: int
    uniform_ms: float
    static_ms: float
    dynamic_ms: float


@dataclasses.dataclass(frozen=True)
class Imbalance:
    """The busiest thread's blocks over the average thread's, by schedule; weighted by the layers' work."""

    threads: int
    uniform: float
    static: float
    dynamic: float


def free_counts(layer: Layer, rate: float, block: int, rng: np.random.Generator) -> np.ndarray:
    """Kept blocks per row, `[R]`, if the layer's weakest blocks go: 1 or more, in all those of uniform rows."""
    rows, uniform = -(-layer.outputs // block), uniform_count(layer, rate)
    taps = layer.kernel**2
    norms = np.exp(SPREAD * rng.standard_normal((rows, block)))
    # The mean magnitude of a kernel's normal weights, by the central limit.
    magnitudes = 0.8 + 0.6 / np.sqrt(taps) * rng.standard_normal((rows, layer.inputs, block))
    scores = np.einsum("rib,rb->ri", abs(magnitudes), norms)
    scores[np.arange(rows), scores.argmax(axis=1)] = np.inf
    kept = np.argsort(scores, axis=None)[scores.size - rows * uniform :]
    return np.bincount(kept // layer.inputs, minlength=rows)


def uniform_count(layer: Layer, rate: float) -> int:
    """Kept blocks of every row."""
    return layer.inputs - min(int(rate * layer.inputs), layer.inputs - 1)


def static_imbalance(counts: np.ndarray, threads: int) -> float:
    """The busiest thread over the average, each with a run of rows, as long as OpenMP's static schedule gives."""
    return max(part.sum() for part in np.array_split(counts, threads)) / (counts.sum() / threads)


def dynamic_imbalance(counts: np.ndarray, threads: int) -> float:
    """As `static_imbalance`, if the next row goes to the thread that is done first."""
    busy = np.zeros(threads)
    for count in counts:
        busy[busy.argmin()] += count
    return busy.max() / (counts.sum() / threads)


def computed(layers: dict[Layer, int], counts: Sequence[np.ndarray], rate: float) -> list[Imbalance]:
    """The imbalance that follows from the counts, for each of COMPUTED_THREADS."""
    found = []
    for threads in COMPUTED_THREADS:
        totals, work = np.zeros(3), 0.0
        for (layer, occurs), free in zip(layers.items(), counts, strict=True):
            weight = occurs * free.sum() * layer.kernel**2 * (layer.size // layer.stride) ** 2
            even = np.full(len(free), uniform_count(layer, rate))
            shares = static_imbalance(even, threads), static_imbalance(free, threads), dynamic_imbalance(free, threads)
            totals, work = totals + weight * np.array(shares), work + weight
        found.append(Imbalance(threads, *map(float, totals / work)))
    return found


def row_run(
    layer: Layer, counts: np.ndarray, block: int, threads: int, dynamic: bool, rng: np.random.Generator
) -> Callable[[], Any]:
    """A run of the layer, each block row a convolution of its own with so many kept blocks."""
    rows = []
    for row, count in enumerate(counts):
        width = min(block, layer.outputs - row * block)
        values = rng.standard_normal((1, count, layer.kernel, layer.kernel, block), np.float32)
        values[..., width:] = 0
        indices = np.sort(rng.permutation(layer.inputs)[:count]).astype(np.int32)[None]
        shape = (width, layer.inputs, layer.kernel, layer.kernel)
        weight = UniformBlockSparse(values, indices, shape, block, 1)
        rows.append(Convolution(weight, None, layer.stride, layer.padding, activation="relu", winograd=False))
    x = aligned_empty((1, layer.inputs, layer.size, layer.size))
    rng.standard_normal(out=x, dtype=np.float32)
    prepared = [row.prepare(layer.size, layer.size) for row in rows]
    compiled, size = [each.compiled for each in prepared], prepared[0].out_size
    outs = [aligned_empty((1, row.layer.shape[0], *size)) for row in rows]
    room = aligned(max(1, compiled[0].scratch))
    return lambda: runtime.kernels().run_rows(compiled, x, outs, room, threads, dynamic)


def measure(
    layers: dict[Layer, int], args: argparse.Namespace, best: Callable[[Sequence[Callable[[], Any]]], Sequence[float]]
) -> tuple[list[Balance], list[Imbalance]]:
    """Times every layer's rows on 1, 2, 4, ... up to `args.threads` threads.

    Args:
        layers: how often each occurs; those that pruning leaves dense and grouped ones are left out.
        args: prune_rate, block_size, threads.
        best: from runs to their seconds.
    """
    layers = {layer: count for layer, count in layers.items() if layer.pruned and layer.groups == 1}
    counts = [
        free_counts(layer, args.prune_rate, args.block_size, np.random.default_rng(position))
        for position, layer in enumerate(layers)
    ]
    thread_counts = sorted({min(2**n, args.threads) for n in range(args.threads.bit_length() + 1)})
    results = []
    for threads in thread_counts:
        runs = []
        for layer, free in zip(layers, counts, strict=True):
            even = np.full(len(free), uniform_count(layer, args.prune_rate))
            for kept, dynamic in ((even, False), (free, False), (free, True)):
                runs.append(row_run(layer, kept, args.block_size, threads, dynamic, np.random.default_rng(0)))
        seconds = np.reshape(best(runs), (len(layers), 3))
        results.append(Balance(threads, *map(float, 1e3 * np.array(list(layers.values())) @ seconds)))
    return results, computed(layers, counts, args.prune_rate)


def show(measured: Sequence[Balance], imbalance: Sequence[Imbalance]) -> None:
    """Prints both tables."""
    print("measured, ms of all pruned layers, each block row alone:")
    print(f"{'threads':>8} " + " ".join(f"{name:>21}" for name in SCHEDULES))
    for b in measured:
        rest = (f"{ms:10.2f} ({ms / b.uniform_ms:7.3f}x)" for ms in (b.static_ms, b.dynamic_ms))
        print(f"{b.threads:8} {b.uniform_ms:21.2f} " + " ".join(f"{text:>21}" for text in rest))
    print("\ncomputed from the counts, busiest thread over average:")
    print(f"{'threads':>8} " + " ".join(f"{name:>21}" for name in SCHEDULES))
    for i in imbalance:
        print(f"{i.threads:8} {i.uniform:21.3f} {i.static:21.3f} {i.dynamic:21.3f}")


def plot(measured: Sequence[Balance], imbalance: Sequence[Imbalance], file: Path) -> None:
    """Draws both tables.

    Raises:
        SystemExit: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"--plot needs matplotlib: pip install matplotlib ({error})") from error
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for position, name in enumerate(SCHEDULES):
        times = [dataclasses.astuple(b)[1 + position] / b.uniform_ms for b in measured]
        left.bar([n + 0.27 * (position - 1) for n in range(len(measured))], times, 0.25, label=name)
        shares = [dataclasses.astuple(i)[1 + position] for i in imbalance]
        right.plot([i.threads for i in imbalance], shares, "o-", label=name)
    left.set(xlabel="threads", ylabel="time / uniform", title="measured")
    left.set_xticks(range(len(measured)), [str(b.threads) for b in measured])
    right.set(xlabel="threads", ylabel="busiest / average thread", title="computed from the counts")
    right.set_xscale("log", base=2)
    right.set_xticks(COMPUTED_THREADS, [str(t) for t in COMPUTED_THREADS])
    left.legend(fontsize="small", loc="lower right")
    figure.savefig(file, dpi=150)
