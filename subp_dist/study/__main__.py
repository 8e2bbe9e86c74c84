"""Compare variants of the method over seeds: ``python -m subp_dist.study GRID --data-dir DIR --results FILE.csv``.

Runs that the results hold already are not done again, so the same command goes on after an interruption, and prints
the table at the end. ``--table-only`` makes table and plot from the results alone.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from ..checkpoint import check_writable
from ..cores import usable_cores
from ..errors import EXIT_STOPPED, UsageError, report_usage_errors
from ..flag_values import as_path
from .data import prepare
from .grid import Grid
from .runner import Runner, read_results, results_of
from .table import as_markdown, plot, summarise


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m subp_dist.study", description=__doc__.split("\n\n")[0])
    parser.add_argument("grid", type=as_path, metavar="GRID", help="YAML file of variants, cells and seeds")
    parser.add_argument("--data-dir", type=as_path, help="folder with train/ and a validation split of class folders")
    parser.add_argument("--results", type=as_path, required=True, metavar="CSV", help="where the rows go")
    parser.add_argument("--output", type=as_path, default=Path("output/study"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="runs at a time")
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--list", action="store_true", help="print the commands that are left to do, and stop")
    parser.add_argument("--table-only", action="store_true", help="do no runs")
    parser.add_argument("--plot", type=as_path, metavar="FILE", help="also draw the results: .png or .svg")
    args = parser.parse_args()
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {args.plot}: expected the name of a .png or .svg file")
    for path in filter(None, (args.results, args.plot)):
        check_writable(path)
    grid = Grid.read(args.grid)
    runner = None if args.table_only else _runner(grid, args.data_dir, args.output, args.results, args.jobs, args.hours)
    if args.list:
        for run in runner.pending() if runner else ():
            print(runner.text(run))
        return
    failed = _work(runner) if runner else []
    results, others = results_of(grid, read_results(args.results))
    if others:
        print(f"left out: {len(others)} rows of other flags than the study's: {', '.join(others)}", file=sys.stderr)
    if results:
        cells = summarise(results, list(grid.labels))
        if args.plot:
            plot(cells, grid.labels, args.plot)
        print(f"{as_markdown(cells, grid.labels)}\n\n{len(results)} of {len(grid.runs)} runs")
    elif not failed:
        raise UsageError(f"{args.results}: no results of {args.grid} yet")
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


def _runner(grid: Grid, data_dir: Path | None, output: Path, results: Path, jobs: int, hours: float) -> Runner:
    if data_dir is None:
        raise UsageError("no data given: set --data-dir to a folder with train/ and a validation split in it")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: expected 1 or more")
    return Runner(grid, prepare(data_dir, output / "data", grid), output, results, jobs, hours)


def _work(runner: Runner) -> list[str]:
    """Do the runs that are left; returns the names of those that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    print(f"{len(runner.pending())} of {len(runner.grid.runs)} runs to do, {runner.jobs} at a time", flush=True)
    runner.work()
    return runner.failed


if __name__ == "__main__":
    cli()
