"""A whole network on this package's engine, sparse and dense, against other engines on the same machine.

The network has random weights, random uniform masks and batch-norm statistics measured on random images. The peers run
the same weights as a dense network, on as many threads: in float32, and with another ``--dtype`` also in int8 and bf16,
each in the way that is fastest on it. Engines are processes that take turns.

python -m subp_dist.bench resnet50 --prune-rate 0.516 --threads 1 --against onnxruntime openvino torch
python -m subp_dist.bench resnet50 --prune-rate 0.516 --threads 1 --dtype int8
python -m subp_dist.bench resnet50 --prune-rate 0.516 --threads 1 --dtype bfloat16
python -m subp_dist.bench resnet50 --prune-rate 0.516 --threads 1 --narrower "channels=[48,96,160,352]"
python -m subp_dist.bench resnet50 --sweep --json resnet50.json    # speed-up for many rates and block sizes
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

import subp_ext
from subp_ext.runtime import thread_count

from ..blocks import BLOCK_SIZES
from ..checkpoint import check_writable, write_json
from ..errors import UsageError, report_usage_errors
from ..flag_values import as_path, parse_kwargs
from .contest import Contender, compete
from .files import NetworkFiles
from .tables import accuracy, as_curves, as_table, speedups

PEERS = ("onnxruntime", "openvino", "torch")
# What is needed to quantize for a peer, beside itself.
QUANTIZERS = {"openvino": "nncf", "onnxruntime": "onnx"}
DTYPES = ("float32", "bfloat16", "int8")
# This engine by the precision that is measured: sparse, dense, and what stands beside them.
OURS = {
    "float32": ("subp", "subp_dense"),
    "bfloat16": ("subp_bf16", "subp_bf16_dense", "subp", "subp_int8"),
    "int8": ("subp_int8", "subp_int8_dense", "subp"),
}
# What the peers run below float32, by the precision that is measured; that of the comparison comes first.
LOWER = {
    "bfloat16": ("openvino_bf16", "torch_bf16", "openvino_int8", "onnxruntime_int8"),
    "int8": ("openvino_int8", "onnxruntime_int8", "openvino_bf16"),
}
# The row of a smaller dense network on this engine.
NARROWER = "subp_narrower"
SWEEP_RATES = tuple(round(0.1 * step, 1) for step in range(10))
SWEEP_BLOCK_SIZES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how: the flags of the command under their names, each checked.

    Attributes:
        narrower: arguments for timm, for a smaller dense network of the same model to compare with; empty for none.
        sweep: pruning rates to go through, in place of ``prune_rate`` and ``block_size``; None for one network.
        files: where exported networks are kept; None for a folder that is deleted at the end.
        json: where the document goes; None for the table alone.
    """

    model: str
    dtype: str
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
    narrower: tuple[str, ...]
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
    add("--dtype", choices=DTYPES, default="float32", help="of this engine; the peers run in every precision")
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
    narrower = "arguments for timm, such as channels=[48,96,160,352], for a smaller dense network to measure, too"
    add("--narrower", nargs="+", default=[], metavar="KEY=VALUE", help=narrower)
    add("--files", type=as_path, metavar="DIR", help="keep the exported networks here, and use those that are there")
    add("--json", type=as_path, metavar="FILE", help="write everything to FILE")
    add("--sweep", nargs="*", type=float, metavar="RATE", help="these pruning rates (0 to 0.9) in 1x8, 1x16 and 1x32")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line and check what needs no network.

    Raises:
        UsageError: a value is out of range, or a peer is not installed.
    """
    args = build_parser().parse_args(argv)
    args.threads = thread_count(args.threads)
    args.skip, args.narrower = tuple(args.skip), tuple(args.narrower)
    for key in parse_kwargs(args.narrower, "--narrower"):
        if key in ("name", "rate", "in_chans", "img_size", "num_classes", *Settings.__dataclass_fields__):
            raise UsageError(f"--narrower {key}: expected an argument for timm that leaves images and classes as they "
                "are, such as channels=[48,96,160,352]")  # fmt: skip
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
        for package in (peer, QUANTIZERS.get(peer, peer) if args.dtype != "float32" else peer):
            if importlib.util.find_spec(package) is None:
                what = "it" if package == peer else f"{package}, which quantizes for it,"
                raise UsageError(
                    f"--against {peer}: {what} is not installed; pip install 'subp-dist[bench]', or leave it out"
                )
    if args.sweep and not args.against:
        raise UsageError("--sweep: a speed-up needs at least one peer; pass --against")
    if args.sweep and args.narrower:
        raise UsageError("--narrower: it is measured beside one network; leave out --sweep")
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
    try:
        if settings.json:
            write_json(settings.json, document)
    finally:  # the figures are not to be had again
        print(as_curves(document) if settings.sweep else as_table(document))


def bench(settings: Settings, folder: Path) -> dict:
    """Measure one network.

    Returns:
        What ``--json`` writes: the conditions; ``engines``, each with ``best_ms``, ``median_ms``, ``load_ms``,
        ``memory_mb``, ``layers`` (numbers by precision), and ``max_abs_diff`` and ``sqnr_db``, its largest difference
        from torch in float64 and the ratio of signal to difference; ``max_abs_diff``, the larger of the first two
        engines', which are this one's, sparse and dense; ``speedup`` of these over the fastest peer. In bfloat16 and
        int8 ``speedup`` is over the fastest peer in that precision, ``speedup_any`` over the fastest peer, and
        ``speedup_float32`` over this engine in float32. With ``--narrower`` also ``speedup_narrower``, of the sparse
        network over that one, and ``macs``, the multiply-accumulates of both.

    Raises:
        UsageError: an engine failed, or runs in another precision than its name says.
    """
    files = _files(settings, folder, settings.prune_rate, settings.block_size)
    images, expected = files.images(settings.batch_size)
    ours = OURS[settings.dtype]
    contenders = [Contender(name, "subp", files.path(name)) for name in ours] + _peers(settings, files)
    expected_of = dict.fromkeys([contender.name for contender in contenders], expected)
    if settings.narrower:
        narrower = dataclasses.replace(files, rate=0.0, skip=(), model_kwargs=settings.narrower)
        contenders.append(Contender(NARROWER, "subp", narrower.path(ours[1])))
        expected_of[NARROWER] = narrower.images(settings.batch_size)[1]  # of the same images
    compete(contenders, images, settings.threads, settings.rounds, settings.seconds)
    engines = _faster_torch(
        {one.name: one.summary() | accuracy(one.output, expected_of[one.name]) for one in contenders}
    )
    check_precisions({name: engines[name]["layers"] for name in engines if not name.startswith("subp")})
    document = conditions(settings) | {"prune_rate": settings.prune_rate, "block_size": settings.block_size}
    document |= {"engines": engines, "logits_range": float(expected.max() - expected.min())}
    document["max_abs_diff"] = max(engines[name]["max_abs_diff"] for name in ours[:2])
    if settings.narrower:
        document["speedup_narrower"] = speedups(engines, {"sparse": ours[0]}, [NARROWER])
        document["macs"] = {"sparse": files.macs(ours[0]), "narrower": narrower.macs(ours[1])}
    peers = [name for name in engines if not name.startswith("subp")]
    pair = dict(zip(("sparse", "dense"), ours, strict=False))
    if settings.dtype == "float32":
        return document | {"speedup": speedups(engines, pair, peers)}
    suffix = ours[0].removeprefix("subp")
    return document | {
        "speedup": speedups(engines, pair, [name for name in peers if name.endswith(suffix)]),
        "speedup_any": speedups(engines, pair, peers),
        "speedup_float32": speedups(engines, {"sparse": ours[0]}, ["subp"]),
    }


def sweep(settings: Settings, folder: Path) -> dict:
    """Measure a network at many rates and block sizes, all in the same rounds as the peers.

    Returns:
        The conditions, ``engines`` (the peers), and ``points``: ``block_size``, ``prune_rate``, ``best_ms``,
        ``median_ms`` and ``speedup`` (of the best times, over the fastest peer).

    Raises:
        UsageError: as ``bench``.
    """
    dense = _files(settings, folder, 0.0, SWEEP_BLOCK_SIZES[0])
    images, _ = dense.images(settings.batch_size)
    peers, points = _peers(settings, dense), {}
    for block_size, rate in tqdm(
        [(n, p) for n in SWEEP_BLOCK_SIZES for p in settings.sweep], desc="export", leave=False
    ):
        path = _files(settings, folder, rate, block_size).path(OURS[settings.dtype][0])
        points[block_size, rate] = Contender(f"1x{block_size} {rate:g}", "subp", path)
    compete([*peers, *points.values()], images, settings.threads, settings.rounds, settings.seconds)
    engines = _faster_torch({peer.name: peer.summary() for peer in peers})
    check_precisions({name: engine["layers"] for name, engine in engines.items()})
    fastest = min(engine["best_ms"] for engine in engines.values())
    rows = [
        {"block_size": block_size, "prune_rate": rate, "speedup": fastest / min(contender.times)} | contender.summary()
        for (block_size, rate), contender in points.items()
    ]
    return conditions(settings) | {"engines": engines, "points": rows}


def _files(settings: Settings, folder: Path, rate: float, block_size: int) -> NetworkFiles:
    return NetworkFiles(folder, settings.model, rate, block_size, settings.skip, settings.image_size, settings.seed)


def _peers(settings: Settings, files: NetworkFiles) -> list[Contender]:
    # A quantized file of ONNX Runtime is loaded as any other; OpenVINO is set up for each precision.
    names = engines_of(settings.against, settings.dtype, has_bf16(subp_ext.cpu_info()["features"]))
    return [
        Contender(name, "onnxruntime" if name.startswith("onnxruntime") else name, files.path(name)) for name in names
    ]


def has_bf16(features: Mapping[str, bool]) -> bool:
    """Whether a CPU multiplies in bfloat16; where it does not, engines emulate it, slower than float32."""
    return any(features.get(name) for name in ("avx512bf16", "amx_bf16"))


def engines_of(against: Sequence[str], dtype: str, bf16: bool) -> list[str]:
    """Contenders for the peers asked for: torch counts with the faster of its memory formats."""
    float32 = [
        engine for peer in against for engine in ((peer, f"{peer}_channels_last") if peer == "torch" else (peer,))
    ]
    lower = [engine for engine in LOWER.get(dtype, ()) if bf16 or not engine.endswith("_bf16")]
    return [engine for engine in lower if engine.rpartition("_")[0] in against] + float32


def check_precisions(layers: Mapping[str, Mapping[str, int]]) -> None:
    """Hold engines to their names: ``_int8`` and ``_bf16`` run layers in that, all others nothing but float32.

    Args:
        layers: name -> numbers of layers by precision.

    Raises:
        UsageError: one does not.
    """
    for name, counts in layers.items():
        promised = next((suffix for suffix in ("int8", "bf16") if name.endswith(f"_{suffix}")), "float32")
        others = [precision for precision in counts if precision != promised]
        if not counts.get(promised) or (promised == "float32" and others):
            raise UsageError(
                f"{name}: expected layers in {promised}, found {dict(counts)}; its figures were thrown away"
            )


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
    keys = ("model", "dtype", "skip", "threads", "batch_size", "image_size", "rounds", "seconds", "seed", "narrower")
    return {key: getattr(settings, key) for key in keys} | {"cpu": cpu_model(), **subp_ext.cpu_info()}


def cpu_model() -> str:
    """The CPU's name for itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    cli()
