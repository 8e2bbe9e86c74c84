"""Evaluate a finished run, in torch and as exported: ``python -m subp_dist.validate RUN [--dense RUN]``.

Prints one table: accuracy, whether torch and the exported network, in float32, in bfloat16 and in int8, predict the
same for every image, MACs, parameters, file sizes, and latency at equal threads.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

import subp_ext
from subp_ext.runtime import thread_count

from .config import Resolved
from .data import Data, create_data
from .errors import UsageError, report_usage_errors
from .export.verify import absolute_difference, run_session
from .flag_values import as_path, as_path_text
from .models import create_model, model_arguments, to_channels_last
from .process_group import Rank
from .report import read_report, write_report
from .run_folder import read_config

# Precisions below float32, each with a file of its own.
LOWER = ("bfloat16", "int8")


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, its data, its plain model in evaluation mode, and its report."""

    folder: Path
    config: Resolved
    data: Data
    model: nn.Module
    report: dict

    @classmethod
    def open(cls, folder: Path, data_dir: str | None = None) -> Run:
        """Open a run's folder; ``data_dir`` if the data has moved.

        Raises:
            UsageError: it is not a finished run.
        """
        for name in ("args.yaml", "report.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UsageError(f"{folder} is not a finished run: it has no {name}")
        config = read_config(folder)
        if data_dir:
            config = config.replace(data_dir=data_dir, loader="auto")
        arguments = model_arguments(config.model, config.data.num_classes, config.data.in_chans)
        model = create_model(config.model.name, **arguments)
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (SafetensorError, RuntimeError) as error:
            raise UsageError(f"{folder / 'model.safetensors'} is damaged or of another model: {error}") from error
        data = create_data(config.data, config.augmentation, model.pretrained_cfg, config.optimization.all_epochs)
        return cls(folder, config, data, model.eval(), read_report(folder))


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="subp-validate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=as_path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--dense", type=as_path, metavar="RUN", help="run of the dense twin, to stand beside it")
    parser.add_argument(
        "--exported", type=as_path, metavar="FILE", help="the network in float32; RUN/model.subp by default"
    )
    for dtype in LOWER:
        own = f"RUN/model-{dtype}.subp, if there is one"
        parser.add_argument(f"--{dtype}", type=as_path, metavar="FILE", help=f"and in {dtype}; {own}")
    parser.add_argument(
        "--data-dir", type=as_path_text, metavar="DIR", help="where the data is now, if not where it was in training"
    )
    parser.add_argument("--threads", type=int, help="threads of all engines; all usable cores by default")
    parser.add_argument("--limit", type=int, help="look at so many validation images only, spread over all")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: expected 1 or more")
    try:
        threads = thread_count(args.threads)
    except ValueError as error:
        raise UsageError(str(error)) from error
    run = Run.open(args.run, args.data_dir)
    dense = Run.open(args.dense, args.data_dir) if args.dense else None
    files = Files.of(run.folder, args.exported, {dtype: getattr(args, dtype) for dtype in LOWER})
    comparison = compare(run, dense, threads, args.limit, files)
    try:
        write_report(run.folder, run.report | {"comparison": comparison})
    finally:  # it has taken long
        print(as_table(comparison))


@dataclass(frozen=True)
class Files:
    """The exported network in float32, and in each of ``LOWER`` that there is a file of."""

    float32: Path
    lower: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, float32: Path | None = None, lower: Mapping[str, Path | None] | None = None) -> Files:
        """The files that are named, else those of a run's folder."""
        named = {dtype: (lower or {}).get(dtype) or folder / f"model-{dtype}.subp" for dtype in LOWER}
        given = {dtype for dtype, path in (lower or {}).items() if path}
        return cls(
            float32 or folder / "model.subp",
            {dtype: path for dtype, path in named.items() if dtype in given or path.exists()},
        )


def compare(run: Run, dense: Run | None, threads: int, limit: int | None = None, files: Files | None = None) -> dict:
    """Run a model in torch and on ``subp_ext``, in every precision there is, over its validation images, and time all.

    Args:
        run: whose images are looked at.
        dense: the dense twin, to stand beside it.
        threads: of every engine.
        limit: so many images only, spread over all.
        files: those of the run's folder by default.

    Returns:
        ``columns``, by engine, each with what ``as_table`` prints; ``images``, ``same_predictions``, and
        ``max_logit_difference``; by each of ``LOWER`` that there is a file of ``same_predictions`` as in float32 on
        ``subp_ext``, and ``macs_share``, that of products in it.

    Raises:
        UsageError: the run was not exported, a file is damaged or takes other images, or the dense run has other
            validation images.
    """
    files = files or Files.of(run.folder)
    torch.set_num_threads(threads)
    session = _session(files.float32, run, threads)
    lower = {dtype: _session(path, run, threads) for dtype, path in files.lower.items()}
    in_torch, labels, exported, *of_lower = predict(run, [session, *lower.values()], limit)
    if dense is not None:
        dense_logits, dense_labels = predict(dense, limit=limit)
        if not np.array_equal(labels, dense_labels):
            raise UsageError(
                f"--dense {dense.folder}: its validation images ({len(dense_labels)}) are not those of {run.folder} "
                f"({len(labels)}): set --data-dir to where both find the same"
            )
        dense_top1 = top1(dense_logits, labels)
    image = np.zeros((1, *run.data.input_size), np.float32)
    contenders = {"sparse, torch": torch_runner(run.model, image), "sparse, subp_ext": lambda: session.run(image)}
    contenders |= {f"sparse, {dtype}": partial(found.run, image) for dtype, found in lower.items()}
    if dense is not None:
        contenders["dense, torch"] = torch_runner(dense.model, image)
    times = time_in_turns(contenders)
    report = run.report
    columns = {}
    if dense is not None:
        columns["dense, torch"] = {
            "top1": dense_top1,
            "macs": report["macs"]["dense"],
            "parameters": report["parameters"]["dense"],
            "bytes": dense.report["files"]["model.safetensors"],
        }
    shared = {"macs": report["macs"]["kept"], "parameters": report["parameters"]["kept"]}
    columns["sparse, torch"] = shared | {"top1": top1(in_torch, labels), "bytes": report["files"]["model.safetensors"]}
    columns["sparse, subp_ext"] = shared | {"top1": top1(exported, labels), "bytes": files.float32.stat().st_size}
    for (dtype, path), logits in zip(files.lower.items(), of_lower, strict=True):
        columns[f"sparse, {dtype}"] = shared | {"top1": top1(logits, labels), "bytes": path.stat().st_size}
    for name, column in columns.items():
        column["best_ms"], column["median_ms"] = min(times[name]), statistics.median(times[name])
    comparison = {
        "columns": columns,
        "threads": threads,
        "images": len(labels),
        "same_predictions": _same(in_torch, exported),
        "max_logit_difference": absolute_difference(exported, in_torch),
        "kernels": subp_ext.cpu_info()["kernel_set"],
    }
    for (dtype, found), logits in zip(lower.items(), of_lower, strict=True):
        share = found.report(image).product_shares[dtype]
        comparison[dtype] = {"same_predictions": _same(exported, logits), "macs_share": share}
    return comparison


def _session(path: Path, run: Run, threads: int) -> subp_ext.Session:
    """A file that takes the images that a run is validated on.

    Raises:
        UsageError: there is none, it is damaged, or it takes something else.
    """
    try:
        session = subp_ext.Session(path, threads=threads)
    except (FileNotFoundError, subp_ext.FormatError) as error:
        raise UsageError(str(error)) from error
    spec = session.inputs[0]
    fits = len(spec.shape) == 4 and all(
        wanted in (None, size) for wanted, size in zip(spec.shape[1:], run.data.input_size, strict=True)
    )
    if spec.dtype != "float32" or not fits:
        raise UsageError(
            f"{path} takes {spec.dtype} {list(spec.shape)}; expected the run's normalised images, float32 "
            f"{[None, *run.data.input_size]}: name a file that was exported from {run.folder} without --uint8-input"
        )
    return session


def _same(first: np.ndarray, second: np.ndarray) -> int:
    """Images with the same prediction."""
    return int((first.argmax(1) == second.argmax(1)).sum())


def predict(run: Run, sessions: Sequence[subp_ext.Session] = (), limit: int | None = None) -> tuple[np.ndarray, ...]:
    """Logits ``[n, classes]`` of torch, labels ``[n]``, and logits of each session, over the validation images."""
    loader = run.data.val_loader(Rank(0, 1, torch.device("cpu")), run.config.model.channels_last, limit)
    labels, in_torch, exported = [], [], [[] for _ in sessions]
    with torch.inference_mode():
        for batch, targets in tqdm(loader, desc="compare", leave=False, delay=3, disable=None):
            labels.append(targets.numpy())
            in_torch.append(run.model(batch).numpy())
            for session, found in zip(sessions, exported, strict=True):
                found.append(run_session(session, batch)[0])
    return tuple(np.concatenate(found) for found in (in_torch, labels, *exported))


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions, in percent."""
    return 100 * float((logits.argmax(1) == labels).mean())


def torch_runner(model: nn.Module, image: np.ndarray) -> Callable[[], object]:
    """One inference in torch; in channels-last, which is the faster of its formats on CPUs."""
    model = to_channels_last(copy.deepcopy(model))
    tensor = torch.from_numpy(image).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> object:
        return model(tensor)

    return run


def time_in_turns(contenders: dict[str, Callable[[], object]], seconds: float = 6.0) -> dict[str, list[float]]:
    """Milliseconds of many calls of each, warm, in turns so that a noisy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(10):
            run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in contenders.items():
            for _ in range(10):
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def as_table(comparison: dict) -> str:
    """The comparison as text."""
    columns = comparison["columns"]
    rows: Sequence[tuple[str, Callable[[dict], str]]] = (
        ("top-1, %", lambda c: f"{c['top1']:.2f}"),
        ("MACs, M", lambda c: f"{c['macs'] / 1e6:.2f}"),
        ("parameters, M", lambda c: f"{c['parameters'] / 1e6:.3f}"),
        ("file, MB", lambda c: f"{c['bytes'] / 1e6:.2f}"),
        ("latency, ms: best", lambda c: f"{c['best_ms']:.3f}"),
        ("latency, ms: median", lambda c: f"{c['median_ms']:.3f}"),
    )
    width = max(len(name) for name in columns) + 2
    lines = [" " * 22 + "".join(name.rjust(width) for name in columns)]
    lines += [label.ljust(22) + "".join(show(c).rjust(width) for c in columns.values()) for label, show in rows]
    in_torch, ours = columns["sparse, torch"], columns["sparse, subp_ext"]
    best, median = (in_torch[key] / ours[key] for key in ("best_ms", "median_ms"))
    return "\n".join(
        [
            *lines,
            "",
            f"same prediction on {comparison['same_predictions']} of {comparison['images']} images; largest difference "
            f"of a logit {comparison['max_logit_difference']:.1e}",
            # The best first: on a busy machine the median measures the others' work.
            f"subp_ext is {best:.2f}x as fast as torch, by the median {median:.2f}x (batch 1, {comparison['threads']} "
            f"thread{'s' * (comparison['threads'] > 1)} each, {comparison['kernels']} kernels)",
            *(_about_lower(comparison, dtype) for dtype in LOWER if dtype in comparison),
        ]
    )


def _about_lower(comparison: dict, dtype: str) -> str:
    """A file of lower precision beside that in float32."""
    lower, float32 = (comparison["columns"][f"sparse, {name}"] for name in (dtype, "subp_ext"))
    best, median = (float32[key] / lower[key] for key in ("best_ms", "median_ms"))
    found = comparison[dtype]
    return (
        f"{dtype} against float32 on subp_ext: same prediction on {found['same_predictions']} of "
        f"{comparison['images']} images, top-1 {lower['top1'] - float32['top1']:+.2f} points, {best:.2f}x as fast "
        f"(median {median:.2f}x), {lower['bytes'] / float32['bytes']:.2f} of the file; {found['macs_share']:.0%} of "
        f"the MACs are in {dtype}"
    )


if __name__ == "__main__":
    cli()
