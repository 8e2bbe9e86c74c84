"""Measures the convolution kernels on the layers of a network, against what the FMA units of this CPU can do.

What limits a layer: at most one multiply-add per lane and cycle of each FMA unit, on the kept weights only. The share
of that peak is the efficiency of a kernel; the dense-equivalent rate, which counts the pruned weights too, is what the
sparsity is worth. Each layer runs alone with its operands in whatever cache they fit, batch 1; a whole network also
pays for moving activations between layers. Every number is the best of many runs, and the layers take turns in
several rounds: what else a machine is doing comes and goes over seconds, and must not hit one layer alone.

    python -m subp_ext.bench.kernels --shapes resnet50 --prune-rate 0.516 --block-size 16 --threads 1

With --balance it compares uniform block rows with rows that keep different numbers of blocks: see balance.py.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subp_ext import runtime
from subp_ext.bench import balance
from subp_ext.bench.arguments import as_path, end_unread
from subp_ext.convolution import Convolution
from subp_ext.dtypes import DTYPES, Quantization
from subp_ext.memory import aligned, aligned_empty
from subp_ext.requantize import Requantization, of_convolution
from subp_ext.sparse import UniformBlockSparse, block_rows

SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class Layer:
    """A convolution of a network at 224x224; `pruned` is False for those that pruning leaves dense."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    groups: int
    size: int
    pruned: bool


@dataclass(frozen=True)
class Result:
    """One layer's measurement. GFLOP/s count two per multiply-add; `share_of_peak` is that of kept work."""

    name: str
    shape: str
    count: int
    kernel: str
    kept: float
    ms: float
    kept_gflops: float
    share_of_peak: float
    dense_gflops: float
    torch_ms: float | None


def read_shapes(network: str) -> list[Layer]:
    """Returns the convolutions of a network, from its file in `shapes/`."""
    with (SHAPES / f"{network}.csv").open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    layers = []
    for name, *numbers in lines:
        inputs, outputs, kernel, stride, padding, groups, size, pruned = map(int, numbers)
        layers.append(Layer(name, inputs, outputs, kernel, stride, padding, groups, size, bool(pruned)))
    return layers


def random_weight(layer: Layer, rate: float, block: int, rng: np.random.Generator) -> UniformBlockSparse:
    """A weight with the share `rate` of each block row pruned at random, rounded down as pruning does."""
    per_group = layer.inputs // layer.groups
    rows = block_rows(layer.outputs, block, layer.groups)
    kept = per_group - (min(int(rate * per_group), per_group - 1) if layer.pruned else 0)
    order = rng.random((rows, per_group)).argsort(axis=1)
    values = rng.standard_normal((rows, kept, layer.kernel, layer.kernel, block), np.float32)
    values[rows // layer.groups - 1 :: rows // layer.groups, ..., (layer.outputs // layer.groups - 1) % block + 1 :] = 0
    indices = np.sort(order[:, :kept], axis=1).astype(np.int32)
    return UniformBlockSparse(
        values, indices, (layer.outputs, per_group, layer.kernel, layer.kernel), block, layer.groups
    )


def best_seconds(run: Callable[[], Any], seconds: float) -> float:
    """The shortest of as many runs as fit into `seconds`, at least five, after one to warm up."""
    run()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def best_in_rounds(
    contenders: Sequence[Callable[[], Any] | None], rounds: int, seconds: float, pace: Callable[[], Any] | None = None
) -> list[float]:
    """The best seconds of each, `seconds` spent on each in all; infinite for None.

    Those of `pace` come last: it runs for a moment before each of the others, because what it measures, the clock,
    changes from one moment to the next.
    """
    best = [float("inf")] * (len(contenders) + 1)
    for _ in range(rounds):
        for position, run in enumerate(contenders):
            if run and pace:
                best[-1] = min(best[-1], best_seconds(pace, 0))
            if run:
                best[position] = min(best[position], best_seconds(run, seconds / rounds))
    return best


def peak_loop(kernel_set: str, threads: int, dtype: str = "float32") -> tuple[Callable[[], Any], int]:
    """A run of nothing but multiply-adds in the registers of a set, all threads together, and its operations."""
    # Long enough, milliseconds, that waking the other threads does not count.
    loop, rounds = runtime.kernels().fma_loop, 1_000_000
    pool = ThreadPoolExecutor(threads)
    flops = threads * loop(kernel_set, rounds, dtype)

    def run() -> None:
        others = [pool.submit(loop, kernel_set, rounds, dtype) for _ in range(threads - 1)]
        loop(kernel_set, rounds, dtype)
        for other in others:
            other.result()

    return run, flops


def torch_run(layer: Layer, threads: int, channels_last: bool) -> Callable[[], Any]:
    """PyTorch's dense convolution of this shape."""
    import torch

    torch.set_num_threads(threads)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    module = torch.nn.Conv2d(
        layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups
    )
    module = module.eval().to(memory_format=memory)
    x = torch.randn(1, layer.inputs, layer.size, layer.size).to(memory_format=memory)

    def run() -> None:
        with torch.inference_mode():
            module(x)

    return run


class Compared(NamedTuple):
    """What was measured, for `--json`, and what prints it."""

    document: dict[str, Any]
    show: Callable[[], None]


class Own(NamedTuple):
    """This package's convolution of a layer, a run of it, and what it was prepared with."""

    convolution: Convolution
    run: Callable[[], np.ndarray]
    requantize: Requantization | None = None


def own_run(layer: Layer, args: argparse.Namespace) -> Own:
    """This package's convolution with random weights pruned as asked, bias and ReLU fused."""
    rng = np.random.default_rng(0)
    weight = random_weight(layer, args.prune_rate, args.block_size, rng)
    bias = rng.standard_normal(layer.outputs, np.float32)
    if args.dtype == "int8":
        return _own_integers(layer, weight, bias, rng, args.threads)
    weight = dataclasses.replace(weight, values=DTYPES[args.dtype].from_float(weight.values), dtype=args.dtype)
    convolution = Convolution(weight, bias, layer.stride, layer.padding, activation="relu")
    x = aligned_empty((1, layer.inputs, layer.size, layer.size))
    rng.standard_normal(out=x, dtype=np.float32)
    x = x if convolution.layer.dtype == "float32" else DTYPES[convolution.layer.dtype].from_float(x)
    out = convolution(x, threads=args.threads)
    return Own(convolution, lambda: convolution(x, out=out, threads=args.threads))


def _aligned_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised uint8 that begin with a cache line, as values of a network do."""
    size = math.prod(shape)
    return aligned(-(-size // 4)).view(np.uint8)[:size].reshape(shape)


def _own_integers(
    layer: Layer, weight: UniformBlockSparse, bias: np.ndarray, rng: np.random.Generator, threads: int
) -> Own:
    """The same from uint8 to uint8, with weights rounded to int8."""
    scale = np.full(layer.outputs, np.abs(weight.values).max() / 127, np.float32)
    values = np.rint(weight.values / scale[0]).astype(np.int8)
    convolution = Convolution(
        dataclasses.replace(weight, values=values, dtype="int8", scale=scale), None, layer.stride, layer.padding
    )
    kept = weight.values[0].size / weight.block_size
    of_x = Quantization(np.array(4 / 255, np.float32), np.array(0, np.int32))
    out_type = Quantization(np.array(8 * np.sqrt(kept) / 255, np.float32), np.array(0, np.int32))
    sums, sizes = convolution.weight_sums, convolution.weight_sizes
    assert sums is not None and sizes is not None
    made = of_convolution(sums, sizes, scale, bias, of_x, out_type, activation="relu")
    if isinstance(made, str):
        raise ValueError(f"{layer.name}: {made}")
    x = _aligned_bytes((1, layer.inputs, layer.size, layer.size))
    x[...] = rng.integers(0, 256, x.shape)
    out = _aligned_bytes((1, layer.outputs, *convolution.layer.out_size(layer.size, layer.size)))
    return Own(convolution, lambda: convolution(x, out=out, threads=threads, requantize=made), made)


def measure(layers: dict[Layer, int], args: argparse.Namespace) -> tuple[float, list[Result]]:
    """Times each layer; `layers` says how often it occurs.

    Returns:
        The FMA peak in GFLOP/s and the results.
    """
    own = [own_run(layer, args) for layer in layers]
    peak, flops = peak_loop(runtime.kernel_set(), args.threads, own[0].convolution.layer.dtype)
    others = [
        torch_run(layer, args.threads, last) if args.against else None for layer in layers for last in (True, False)
    ]
    runs = [*(each.run for each in own), *others]
    *best, peak_seconds = best_in_rounds(runs, args.rounds, args.seconds, peak)
    peak_gflops, results = flops / peak_seconds / 1e9, []
    for position, ((layer, count), (convolution, run, made)) in enumerate(zip(layers.items(), own, strict=True)):
        seconds = best[position]
        rivals = best[len(own) + 2 * position : len(own) + 2 * position + 2]
        rate = 2 * convolution.macs(run().shape) / seconds / 1e9
        results.append(
            Result(
                layer.name,
                f"{layer.inputs}-{layer.outputs} {layer.kernel}x{layer.kernel}/{layer.stride} {layer.size}",
                count,
                convolution.prepare(layer.size, layer.size, made).kernel,
                convolution.kept_share,
                seconds * 1e3,
                rate,
                rate / peak_gflops,
                rate / convolution.kept_share,
                min(rivals) * 1e3 if args.against else None,
            )
        )
    return peak_gflops, results


def summary(results: Sequence[Result]) -> dict[str, float | None]:
    """Totals over all layers: the share of peak is weighted by time, which is kept work over time."""
    ms = sum(r.count * r.ms for r in results)
    timed = [r.count * r.torch_ms for r in results if r.torch_ms]
    torch_ms = sum(timed) if timed else None
    return {
        "ms": ms,
        "share_of_peak": sum(r.count * r.ms * r.share_of_peak for r in results) / ms,
        "torch_ms": torch_ms,
        "faster_than_torch": torch_ms and torch_ms / ms,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m subp_ext.bench.kernels", description=__doc__.split("\n", 1)[0])
    networks = sorted(path.stem for path in SHAPES.glob("*.csv"))
    parser.add_argument("--shapes", default="resnet50", choices=networks, help="network whose layers to run")
    parser.add_argument("--prune-rate", type=float, default=0.516, help="share of blocks pruned, 0 for dense")
    parser.add_argument("--block-size", type=int, default=16, help="N of the 1xN blocks")
    types = dict.fromkeys(row["weight_dtype"] for row in runtime.kernels().rows() if row["operator"] == "conv2d")
    parser.add_argument("--dtype", default="float32", choices=list(types), help="of the weights")
    parser.add_argument("--threads", type=int, help="default: SUBP_NUM_THREADS, else the CPUs this process may use")
    parser.add_argument("--seconds", type=float, default=0.5, help="time to spend on each layer and contender")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which that time is spent")
    parser.add_argument("--against", choices=["torch"], help="also run PyTorch's dense convolutions")
    parser.add_argument("--balance", action="store_true", help="compare uniform with non-uniform block rows instead")
    parser.add_argument("--plot", type=as_path, metavar="FILE", help="with --balance: draw it (needs matplotlib)")
    parser.add_argument("--json", type=as_path, metavar="FILE", help="write everything to FILE")
    args = parser.parse_args(argv)
    if not 0 <= args.prune_rate < 1 or min(args.block_size, args.rounds) < 1:
        parser.error("--prune-rate must be in [0, 1), --block-size and --rounds at least 1")
    if args.plot and not args.balance:
        parser.error("--plot draws what --balance measures; pass --balance too")
    if args.balance and args.against:
        parser.error("--balance runs this package's kernels alone; leave out --against")
    args.threads = runtime.thread_count(args.threads)
    return args


def distinct(layers: Sequence[Layer]) -> dict[Layer, int]:
    """Layers that are equal but for the name become the first of them; returns how often each occurs."""
    first: dict[Layer, Layer] = {}
    counts: dict[Layer, int] = {}
    for layer in layers:
        layer = first.setdefault(dataclasses.replace(layer, name=""), layer)
        counts[layer] = counts.get(layer, 0) + 1
    return counts


def show(results: Sequence[Result], total: dict[str, float | None], peak: float) -> None:
    """Prints the table."""
    print(f"FMA peak {peak:.0f} GFLOP/s; GFLOP/s below count kept work, and dense-equivalent work\n")
    against = total["torch_ms"] is not None
    versus = " torch ms" if against else ""
    print(f"{'layer':28} {'shape':24} {'count':>5} {'ms':>8} {'kept':>6} {'peak':>6} {'dense-eq':>8}{versus}  kernel")
    for r in results:
        versus = f" {r.torch_ms:8.3f}" if against else ""
        print(
            f"{r.name:28} {r.shape:24} {r.count:5} {r.ms:8.3f} {r.kept_gflops:6.0f} {r.share_of_peak:6.1%} "
            f"{r.dense_gflops:8.0f}{versus}  {r.kernel}"
        )
    versus = f", PyTorch {total['torch_ms']:.2f} ms: {total['faster_than_torch']:.2f}x" if against else ""
    print(f"\nall layers {total['ms']:.2f} ms{versus}; time-weighted share of peak {total['share_of_peak']:.1%}")


def compare_layers(layers: dict[Layer, int], args: argparse.Namespace) -> Compared:
    """Measures every layer."""
    peak, results = measure(layers, args)
    total = summary(results)
    document = {"peak_gflops": peak, "layers": [dataclasses.asdict(r) for r in results], **total}
    return Compared(document, lambda: show(results, total, peak))


def compare_balance(layers: dict[Layer, int], args: argparse.Namespace) -> Compared:
    """Measures and draws uniform against non-uniform rows."""
    measured, imbalance = balance.measure(
        layers, args, lambda runs: best_in_rounds(runs, args.rounds, args.seconds)[:-1]
    )
    if args.plot:
        balance.plot(measured, imbalance, args.plot)
    document = {
        "balance": [dataclasses.asdict(each) for each in measured],
        "imbalance": [dataclasses.asdict(each) for each in imbalance],
    }
    return Compared(document, lambda: balance.show(measured, imbalance))


def main(argv: Sequence[str] | None = None) -> None:
    args, kernel_set = parse(argv), runtime.kernel_set()
    layers = distinct(read_shapes(args.shapes))
    print(f"{args.shapes}, {args.prune_rate:.1%} pruned, 1x{args.block_size}, {args.threads} threads, {kernel_set}")
    compared = (compare_balance if args.balance else compare_layers)(layers, args)
    document = {
        "shapes": args.shapes,
        "prune_rate": args.prune_rate,
        "block_size": args.block_size,
        "dtype": args.dtype,
        "threads": args.threads,
        "kernel_set": kernel_set,
        **compared.document,
    }
    try:
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        compared.show()


if __name__ == "__main__":
    end_unread()
    main()
