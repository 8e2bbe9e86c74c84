"""Damaged and hostile files, in processes of their own with little memory; mutations.py says what is tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def mutate(cases: int, seed: int, folder: Path) -> dict[str, int]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, str(TESTS / "mutations.py"), str(cases), str(seed), str(folder)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(endings: dict[str, int], cases: int) -> None:
    assert sum(endings.values()) == cases
    # All endings are named ones, or the process would have failed; it has to have met the usual ones.
    assert min(endings.get("FormatError", 0), endings.get("result", 0)) > cases // 20, endings


def test_damaged_files_end_in_a_named_error_or_a_result(tmp_path):
    check(mutate(2500, 0, tmp_path), 2500)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(1, 11))
def test_100_000_damaged_files(tmp_path, seed):
    check(mutate(10_000, seed, tmp_path), 10_000)
