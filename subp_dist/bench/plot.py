"""Sweeps as a picture: ``python -m subp_dist.bench.plot SWEEP.json ... --output FILE.svg``.

A panel per network: speed-up over the fastest dense peer against the share of blocks pruned and a line per block size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

from ..checkpoint import check_writable, write_atomically  # noqa: E402
from ..errors import UsageError, report_usage_errors  # noqa: E402
from ..flag_values import as_path  # noqa: E402


def read_sweep(path: Path) -> dict:
    """The JSON document of a sweep.

    Raises:
        UsageError: it is none.
    """
    try:
        document = json.loads(path.read_text())
        if not document["points"] or not document["engines"]:
            raise KeyError("points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a sweep, as subp-bench --sweep --json writes it: {error!r}") from error
    return document


def draw(documents: list[dict], output: Path) -> None:
    """Write the picture, in the format of the file's name."""
    # The same input gives the same file, byte for byte.
    with mpl.rc_context({"svg.hashsalt": "subp", "font.size": 9}):
        figure, axes = plt.subplots(1, len(documents), figsize=(3.4 * len(documents), 3), squeeze=False, sharey=True)
        for axis, document in zip(axes[0], documents, strict=True):
            _panel(axis, document)
        axes[0][0].set_ylabel("times as fast as the fastest dense peer")
        axes[0][0].legend(frameon=False)
        figure.tight_layout()
        metadata = {"Date": None} if output.suffix == ".svg" else None
        kind = output.suffix.removeprefix(".")
        write_atomically(output, lambda path: figure.savefig(path, format=kind, metadata=metadata, dpi=120))
        plt.close(figure)


def _panel(axis: plt.Axes, document: dict) -> None:
    points = document["points"]
    for size in sorted({point["block_size"] for point in points}):
        line = sorted((point["prune_rate"], point["speedup"]) for point in points if point["block_size"] == size)
        axis.plot(*zip(*line, strict=True), marker=".", label=f"1x{size}")
    axis.axhline(1, color="grey", linewidth=0.8)
    threads = f"{document['threads']} thread{'s' * (document['threads'] > 1)}"
    axis.set(title=f"{document['model']}, {threads}, batch {document['batch_size']}", xlabel="blocks pruned")
    axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m subp_dist.bench.plot", description=__doc__.split(":")[0])
    parser.add_argument("sweeps", nargs="+", type=as_path, metavar="SWEEP.json", help="of subp-bench --sweep --json")
    parser.add_argument("--output", type=as_path, required=True, metavar="FILE", help="the picture, .svg or .png")
    args = parser.parse_args()
    if args.output.suffix not in (".svg", ".png"):
        raise UsageError(f"--output {args.output}: expected a name that ends in .svg or .png")
    check_writable(args.output)
    draw([read_sweep(path) for path in args.sweeps], args.output)


if __name__ == "__main__":
    cli()
