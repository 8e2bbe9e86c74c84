"""The runtime in an environment with NumPy alone: a fresh directory of packages, and a fresh virtual environment.

The fast test gives an isolated interpreter nothing but NumPy and the installed files of `subp_ext`; the slow one
makes a virtual environment and installs with pip, without dependencies, which needs a compiler and the package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_ext_planner import dense_block

import subp_ext

ROOT = Path(__file__).parents[1]
USE = """
import sys
started = set(sys.modules)  # an environment may load modules of its own before anything is asked for
import json, numpy, subp_ext, subp_ext.bench.__main__
session = subp_ext.Session(sys.argv[1], threads=2)
result = session.run(numpy.ones((2, 4, 8, 8), numpy.float32))
known = {"numpy", "subp_ext"}
loaded = [(n.partition(".")[0], m) for n, m in list(sys.modules.items()) if n not in started]
third = {n for n, m in loaded if "-packages" in (getattr(m, "__file__", "") or "")}
assert subp_ext.bench.__main__.main([sys.argv[1], "--seconds", "0.01", "--image-size", "8", "--json", sys.argv[2]]) == 0
print(json.dumps([result.tolist(), sorted(third - known)]))
"""


@pytest.fixture
def model(tmp_path):
    subp_ext.save(tmp_path / "m.subp", dense_block())
    return tmp_path / "m.subp"


def check(command: list[str], model: Path, **options) -> None:
    report = model.with_suffix(".json")
    done = subprocess.run([*command, "-c", USE, str(model), str(report)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    result, others = json.loads(done.stdout.splitlines()[-1])
    want = subp_ext.Session(model).run(np.ones((2, 4, 8, 8), np.float32))
    assert np.array_equal(np.array(result, np.float32), want) and not others
    assert json.loads(report.read_text())["input_shapes"] == [[1, 4, 8, 8]]


def test_numpy_is_enough(model, tmp_path):
    packages = tmp_path / "only-packages"
    packages.mkdir()
    numpy = Path(np.__file__).parent
    for source in (numpy, numpy.with_name("numpy.libs"), Path(subp_ext.__file__).parent):
        if source.exists():  # NumPy's libraries lie beside it or inside it
            name = "subp_ext" if source == Path(subp_ext.__file__).parent else source.name
            (packages / name).symlink_to(source.resolve())
    start = f"import sys; sys.path[:] = [p for p in sys.path if '-packages' not in p] + [{str(packages)!r}]\n"
    report = model.with_suffix(".json")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + USE, str(model), str(report)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result, others = json.loads(done.stdout.splitlines()[-1])
    want = subp_ext.Session(model).run(np.ones((2, 4, 8, 8), np.float32))
    assert np.array_equal(np.array(result, np.float32), want) and not others


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_environment_with_numpy_alone(model, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    for arguments in (["numpy"], ["--no-deps", str(ROOT)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
    check([python, "-I"], model, cwd=tmp_path)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    assert {entry["name"] for entry in json.loads(listed.stdout)} <= {"numpy", "pip", "setuptools", "subp-dist"}


def test_training_without_torch_names_the_extra(tmp_path):
    packages = tmp_path / "only-packages"
    packages.mkdir()
    numpy = Path(np.__file__).parent
    for name, source in (("subp_dist", ROOT / "subp_dist"), ("subp_ext", ROOT / "ext"), ("numpy", numpy)):
        (packages / name).symlink_to(source)
    if (libraries := numpy.with_name("numpy.libs")).exists():
        (packages / "numpy.libs").symlink_to(libraries)
    start = f"import sys; sys.path[:] = [p for p in sys.path if '-packages' not in p] + [{str(packages)!r}]\n"
    command = [sys.executable, "-I", "-S", "-c", start + "import subp_ext, subp_dist"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "subp_dist needs torch, which is not installed: pip install 'subp-dist[train]'" in done.stderr
