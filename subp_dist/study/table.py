"""The results of a study as a table and a plot: mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import write_atomically


@dataclass(frozen=True)
class Cell:
    """Top-1 (percent) of the seeds of one variant at one rate and block size."""

    variant: str
    prune_rate: float
    block_size: int
    top1: tuple[float, ...]
    macs_kept: int

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0


def summarise(results: dict[str, dict[str, str]], variants: list[str]) -> list[Cell]:
    """One cell for each variant, rate and block size, in the order of ``variants``."""
    groups = defaultdict(list)
    for row in results.values():
        groups[row["variant"], float(row["prune_rate"]), int(row["block_size"])].append(row)
    cells = [
        Cell(*key, tuple(float(row["top1"]) for row in rows), int(rows[0]["macs_kept"])) for key, rows in groups.items()
    ]
    order = {variant: index for index, variant in enumerate(variants)}
    return sorted(cells, key=lambda c: (c.prune_rate, c.block_size, order.get(c.variant, len(order))))


def as_markdown(cells: list[Cell], labels: dict[str, str]) -> str:
    """A table for the README; differences are to the dense network."""
    dense = next((cell for cell in cells if cell.variant == "dense"), None)
    lines = [
        "| blocks pruned | block | variant | top-1, % (mean ± s.d.) | seeds | to dense | MACs kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        block = f"1x{cell.block_size}" if cell.prune_rate else "-"
        spread = f" ± {cell.spread:.1f}" if len(cell.top1) > 1 else ""
        to_dense = f"{cell.mean - dense.mean:+.1f}" if dense and cell is not dense else ""
        lines.append(
            f"| {100 * cell.prune_rate:g} % | {block} | {labels.get(cell.variant, cell.variant)} | "
            f"{cell.mean:.1f}{spread} | {len(cell.top1)} | {to_dense} | {cell.macs_kept / 1e6:.1f} M |"
        )
    return "\n".join(lines)


def plot(cells: list[Cell], labels: dict[str, str], path: Path) -> None:
    """A panel per rate at the most frequent block size: each seed a dot, the mean a bar, dense a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [cell.block_size for cell in cells if cell.prune_rate]
    common = statistics.mode(sizes) if sizes else 16
    rates = sorted({cell.prune_rate for cell in cells if cell.prune_rate})
    dense = next((cell for cell in cells if cell.variant == "dense"), None)
    shown = [cell for cell in cells if cell.prune_rate and cell.block_size == common]
    variants = list(dict.fromkeys(cell.variant for cell in shown))[::-1]
    width, height = 4 + 3 * max(1, len(rates)), 1.2 + 0.24 * len(variants)
    figure, axes = pyplot.subplots(
        1, max(1, len(rates)), figsize=(width, height), sharex=True, sharey=True, squeeze=False
    )
    for axis, rate in zip(axes[0], rates, strict=False):
        for cell in shown:
            if cell.prune_rate == rate:
                place = variants.index(cell.variant)
                axis.plot([cell.mean] * 2, [place - 0.3, place + 0.3], color="tab:red")
                axis.plot(cell.top1, [place] * len(cell.top1), "o", color="tab:blue", alpha=0.6)
        axis.set_yticks(range(len(variants)), [labels.get(variant, variant) for variant in variants])
        axis.grid(axis="x", alpha=0.3)
        if dense:
            axis.axvline(dense.mean, color="black", linestyle="--", linewidth=1)
        axis.set_title(f"{100 * rate:g} % of 1x{common} blocks (dashed: dense)", fontsize=9)
        axis.set_xlabel("top-1, %")
    figure.tight_layout()
    save(figure, path)


def save(figure, path: Path) -> None:
    """Writes a figure and closes it: small, and the same file from the same results."""
    from matplotlib import pyplot

    metadata = {"Date": None} if path.suffix == ".svg" else None
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], metadata=metadata))
    pyplot.close(figure)
