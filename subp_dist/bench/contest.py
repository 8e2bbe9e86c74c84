"""Engines against each other on one machine: one process each, one at a time, in turns.

Each engine keeps the thread pool and the waiting policy that it ships with. What would be unfair is a pool that still
spins while another engine has its turn, so the process of an engine whose turn is over is stopped (SIGSTOP). Turns are
short and many: whatever else the machine does meets every engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from subp_ext import affinity

from ..errors import UsageError

_WORKER = Path(__file__).with_name("worker.py")
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SUBP_NUM_THREADS")


@dataclass
class Contender:
    """One engine on one file, as a process that runs in its turns only.

    Attributes:
        name: of this contender in the results.
        times: ms of every measured run.
        load_ms: from the file in memory to a network ready to run, imports not counted.
        memory_mb: peak resident memory of the process, Python and the engine's libraries included.
        output: what it computes for the images.
        layers: how many convolutions and matrix products it runs in each precision.
    """

    name: str
    engine: str
    path: Path
    times: list[float] = field(default_factory=list)
    load_ms: float = 0.0
    memory_mb: float = 0.0
    version: str = ""
    output: np.ndarray | None = None
    layers: dict[str, int] = field(default_factory=dict)

    def start(self, images: Path, threads: int, cpus: Sequence[int], folder: Path) -> None:
        """Load the file in a new process, run it once for its output, and stop.

        Raises:
            UsageError: the engine failed; the message has its last words.
        """
        pools = dict.fromkeys(_POOLS, str(threads))
        self._log = folder / f"{self.name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), self.engine, str(self.path), str(images), str(threads),
                 ",".join(map(str, cpus))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | pools | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )  # fmt: skip
        ready = self._answer()
        self.load_ms, self.version = ready["load_ms"], ready["version"]
        result = folder / f"{self.name}.npy"
        self._ask(f"result {result}")
        self.output = np.load(result)
        self._process.send_signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Run for a while and stop again."""
        self._process.send_signal(signal.SIGCONT)
        self.times += self._ask(f"turn {seconds}")["ms"]
        self._process.send_signal(signal.SIGSTOP)

    def finish(self) -> None:
        """Ask for the peak of memory, then for what was run; the process goes with ``close``."""
        self._process.send_signal(signal.SIGCONT)
        self.memory_mb = self._ask("memory")["peak_mb"]
        self.layers = self._ask("layers")

    def close(self) -> None:
        """End the process, whatever state it is in."""
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait()

    def summary(self) -> dict:
        """What goes into the JSON document."""
        return {
            "best_ms": min(self.times),
            "median_ms": statistics.median(self.times),
            "load_ms": self.load_ms,
            "memory_mb": self.memory_mb,
            "runs": len(self.times),
            "version": self.version,
            "layers": self.layers,
        }

    def _ask(self, command: str) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it has ended: the lack of an answer says why
            print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            words = self._log.read_text().strip().splitlines() or [f"exit code {self._process.wait()}"]
            raise UsageError(f"{self.name} failed on {self.path.name}: {words[-1]}")
        return json.loads(line)


def compete(contenders: Sequence[Contender], images: Path, threads: int, rounds: int, seconds: float) -> None:
    """Measure all contenders: after this their times, memory, outputs and layers are set.

    Args:
        contenders: who takes turns, in this order.
        images: ``.npy`` of the batch that everyone runs.
        threads: of every engine, which is also bound to that many CPUs.
        rounds: turns of each.
        seconds: length of a turn.

    Raises:
        UsageError: an engine failed.
    """
    cpus = distinct_cores(threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for contender in tqdm(contenders, desc="load", leave=False, delay=3):
                contender.start(images, threads, cpus, Path(folder))
            for _ in tqdm(range(rounds), desc="rounds", leave=False, delay=3):
                for contender in contenders:
                    contender.turn(seconds)
            for contender in contenders:
                contender.finish()
        finally:
            for contender in contenders:
                contender.close()


def distinct_cores(count: int) -> list[int]:
    """CPUs to bind ``count`` threads to: on different cores as long as there are some, the first ones last.

    Linux lets CPU 0 do the housekeeping.

    Raises:
        UsageError: this process may not use as many CPUs.
    """
    usable = sorted(affinity.usable(), reverse=True)
    if count > len(usable):
        raise UsageError(f"--threads {count}: this process may use {len(usable)} CPUs")
    first_of_core: dict[str, int] = {}
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first_of_core.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    cores = list(first_of_core.values())
    return (cores + [cpu for cpu in usable if cpu not in cores])[:count]
