"""A whole network on this package's engine, sparse and dense, against other engines on the same machine.

The network has random weights, random uniform masks and batch-norm statistics measured on random images. The peers run
the same weights as a dense network in float32, on as many threads. Engines are processes that take turns.

python -m subp_dist.bench resnet50 --prune-rate 0.516 --threads 1 --against onnxruntime openvino torch
python -m subp_dist.bench resnet50 --sweep --json resnet50.json    # speed-up for many rates and block sizes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import subp_ext
from subp_ext.runtime import thread_count

from ..blocks import BLOCK_SIZES
from ..checkpoint import check_writable, write_atomically
from ..errors import UsageError, report_usage_errors
from .contest import Contender, compete
from .files import NetworkFiles, engines_of

PEERS = ("onnxruntime", "openvino", "torch")
SWEEP_RATES = tuple(round(0.1 * step, 1) for step in range(10))
SWEEP_BLOCK_SIZES = (8, 16, 32)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how: the flags of the command under their names, each checked.

    Attributes:
        sweep: pruning rates to go through, in place of ``prune_rate`` and ``block_size``; None for one network.
        files: where exported networks are kept; None for a folder that is deleted at the end.
        json: where the document goes; None for the table alone.
    """

    model: str
    prune_rate: float
    block_size: int
    skip: tuple[str, ...]
    threads: int
    batch_size: int
    image_size: int | None
    against: tuple[str, ...]
    rounds: int
    seconds: float
    seed: int
    files: Path | None
    json: Path | None
    sweep: tuple[float, ...] | None


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="subp-bench",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="timm model")
    add("--prune-rate", type=float, default=0.5, metavar="P", help="share of blocks pruned in every row")
    add("--block-size", type=int, default=16, choices=BLOCK_SIZES, metavar="N", help="output channels per block")
    add("--skip", nargs="*", default=[], metavar="PATTERN", help="convolutions to keep dense, such as '*downsample*'")
    add("--threads", type=int, help="of every engine; by default the CPUs this process may use")
    add("--batch-size", type=int, default=1, help="images per run")
    add("--image-size", type=int, metavar="PIXELS", help="square image size; the model's own by default")
    add("--against", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    add("--rounds", type=int, default=20, help="turns of every engine")
    add("--seconds", type=float, default=0.2, help="length of a turn")
    add("--seed", type=int, default=0, help="of weights, masks and images")
    add("--files", type=Path, metavar="DIR", help="keep the exported networks here, and use those that are there")
    add("--json", type=Path, metavar="FILE", help="write everything to FILE")
    add("--sweep", nargs="*", type=float, metavar="RATE", help="these pruning rates (0 to 0.9) in 1x8, 1x16 and 1x32")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line and check what needs no network.

    Raises:
        UsageError: a value is out of range, or a peer is not installed.
    """
    args = build_parser().parse_args(argv)
    args.threads = thread_count(args.threads)
    args.skip = tuple(args.skip)
    if args.sweep is not None:
        args.sweep = tuple(args.sweep) or SWEEP_RATES
    for rate in (args.prune_rate, *(args.sweep or ())):
        if not 0 <= rate < 1:
            raise UsageError(f"pruning rate {rate}: expected a share of blocks in [0, 1), such as 0.5")
    for flag in ("batch_size", "rounds"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected 1 or more")
    args.against = tuple(dict.fromkeys(args.against))
    for peer in args.against:
        if importlib.util.find_spec(peer) is None:
            raise UsageError(f"--against {peer}: it is not installed; pip install 'subp-dist[bench]', or leave it out")
    if args.sweep and not args.against:
        raise UsageError("--sweep: a speed-up needs at least one peer; pass --against")
    if args.json:
        check_writable(args.json)
    return Settings(**vars(args))


@report_usage_errors
def cli() -> None:
    """Console entry."""
    settings = parse_args()
    try:
        subp_ext.cpu_info()
    except ImportError as error:
        raise UsageError(str(error)) from error
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        document = sweep(settings, folder) if settings.sweep else bench(settings, folder)
    print(as_curves(document) if settings.sweep else as_table(document))
    if settings.json:
        write_atomically(settings.json, lambda path: path.write_text(json.dumps(document, indent=1) + "\n"))


def bench(settings: Settings, folder: Path) -> dict:
    """Measure one network.

    Returns:
        What ``--json`` writes: the conditions; ``engines`` (``subp``, ``subp_dense`` and the peers), each with
        ``best_ms``, ``median_ms``, ``load_ms``, ``memory_mb`` and ``max_abs_diff``, its largest difference from torch
        in float64; ``speedup`` of this engine over the fastest peer; ``max_abs_diff``, the larger of this engine's two.
    """
    files = _files(settings, folder, settings.prune_rate, settings.block_size)
    images, expected = files.images(settings.batch_size)
    contenders = [Contender("subp", "subp", files.path("subp"))]
    contenders.append(Contender("subp_dense", "subp", files.path("subp_dense")))
    contenders += _peers(settings, files)
    compete(contenders, images, settings.threads, settings.rounds, settings.seconds)
    engines = {
        contender.name: contender.summary() | {"max_abs_diff": float(np.abs(contender.output - expected).max())}
        for contender in contenders
    }
    document = conditions(settings) | {"prune_rate": settings.prune_rate, "block_size": settings.block_size}
    document |= {"engines": _faster_torch(engines), "logits_range": float(expected.max() - expected.min())}
    document["max_abs_diff"] = max(engines[name]["max_abs_diff"] for name in ("subp", "subp_dense"))
    return document | {"speedup": speedups(document["engines"], settings.against)}


def sweep(settings: Settings, folder: Path) -> dict:
    """Measure a network at many rates and block sizes, all in the same rounds as the peers.

    Returns:
        The conditions, ``engines`` (the peers), and ``points``: ``block_size``, ``prune_rate``, ``best_ms``,
        ``median_ms`` and ``speedup`` (of the best times, over the fastest peer).
    """
    dense = _files(settings, folder, 0.0, SWEEP_BLOCK_SIZES[0])
    images, _ = dense.images(settings.batch_size)
    peers, points = _peers(settings, dense), {}
    for block_size, rate in tqdm(
        [(n, p) for n in SWEEP_BLOCK_SIZES for p in settings.sweep], desc="export", leave=False
    ):
        path = _files(settings, folder, rate, block_size).path("subp")
        points[block_size, rate] = Contender(f"1x{block_size} {rate:g}", "subp", path)
    compete([*peers, *points.values()], images, settings.threads, settings.rounds, settings.seconds)
    engines = _faster_torch({peer.name: peer.summary() for peer in peers})
    fastest = min(engine["best_ms"] for engine in engines.values())
    rows = [
        {"block_size": block_size, "prune_rate": rate, "speedup": fastest / min(contender.times)} | contender.summary()
        for (block_size, rate), contender in points.items()
    ]
    return conditions(settings) | {"engines": engines, "points": rows}


def _files(settings: Settings, folder: Path, rate: float, block_size: int) -> NetworkFiles:
    return NetworkFiles(folder, settings.model, rate, block_size, settings.skip, settings.image_size, settings.seed)


def _peers(settings: Settings, files: NetworkFiles) -> list[Contender]:
    return [
        Contender(engine, engine, files.path(engine.removesuffix("_channels_last")))
        for engine in engines_of(settings.against)
    ]


def _faster_torch(engines: dict[str, dict]) -> dict[str, dict]:
    """The engines with the faster of torch's memory formats as ``torch``, and its name."""
    formats = {"torch": "contiguous", "torch_channels_last": "channels_last"}
    found = [name for name in formats if name in engines]
    others = {name: engine for name, engine in engines.items() if name not in formats}
    if not found:
        return others
    best = min(found, key=lambda name: engines[name]["best_ms"])
    return others | {"torch": engines[best] | {"memory_format": formats[best]}}


def conditions(settings: Settings) -> dict:
    """Under which circumstances the figures were taken."""
    keys = ("model", "skip", "threads", "batch_size", "image_size", "rounds", "seconds", "seed")
    return {key: getattr(settings, key) for key in keys} | {"cpu": cpu_model(), **subp_ext.cpu_info()}


def cpu_model() -> str:
    """The CPU's name for itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def speedups(engines: dict[str, dict], against: Sequence[str]) -> dict | None:
    """This engine over the peer with the best time: ``sparse`` and ``dense`` of best times, and of medians."""
    if not against:
        return None
    fastest = min(against, key=lambda name: engines[name]["best_ms"])
    ratios = {"over": fastest}
    for label, name in (("sparse", "subp"), ("dense", "subp_dense")):
        for key in ("best_ms", "median_ms"):
            rival = min(engines[peer][key] for peer in against)
            ratios[label if key == "best_ms" else f"{label}_median"] = rival / engines[name][key]
    return ratios


def as_table(document: dict) -> str:
    """The document as text, the ratio first."""
    engines, ratios = document["engines"], document["speedup"]
    where = (
        f"{document['model']}, {document['prune_rate']:.1%} pruned in 1x{document['block_size']} blocks, batch "
        f"{document['batch_size']}, {document['threads']} thread{'s' * (document['threads'] > 1)}, "
        f"{document['kernel_set']} kernels, {document['cpu']}"
    )
    lines = []
    if ratios:
        lines = [
            f"{ratios['sparse']:.2f}x as fast as the fastest dense peer, {ratios['over']} (median "
            f"{ratios['sparse_median']:.2f}x); dense on this engine {ratios['dense']:.2f}x (median "
            f"{ratios['dense_median']:.2f}x)",
        ]
    lines += [where, "", f"{'engine':14}{'best ms':>10}{'median ms':>11}{'load ms':>10}{'peak MB':>10}{'max diff':>10}"]
    for name, engine in engines.items():
        lines.append(
            f"{name:14}{engine['best_ms']:10.2f}{engine['median_ms']:11.2f}{engine['load_ms']:10.0f}"
            f"{engine['memory_mb']:10.0f}{engine['max_abs_diff']:10.1e}  {engine['version']} "
            f"{engine.get('memory_format', '')}".rstrip()
        )
    lines += ["", f"max diff: from torch in float64; the logits' range is {document['logits_range']:.2f}"]
    return "\n".join(lines)


def as_curves(document: dict) -> str:
    """The speed-ups of a sweep as text: a line per rate, a column per block size."""
    table = {(point["prune_rate"], point["block_size"]): point["speedup"] for point in document["points"]}
    rates, sizes = (sorted({key[axis] for key in table}) for axis in (0, 1))
    peers = ", ".join(f"{name} {engine['best_ms']:.2f} ms" for name, engine in document["engines"].items())
    lines = [f"{document['model']}: speed-up over the fastest dense peer; {peers}"]
    lines.append("pruned" + "".join(f"1x{size}".rjust(8) for size in sizes))
    lines += [f"{rate:6.1%}" + "".join(f"{table[rate, size]:7.2f}x" for size in sizes) for rate in rates]
    return "\n".join(lines)


if __name__ == "__main__":
    cli()
