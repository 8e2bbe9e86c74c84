"""Measures a `.subp` file on this machine: `python -m subp_ext.bench FILE.subp`. Needs NumPy only."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.bench.arguments import as_path, end_unread
from subp_ext.session import Session

# Runs before the first that counts: the first plans and allocates, the next ones fill the caches.
WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 after one line on standard error if something does not fit."""
    args = build_parser().parse_args(arguments)
    try:
        result = measure(args.file, args.threads, args.batch_size, args.image_size, args.seconds)
        try:
            if args.json:
                args.json.write_text(json.dumps(result, indent=2) + "\n")
        finally:
            print(as_text(result), flush=True)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename}: {error.strerror}"
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(prog="python -m subp_ext.bench", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("file", type=as_path, metavar="FILE.subp")
    add("--threads", type=int, help="default: SUBP_NUM_THREADS, else the CPUs this process may use")
    add("--batch-size", type=_positive, default=1, metavar="B")
    add(
        "--image-size",
        type=_positive,
        nargs="+",
        metavar="S",
        help="one side, or height and width; default: the file's",
    )
    add("--seconds", type=float, default=5.0, help="how long to measure (default: 5)")
    add("--json", type=as_path, metavar="FILE", help="also write the result and the report of every layer")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def measure(
    path: str | os.PathLike[str],
    threads: int | None = None,
    batch_size: int = 1,
    image_size: Sequence[int] | None = None,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Loads a model and runs it for some time on normally distributed numbers, then once more step by step.

    Args:
        path: a `.subp` file.
        threads: as `Session`.
        batch_size: images of a run.
        image_size: (side,) or (height, width) in place of what the file says.
        seconds: to measure, after a warm-up; at least one run is made.

    Returns:
        JSON values: `file`, `bytes`, `cpu`, `kernel_set`, `threads`, `input_shapes`, `load_ms`, `runs`, `best_ms`,
        `p50_ms`, `p90_ms`, `p99_ms`, `images_per_second` (at the median), `peak_rss_mb` (of the process, None where
        the system does not say), `arena_mb`, `weights_mb`, `report` (see `Report.to_dict`; its ms are of runs of
        their own, with a clock around every step).

    Raises:
        OSError, FormatError, ValueError: the file cannot be read or run, or the sizes do not fit it.
    """
    if not 0 < seconds <= 3600:
        raise ValueError(f"--seconds is {seconds:g}; expected more than 0 and at most 3600")
    start = time.perf_counter()
    session = Session(path, threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    inputs = _inputs(session, batch_size, image_size)
    for _ in range(WARM_UP):
        session.run(inputs)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(inputs)
        times.append(1e3 * (time.perf_counter() - start))
    peak = peak_rss_mb()
    report = Session(path, threads, profile=True).report(inputs)
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return {
        "file": os.fspath(path),
        "bytes": Path(path).stat().st_size,
        "cpu": _cpu_name(),
        "kernel_set": runtime.kernel_set(),
        "threads": session.threads,
        "input_shapes": [list(array.shape) for array in inputs],
        "load_ms": load_ms,
        "runs": len(times),
        "best_ms": min(times),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "images_per_second": 1e3 * batch_size / p50,
        "peak_rss_mb": peak,
        "arena_mb": report.arena_bytes / 1e6,
        "weights_mb": report.weight_bytes / 1e6,
        "report": report.to_dict(),
    }


def _inputs(session: Session, batch_size: int, image_size: Sequence[int] | None) -> list[np.ndarray]:
    """Random inputs of the sizes asked for, those of the file where it fixes them, those of its training elsewhere."""
    sides = list(image_size or [])
    if len(sides) > 2:
        raise ValueError(f"--image-size takes one side, or height and width; got {len(sides)} numbers")
    sides = sides * 2 if len(sides) == 1 else sides
    trained = list(session.metadata.get("input_size") or [])
    inputs = []
    for spec in session.inputs:
        known = [batch_size, *(trained if len(trained) == len(spec.shape) - 1 else spec.shape[1:])]
        shape = [size or free for size, free in zip(spec.shape, known, strict=True)]
        if spec.shape and spec.shape[0] is None:
            shape[0] = batch_size
        elif batch_size != (spec.shape or (1,))[0]:
            raise ValueError(f"--batch-size {batch_size}: the network is made for batches of {spec.shape[0]}")
        if sides and len(shape) == 4:
            for axis, side in zip((2, 3), sides, strict=True):
                if spec.shape[axis] not in (None, side):
                    raise ValueError(
                        f"--image-size {' '.join(map(str, sides))}: the network is made for images of "
                        f"{spec.shape[2] or 'any'}x{spec.shape[3] or 'any'}; export it for another size"
                    )
                shape[axis] = side
        if None in shape:
            raise ValueError(f"input {spec.name!r} takes any size and the file does not name one; pass --image-size")
        try:
            inputs.append(_scattered(shape, spec.dtype))
        except (MemoryError, ValueError) as error:  # the latter where the size itself is no number of the machine's
            sizes = "x".join(map(str, shape))
            raise ValueError(
                f"there is no memory for an input of {sizes}; pass a smaller batch or image size"
            ) from error
    return inputs


def _scattered(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Numbers from -1 to 1: NumPy's random generators take 4 MB, and the peak of memory is one of the results."""
    return np.sin(np.arange(math.prod(shape), dtype=np.float32)).astype(dtype, copy=False).reshape(shape)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss_mb() -> float | None:
    """Returns the most memory this process has had, in MB; None where the system does not tell."""
    try:  # getrusage would also count the process that this one was forked from
        with Path("/proc/self/status").open() as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e3
    except (OSError, StopIteration):  # another system
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def as_text(result: dict[str, Any]) -> str:
    """Returns the result for people."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in result["input_shapes"])
    report, peak = result["report"], result["peak_rss_mb"]
    shares = report["shares"]
    part = report["part"] and f", {report['part']}"
    slow = f"; {report['fallbacks']} of {len(report['rows'])} steps run on the reference" if report["fallbacks"] else ""
    return "\n".join(
        [
            f"{result['file']}, {result['bytes'] / 1e6:.1f} MB, input {shapes}",
            f"{result['cpu']}; kernels: {result['kernel_set']}; threads: {result['threads']}",
            f"latency  best {result['best_ms']:.2f}  p50 {result['p50_ms']:.2f}  p90 {result['p90_ms']:.2f}  "
            f"p99 {result['p99_ms']:.2f} ms over {result['runs']} runs; {result['images_per_second']:.1f} images/s",
            f"load {result['load_ms']:.0f} ms; arena {result['arena_mb']:.1f} MB, weights "
            f"{result['weights_mb']:.1f} MB" + ("" if peak is None else f", process {peak:.0f} MB at most"),
            f"MACs{part}: {report['macs'] / 1e6:.1f} M of {report['dense_macs'] / 1e6:.1f} M; {shares['sparse']:.1%} "
            f"on sparse kernels, {shares['dense']:.1%} on dense ones, {shares['fallback']:.1%} on fallbacks{slow}",
        ]
    )


if __name__ == "__main__":
    end_unread()
    sys.exit(main())
