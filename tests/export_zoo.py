"""The export of timm's architectures against torch; `test_export_zoo.py` runs it over a sample, or over all.

`python tests/export_zoo.py [PATTERN ...] --results FILE` appends a JSON line per model and prints a summary: first the
smallest member of every family, then all by size. What the file already has is left out, so an interrupted sweep goes
on; several processes may share a file, each with its `--part I/N`. A model gets random weights, random 1x16 masks of
half of its blocks (where it has nothing to prune it stays dense) and batch-norm statistics that are alive, at the
smallest image size that it takes, and runs through this package's engine on a batch of two. Where the export leaves the
image size free, it has compared other sizes with torch; where it says that images are independent, torch must agree.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import itertools
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export import build_graph, random_network
from subp_dist.export.example import Example
from subp_dist.export.sizes import free_image_size
from subp_dist.export.verify import (
    TOLERANCE,
    describe_difference,
    largest_difference,
    random_images,
    run_model,
    run_session,
    verified,
)
from subp_dist.parametrization import plain_copy

RATE, BLOCK_SIZE, CLASSES = 0.5, 16, 10
SIZES = (64, 128, None)  # None is the model's own


def convolutional(pattern: str = "*") -> list[str]:
    """Architectures with convolutions beyond a patch embedding: the smallest of every family, then all by size."""
    sizes: dict[str, tuple[int, str]] = {}
    for name in fnmatch.filter(timm.list_models(), pattern):
        with torch.device("meta"):
            model = timm.create_model(name)
        if sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 3:
            sizes[name] = (sum(parameter.numel() for parameter in model.parameters()), name)
    names = sorted(sizes, key=sizes.get)
    first = {_family(name): name for name in reversed(names)}
    return sorted(names, key=lambda name: name != first[_family(name)])


def _family(name: str) -> str:
    """timm keeps a family in a module."""
    return timm.models.model_entrypoint(name).__module__


def check(name: str) -> dict:
    """`ok`, `wrong`, `refused` (by the package, which names the operator) or `error`, and what led to it."""
    start = time.perf_counter()
    row = {"name": name, "status": "refused"}
    try:
        row |= _compare(name)
    except UsageError as error:
        row["reason"] = str(error)
    except Exception as error:
        row |= {"status": "error", "reason": f"{type(error).__name__}: {str(error)[:300]}"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _compare(name: str) -> dict:
    model, input_size, rate = _network(name)
    plain = plain_copy(model)
    example = Example.images(input_size)
    graph = free_image_size(verified(build_graph(model, input_size), plain, example), plain, example)
    names = [spec.name for spec in graph.outputs]
    images = random_images(2 if graph.inputs[0].shape[0] is None else 1, input_size)
    expected, found = run_model(model, images), run_session(subp_ext.Session(graph, threads=1), images)
    right = describe_difference(names, found, expected) is None
    # What torch itself makes of the images one at a time.
    alone = [run_model(model, image[None]) for image in images]
    apart = max(map(largest_difference, map(np.concatenate, zip(*alone, strict=True)), expected))
    independent = graph.metadata["independent_images"]
    return {
        "status": "ok" if right and (apart < TOLERANCE or not independent) else "wrong",
        "difference": max(map(largest_difference, found, expected)),
        "independent": independent,
        "apart": apart,
        "size": input_size[1],
        "batch": len(images),
        "any_size": graph.inputs[0].shape[2] is None,
        "notes": graph.metadata.get("notes", []),
        "rate": rate,
    }


def _network(name: str) -> tuple[nn.Module, tuple[int, int, int], float]:
    """The network at the smallest size that it takes, pruned if it can be."""
    for rate, size in itertools.product((RATE, 0.0), SIZES):
        try:
            model, input_size, _ = random_network(name, rate, BLOCK_SIZE, image_size=size, num_classes=CLASSES)
            return model, input_size, rate
        except (UsageError, TypeError, IndexError) as error:
            last = error
    raise last


def summary(rows: list[dict]) -> str:
    """Counts, the largest difference, and every model that is not ok."""
    counts = Counter(row["status"] for row in rows)
    worst = max((row["difference"] for row in rows if row["status"] == "ok"), default=0.0)
    share = counts["ok"] / max(1, len(rows))
    lines = [f"{row['status']:8} {row['name']}: {row.get('reason', row.get('difference'))}" for row in rows]
    faults = [line for line, row in zip(lines, rows, strict=True) if row["status"] != "ok"]
    head = f"{len(rows)} architectures: {share:.1%} ok, {dict(counts)}; largest difference of those {worst:.1e}"
    return "\n".join([*faults, head])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="of model names")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, read and appended to")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every Nth model from the Ith on")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    part, parts = map(int, args.part.split("/"))
    done = {row["name"] for row in read(args.results)}
    names = list(dict.fromkeys(name for pattern in args.patterns for name in convolutional(pattern)))
    for name in names[part::parts]:
        if name in done:
            continue
        row = check(name)
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['status']:8} {name:40} {row['seconds']:6.1f} s  {row.get('reason', '')}", flush=True)
        gc.collect()
    rows = [row for row in read(args.results) if row["name"] in names]
    print(summary(rows))
    return int(any(row["status"] in ("wrong", "error") for row in rows))


def read(path: Path) -> list[dict]:
    """The rows of a results file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
