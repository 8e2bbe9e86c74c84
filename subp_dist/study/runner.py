"""Do the runs of a study that have not been done, each an ordinary training in a process of its own."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..checkpoint import check_writable, write_atomically
from ..cores import usable_cores
from ..errors import UsageError
from .grid import Grid, Run

COLUMNS = (
    *("name", "variant", "prune_rate", "block_size", "seed"),
    *("top1", "loss", "macs_kept", "macs_dense", "seconds", "command"),
)

_COMMAND = "command.txt"


def read_results(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a results file by name; none if there is no file yet.

    Raises:
        UsageError: it is another kind of file.
    """
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{path}: not the results of a study; expected the columns {', '.join(COLUMNS)}")
        return {row["name"]: row for row in reader}


def results_of(grid: Grid, rows: dict[str, dict[str, str]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows of a grid's runs, whatever paths they were done with; and names of rows that were done with other flags."""
    rows = {run.name: rows[run.name] for run in grid.runs if run.name in rows}
    others = [run.name for run in grid.runs if run.name in rows and not _is_of(run, rows[run.name]["command"])]
    return {name: row for name, row in rows.items() if name not in others}, others


def _is_of(run: Run, command: str) -> bool:
    """Whether a command has a run's flags and start, whatever its paths."""
    flags = shlex.join(["python", "-m", "subp_dist.train", *run.argv])
    start, paths = command[: len(flags)], f"{command[len(flags) :]} "
    began = f"/{run.after}/model.safetensors " in paths if run.after else "--initial-checkpoint" not in paths
    return start == flags and paths.startswith(" ") and began


class Runner:
    """Does the runs of a grid, several at a time, and writes a row for each as soon as it ends.

    Args:
        grid: the study.
        data: folder with ``train/`` and a validation split; the runs' ``--data-dir``.
        output: folder of the runs.
        results: the CSV file; what it holds with the same command is not done again.
        jobs: runs at a time; each gets an equal share of the cores.
        hours: no run is started after so long.
    """

    def __init__(self, grid: Grid, data: Path, output: Path, results: Path, jobs: int, hours: float) -> None:
        self.grid, self.data, self.output, self.path = grid, data, output, results
        self.jobs, self.deadline = jobs, time.monotonic() + 3600 * hours
        self.results = read_results(results)
        self.failed: list[str] = []
        self._lock = threading.Lock()
        self._futures: dict[str, Future] = {}
        self._processes: set[subprocess.Popen] = set()
        self._stopping = False

    def command(self, run: Run) -> list[str]:
        """The command line of a run, without the interpreter."""
        argv = ["-m", "subp_dist.train", *run.argv]
        if run.after:
            argv += ["--initial-checkpoint", str(self.output / run.after / "model.safetensors")]
        return [*argv, "--data-dir", str(self.data), "--output", str(self.output), "--experiment", run.name]

    def text(self, run: Run) -> str:
        """The command as a user would type it."""
        return shlex.join(["python", *self.command(run)])

    def pending(self) -> list[Run]:
        """Runs without a row, with that of another command, or that start from such a run; and what they start from."""
        pending = self._outdated()
        for run in reversed(self.grid.runs):
            if run.name in pending and run.after and not self._has_weights(run.after):
                pending.add(run.after)
        return [run for run in self.grid.runs if run.name in pending]

    def _outdated(self) -> set[str]:
        outdated: set[str] = set()
        for run in self.grid.runs:
            if run.after in outdated or self.results.get(run.name, {}).get("command") != self.text(run):
                outdated.add(run.name)
        return outdated

    def _has_weights(self, name: str) -> bool:
        folder = self.output / name
        return (folder / "model.safetensors").exists() and _read(folder / _COMMAND) == self._started_by(name)

    def _started_by(self, name: str | None) -> str:
        """What made the weights of a run: its command, and those of the runs before it."""
        run = next((run for run in self.grid.runs if run.name == name), None)
        return f"{self.text(run)}\n{self._started_by(run.after)}" if run else ""

    def work(self) -> None:
        """Do what is pending; on Ctrl-C or SIGTERM the runs are stopped, and go on from there another time.

        Raises:
            UsageError: the results cannot be written, or another study is at work in the folder.
        """
        check_writable(self.path)
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / ".lock").open("w") as self._lock_file, ThreadPoolExecutor(self.jobs) as pool:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another study is at work in {self.output}, or runs that one has left") from None
            pending = self.pending()
            # What is not true of this grid must not stand beside what is.
            for name in self._outdated():
                self.results.pop(name, None)
            for run in pending:
                self._futures[run.name] = pool.submit(self._do, run)
            try:
                for future in self._futures.values():
                    future.result()
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _do(self, run: Run) -> None:
        if run.after in self._futures:
            self._futures[run.after].result()
        if self._stopping or time.monotonic() > self.deadline:
            return
        if run.after in self.failed:
            self._fail(run, f"{run.after}, which it starts from, failed")
            return
        if run.after and not self._has_weights(run.after):
            return  # the time was up
        started = time.monotonic()
        folder = self.output / run.name
        if folder.exists() and _read(folder / _COMMAND) != self._started_by(run.name):
            if not (folder / _COMMAND).exists():
                self._fail(run, f"{folder} is there already, and not of a study; choose another --output")
                return
            shutil.rmtree(folder)  # going on with it would give the results of another command
        folder.mkdir(exist_ok=True)
        (folder / _COMMAND).write_text(self._started_by(run.name))
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, usable_cores() // self.jobs))}
        with (folder / "log.txt").open("a") as log:
            with self._lock:
                if self._stopping:
                    return
                # A run holds the folder's lock as long as it lives, should this process be killed.
                process = subprocess.Popen(
                    [sys.executable, *self.command(run), "--resume", "auto"], env=environment,
                    stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    pass_fds=[self._lock_file.fileno()],
                )  # fmt: skip
                self._processes.add(process)
            code = process.wait()
            self._processes.discard(process)
        if self._stopping:
            return
        if code:
            self._fail(run, f"exit code {code}; see {folder / 'log.txt'}")
            return
        self._record(run, folder, time.monotonic() - started)

    def _record(self, run: Run, folder: Path, seconds: float) -> None:
        with (folder / "summary.csv").open(newline="") as file:
            # The last epoch, not the best one: that would be chosen on the images it is judged by.
            last = list(csv.DictReader(file))[-1]
        macs = json.loads((folder / "report.json").read_text())["macs"]
        top1, loss = f"{float(last['val_top1']):.2f}", f"{float(last['val_loss']):.4f}"
        values = (
            *(run.name, run.variant, f"{run.cell[0]:g}", run.cell[1], run.seed),
            *(top1, loss, int(macs["kept"]), int(macs["dense"]), f"{seconds:.0f}", self.text(run)),
        )
        row = dict(zip(COLUMNS, map(str, values), strict=True))
        with self._lock:
            self.results[run.name] = row
            order = {name: index for index, name in enumerate(r.name for r in self.grid.runs)}
            rows = sorted(self.results.values(), key=lambda r: order.get(r["name"], len(order)))
            try:
                write_atomically(self.path, lambda path: _write_rows(path, rows))
            except OSError as error:
                raise UsageError(f"{error}; {run.name} is done, and its row is made when the study goes on") from error
            done = sum(r.name in self.results for r in self.grid.runs)
        print(f"{run.name}: top-1 {top1} % in {seconds:.0f} s ({done} of {len(self.grid.runs)} runs)", flush=True)

    def _fail(self, run: Run, why: str) -> None:
        with self._lock:
            self.failed.append(run.name)
        print(f"{run.name}: failed: {why}", file=sys.stderr, flush=True)

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None
