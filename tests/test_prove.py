"""The checks for GPUs (tests/gpu) themselves, in small on a CPU, so that they work on the day that there is a GPU."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

PROVE = Path(__file__).parent / "gpu/prove.py"


def prove(out: Path, *flags: str, device: str = "cpu") -> tuple[int, dict]:
    command = [sys.executable, str(PROVE), str(out), "--device", device, *flags]
    # Neither installed nor found by other ways than its own.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
    return done.returncode, json.loads(out.read_text())


def test_all_checks_pass_in_small_on_a_cpu(tmp_path):
    code, document = prove(tmp_path / "out.json", "--tiny")
    wrong = {name: r.get("traceback", r["status"]) for name, r in document["checks"].items() if r["status"] != "passed"}
    assert not wrong
    assert code == 0 and len(document["checks"]) == 12
    assert set(document["limits"]) == {"update_ms", "overhead"}


def test_a_check_that_does_not_end_is_told_and_leaves_the_others(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = runpy.run_path(str(PROVE))["run_apart"]("checks", "compiles_once", "cpu", tiny=True, limit=0.5)
    assert result["status"] == "failed" and "not done after" in result["error"]


def test_what_there_is_no_time_for_is_told(tmp_path):
    code, document = prove(tmp_path / "out.json", "--tiny", "--minutes", "0")
    assert code == 1
    assert {result["status"] for result in document["checks"].values()} == {"not run"}
