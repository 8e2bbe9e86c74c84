"""The checks for GPUs (tests/gpu) themselves, in small on a CPU, so that they work on the day that there is a GPU."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

PROVE = Path(__file__).parent / "gpu/prove.py"

# A machine with a GPU may lack these; Python imports such a file at its start.
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ffcv", "numba", "subp_ext", "mlxtend"):
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
"""


def test_all_checks_pass_in_small_on_a_cpu_with_torch_and_timm_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    out = tmp_path / "out.json"
    command = [sys.executable, str(PROVE), str(out), "--device", "cpu", "--tiny"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert out.is_file(), done.stderr[-3000:]
    code, document = done.returncode, json.loads(out.read_text())
    wrong = {name: r.get("traceback", r["status"]) for name, r in document["checks"].items() if r["status"] != "passed"}
    assert not wrong
    assert code == 0 and len(document["checks"]) == 12
    assert set(document["limits"]) == {"update_ms", "overhead"}


def test_a_check_that_does_not_end_is_told_and_leaves_the_others(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = runpy.run_path(str(PROVE))["run_apart"]("checks", "compiles_once", "cpu", tiny=True, limit=0.5)
    assert result["status"] == "failed" and "not done after" in result["error"]


def test_what_there_is_no_time_for_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [str(PROVE), str(out), "--device", "cpu", "--tiny", "--minutes", "0"])
    assert runpy.run_path(str(PROVE))["main"]() == 1
    document = json.loads(out.read_text())
    assert {result["status"] for result in document["checks"].values()} == {"not run"}
