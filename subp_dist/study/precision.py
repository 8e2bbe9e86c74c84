"""What low precision costs: ``python -m subp_dist.study.precision GRID --output FOLDER --results FILE.csv``.

Exports the trained runs of a study in several data types, as ``python -m subp_dist.export`` does by default, runs each
file on all validation images, and prints the table. A run whose last epochs had fake quantization is exported in int8
alone, and compared with the integers in torch. What the results hold already is not done again; ``--time-only``
times the files of such rows once more, for results that were made while the machine was busy; ``--table-only`` makes
the table from the results alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import subp_ext

from .. import validate
from ..checkpoint import check_writable, write_atomically
from ..data import create_data
from ..errors import UsageError, report_usage_errors
from ..export import Network
from ..flag_values import as_path
from ..qat.start import restored
from .grid import Grid, Run

COLUMNS = (
    *("name", "variant", "prune_rate", "block_size", "seed", "dtype"),
    *("top1", "same", "images", "macs_share", "bytes", "best_ms", "command"),
)

Row = dict[str, str]


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m subp_dist.study.precision", description=__doc__.split("\n\n")[0])
    parser.add_argument("grid", type=as_path, metavar="GRID", help="YAML file of the study")
    parser.add_argument("--output", type=as_path, default=Path("output/study"), help="folder of its runs")
    parser.add_argument("--results", type=as_path, required=True, metavar="CSV", help="where the rows go")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "int8"], metavar="DTYPE",
        help="as the export takes them; float32 int8")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of the runtime; 1")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--time-only", action="store_true", help="time the files of the results again, and do no others")
    only.add_argument("--table-only", action="store_true", help="export and run nothing")
    args = parser.parse_args()
    if args.threads < 1:
        raise UsageError(f"--threads {args.threads}: expected 1 or more")
    check_writable(args.results)
    grid, rows = Grid.read(args.grid), read_rows(args.results)
    if args.time_only:
        _time_again(args.output, args.results, rows, args.threads)
    elif not args.table_only:
        _measure_missing(grid, args.output, args.results, rows, args.dtypes, args.threads)
    known = {run.name for run in grid.runs}
    if not (shown := [row for row in rows.values() if row["name"] in known]):
        raise UsageError(f"{args.results}: no results of {args.grid} yet; train with python -m subp_dist.study")
    print(as_markdown(shown, grid.labels))


def _measure_missing(
    grid: Grid, output: Path, results: Path, rows: dict[tuple[str, str], Row], dtypes: Sequence[str], threads: int
) -> None:
    """Adds the rows that the results lack, and writes them after each run."""
    order = {run.name: place for place, run in enumerate(grid.runs)}
    for run in grid.runs:
        quantized = any(flag == "--qat-epochs" and int(value) > 0 for flag, value in itertools.pairwise(run.argv))
        wanted = [dtype for dtype in dtypes if dtype == "int8" or not quantized]
        missing = [dtype for dtype in wanted if (run.name, dtype) not in rows]
        if not missing:
            continue
        if not (output / run.name / "report.json").exists():
            print(f"{run.name}: not trained yet", file=sys.stderr)
            continue
        rows |= {(row["name"], row["dtype"]): row for row in measure(run, output / run.name, missing, threads)}
        found = sorted(rows.values(), key=lambda row: (order.get(row["name"], len(order)), row["dtype"]))
        write_atomically(results, lambda path, found=found: write_rows(path, found))


def _time_again(output: Path, results: Path, rows: Mapping[tuple[str, str], Row], threads: int) -> None:
    """Times the files of all rows, those of a run in turns, and writes their latencies.

    Raises:
        UsageError: a file is not there any more.
    """
    paths = {key: file_of(output / name, dtype) for key in rows for name, dtype in [key]}
    if gone := [str(path) for path in paths.values() if not path.exists()]:
        raise UsageError(f"{', '.join(gone)}: not there; remove the rows from {results} to export them again")
    for name in dict.fromkeys(name for name, _ in rows):
        sessions = {key: subp_ext.Session(path, threads=threads) for key, path in paths.items() if key[0] == name}
        for key, best in best_times(sessions).items():
            rows[key]["best_ms"] = f"{best:.3f}"
    write_atomically(results, lambda path: write_rows(path, list(rows.values())))


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """Rows by name and data type; none if there is no file yet.

    Raises:
        UsageError: it is another kind of file.
    """
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{path}: not such results; expected the columns {', '.join(COLUMNS)}")
        return {(row["name"], row["dtype"]): row for row in reader}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes the results file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(run: Run, folder: Path, dtypes: Sequence[str], threads: int) -> list[Row]:
    """Exports a run in each data type, from its last epoch, and runs the files on the validation images.

    Raises:
        UsageError: an export failed.
    """
    # The best epoch would be chosen on the images it is judged by.
    network = Network.open(folder / "last.pt")
    files = {dtype: file_of(folder, dtype) for dtype in dtypes}
    commands = {dtype: _export(folder / "last.pt", path, dtype) for dtype, path in files.items()}
    sessions = {dtype: subp_ext.Session(path, threads=threads) for dtype, path in files.items()}
    config = network.config
    assert config is not None
    pretrained = getattr(network.model, "pretrained_cfg", {})
    data = create_data(config.data, config.augmentation, pretrained, config.optimization.all_epochs)
    model = network.model if network.quantized is None else restored(network.quantized).eval()
    trained = validate.Run(folder, config, data, model, {})
    in_torch, labels, *found = validate.predict(trained, list(sessions.values()))
    image = np.zeros((1, *network.input_size), np.float32)
    best = best_times(sessions)
    about = (run.name, run.variant, f"{run.cell[0]:g}", run.cell[1], run.seed)
    rows = []
    for dtype, logits in zip(sessions, found, strict=True):
        same = int((logits.argmax(1) == in_torch.argmax(1)).sum())
        share = sessions[dtype].report(image).product_shares[dtype]
        values = (
            *(*about, dtype, f"{validate.top1(logits, labels):.2f}", same, len(labels), f"{share:.3f}"),
            *(files[dtype].stat().st_size, f"{best[dtype]:.3f}", commands[dtype]),
        )
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
        print(f"{run.name}: {dtype}: top-1 {rows[-1]['top1']} %, as torch on {same} of {len(labels)}", flush=True)
    return rows


def file_of(folder: Path, dtype: str) -> Path:
    """Where a run's export in a data type goes."""
    return folder / f"last-{dtype}.subp"


def best_times(sessions: Mapping[Any, subp_ext.Session]) -> dict[Any, float]:
    """The best of many runs of each on one image, in turns, in milliseconds."""

    def runner(session: subp_ext.Session) -> Callable[[], object]:
        image = np.zeros([1, *session.metadata["input_size"]], np.float32)
        return lambda: session.run(image)

    runners = {key: runner(session) for key, session in sessions.items()}
    return {key: min(times) for key, times in validate.time_in_turns(runners, seconds=3.0).items()}


def _export(checkpoint: Path, path: Path, dtype: str) -> str:
    """Writes a file; returns the command as a user would type it."""
    argv = ["-m", "subp_dist.export", str(checkpoint), "--dtype", dtype, "--output", str(path)]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{shlex.join(['python', *argv])}: {done.stderr.strip()}")
    return shlex.join(["python", *argv])


def as_markdown(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The table: for each variant, rate and data type means over seeds; differences are those of each seed."""
    float32 = {row["name"]: float(row["top1"]) for row in rows if row["dtype"] == "float32"}
    cells: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["variant"], row["prune_rate"], row["block_size"], row["dtype"]].append(row)
    lines = [
        "| network | data type | top-1, % (mean ± s.d.) | to float32, points (worst seed) | predictions of torch, % "
        "| file, MB | latency, ms | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (variant, rate, block, dtype), cell in cells.items():
        name = labels.get(variant, variant) + (f", {100 * float(rate):g} % of 1x{block}" if float(rate) else "")
        found = [float(row["top1"]) for row in cell]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        lost = [float(row["top1"]) - float32[row["name"]] for row in cell if row["name"] in float32]
        to_float = f"{statistics.fmean(lost):+.2f} ({min(lost):+.2f})" if lost and dtype != "float32" else ""
        same = 100 * statistics.fmean(int(row["same"]) / int(row["images"]) for row in cell)
        size = statistics.fmean(int(row["bytes"]) for row in cell) / 1e6
        fastest = min(float(row["best_ms"]) for row in cell)
        lines.append(
            f"| {name} | {dtype} | {statistics.fmean(found):.2f}{spread} | {to_float} | {same:.2f} | {size:.2f} "
            f"| {fastest:.3f} | {len(cell)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli()
