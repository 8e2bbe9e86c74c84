"""Do the runs of a study that have not been done, each an ordinary training in a process of its own."""

from __future__ import annotations

import csv
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

from ..checkpoint import write_atomically
from ..errors import UsageError
from .grid import Grid, Run

COLUMNS = (
    *("name", "variant", "prune_rate", "block_size", "seed"),
    *("top1", "loss", "macs_kept", "macs_dense", "seconds", "command"),
)


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
        """Runs that have no row, or the row of another command."""
        return [run for run in self.grid.runs if self.results.get(run.name, {}).get("command") != self.text(run)]

    def work(self) -> None:
        """Do what is pending; on Ctrl-C the runs are stopped, and go on from their last epoch another time."""
        with ThreadPoolExecutor(self.jobs) as pool:
            for run in self.pending():
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
        started = time.monotonic()
        folder = self.output / run.name
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.jobs))}
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *self.command(run), "--resume", "auto"],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
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
        values = (
            *(run.name, run.variant, f"{run.cell[0]:g}", run.cell[1], run.seed),
            *(
                f"{float(last['val_top1']):.2f}",
                f"{float(last['val_loss']):.4f}",
                int(macs["kept"]),
                int(macs["dense"]),
            ),
            *(f"{seconds:.0f}", self.text(run)),
        )
        row = dict(zip(COLUMNS, map(str, values), strict=True))
        with self._lock:
            self.results[run.name] = row
            order = {name: index for index, name in enumerate(r.name for r in self.grid.runs)}
            rows = sorted(self.results.values(), key=lambda r: order.get(r["name"], len(order)))
            write_atomically(self.path, lambda path: _write_rows(path, rows))
        print(f"{run.name}: top-1 {row['top1']} % in {row['seconds']} s", flush=True)

    def _fail(self, run: Run, why: str) -> None:
        with self._lock:
            self.failed.append(run.name)
        print(f"{run.name}: failed: {why}", file=sys.stderr, flush=True)

    def _stop(self) -> None:
        self._stopping = True
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def subset(data: Path, folder: Path, images_per_class: int | None, train_split: str = "train") -> Path:
    """A folder like ``data`` with the first images of each training class, as links; validation is whole.

    Args:
        data: folder with ``train/`` and other splits of class folders.
        folder: where the links go; made anew if it has another number of images.
        images_per_class: training images of each class; None: ``data`` itself is returned.

    Raises:
        UsageError: there is no such data, or a class has fewer images.
    """
    classes = sorted(path for path in (data / train_split).glob("*") if path.is_dir())
    if not classes:
        raise UsageError(f"--data-dir {data}: expected {train_split}/ with a folder per class in it")
    if images_per_class is None:
        return data
    chosen = {path: sorted(p for p in path.iterdir() if p.is_file())[:images_per_class] for path in classes}
    for path, images in chosen.items():
        if len(images) < images_per_class:
            raise UsageError(f"{path} has {len(images)} images; the study asks for {images_per_class} of each class")
    made = folder / train_split
    if len(list(made.glob("*/*"))) != sum(map(len, chosen.values())):
        temporary = folder.with_name(f".{folder.name}.tmp")
        for old in (temporary, folder):
            if old.exists():
                shutil.rmtree(old)
        for path, images in chosen.items():
            target = temporary / train_split / path.name
            target.mkdir(parents=True)
            for image in images:
                (target / image.name).symlink_to(image.resolve())
        for split in data.iterdir():
            if split.name != train_split:
                (temporary / split.name).symlink_to(split.resolve())
        temporary.replace(folder)
    return folder
