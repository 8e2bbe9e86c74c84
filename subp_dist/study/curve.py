"""Accuracy against latency: ``python -m subp_dist.study.curve PLOT.svg "DATA SET=FILE.csv" ...``.

Draws what ``subp_dist.study.precision`` measured, a panel per data set, and prints the table of them all: what a user
chooses a pruning rate and a data type from.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import check_writable
from ..errors import UsageError, report_usage_errors
from ..flag_values import as_path
from .precision import Row, read_rows
from .table import save

_STYLES = {"float32": ("tab:blue", "o"), "bfloat16": ("tab:orange", "s"), "int8": ("tab:green", "^")}


@dataclass(frozen=True)
class Point:
    """The seeds of one pruning rate and data type on one data set.

    Attributes:
        top1: of each seed, in percent.
        same: share of images on which the prediction is torch's.
        latency: the best of all, in milliseconds.
        megabytes: of a file.
    """

    top1: tuple[float, ...]
    same: float
    latency: float
    megabytes: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Point:
        """The rows of one rate and type."""
        return cls(
            tuple(float(row["top1"]) for row in rows),
            statistics.fmean(int(row["same"]) / int(row["images"]) for row in rows),
            min(float(row["best_ms"]) for row in rows),
            statistics.fmean(int(row["bytes"]) for row in rows) / 1e6,
        )

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.top1):.1f}" if len(self.top1) > 1 else ""
        return f"{statistics.fmean(self.top1):.1f}{spread}"


Points = Mapping[tuple[float, str], Point]


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m subp_dist.study.curve", description=__doc__.split("\n\n")[0])
    parser.add_argument("plot", type=as_path, metavar="PLOT", help=".png or .svg file to write")
    parser.add_argument(
        "results", nargs="+", metavar="NAME=CSV", help="a data set and its results; latencies are the first's"
    )
    args = parser.parse_args()
    if args.plot.suffix not in (".png", ".svg"):
        raise UsageError(f"{args.plot}: expected the name of a .png or .svg file")
    check_writable(args.plot)
    found = dict(_read(given) for given in args.results)
    plot(found, args.plot)  # first: whoever reads the table may stop
    print(as_markdown(found))


def _read(given: str) -> tuple[str, Points]:
    name, sign, path = given.rpartition("=")
    if not sign or not name:
        raise UsageError(f"{given}: expected the name of a data set and a file, such as CIFAR-10=results.csv")
    if not (rows := read_rows(as_path(path))):
        raise UsageError(f"{path}: no results there; they come from python -m subp_dist.study.precision")
    return name, points_of(list(rows.values()))


def points_of(rows: Sequence[Row]) -> dict[tuple[float, str], Point]:
    """By pruning rate and data type, in the order of the rows."""
    cells: dict[tuple[float, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[float(row["prune_rate"]), row["dtype"]].append(row)
    return {key: Point.of(cell) for key, cell in cells.items()}


def as_markdown(found: Mapping[str, Points]) -> str:
    """A row per pruning rate and data type; latency and file are of the first data set, agreement the mean of all."""
    first = next(iter(found.values()))
    lines = [
        f"| blocks pruned | data type | {' | '.join(found)} | prediction as torch, % | latency, ms | file, MB |",
        "|---|---" + "|---" * len(found) + "|---|---|---|",
    ]
    for rate, dtype in sorted(first, key=lambda key: (key[0], list(_STYLES).index(key[1]))):
        here = [points.get((rate, dtype)) for points in found.values()]
        same = 100 * statistics.fmean(point.same for point in here if point)
        shown = " | ".join(str(point) if point else "" for point in here)
        one = first[rate, dtype]
        name = f"{100 * rate:g} %" if rate else "dense"
        lines.append(f"| {name} | {dtype} | {shown} | {same:.1f} | {one.latency:.3f} | {one.megabytes:.2f} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Points], path: Path) -> None:
    """A panel per data set: a line per data type from dense to the sparsest, with the rates and the spread of seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    latencies = next(iter(found.values()))
    figure, axes = pyplot.subplots(1, len(found), figsize=(1 + 3.6 * len(found), 3.6), sharex=True, squeeze=False)
    for axis, (name, points) in zip(axes[0], found.items(), strict=True):
        for dtype, (colour, marker) in _STYLES.items():
            line = sorted(
                (rate, point) for (rate, each), point in points.items() if each == dtype and (rate, dtype) in latencies
            )
            across = [latencies[rate, dtype].latency for rate, _ in line]
            means = [statistics.fmean(point.top1) for _, point in line]
            spreads = [statistics.stdev(point.top1) if len(point.top1) > 1 else 0.0 for _, point in line]
            axis.errorbar(
                across, means, spreads, color=colour, marker=marker, markersize=4, linewidth=1, capsize=2, label=dtype
            )
            for x, y, (rate, _) in zip(across, means, line, strict=True):
                axis.annotate(
                    f"{100 * rate:g} %" if rate else "dense", (x, y), (4, 4), textcoords="offset points", fontsize=6
                )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("latency, ms")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("top-1, %")
    axes[0][0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    cli()
