"""The source distribution holds what is in a checkout; a wheel holds both packages, and runs a file beside NumPy alone.

Packed from a copy of the checkout, as setuptools also packs what it remembers from earlier. The wheel takes
the extension that was built in the checkout; that it compiles elsewhere is in test_ext_alone.py.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import subp_ext

ROOT = Path(__file__).parents[1]
# Of a repository, not of a distribution.
NOT_PACKED = {".gitignore", ".ci/run", ".github/workflows/wheels.yml"}


@pytest.fixture
def files() -> list[str]:
    """The files of the checkout, as git lists them."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: nothing to compare the distribution with")
    # git refuses the checkout of another user unless it is told to trust it.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and name not in NOT_PACKED and (ROOT / name).is_file()]


@pytest.fixture
def checkout(files, tmp_path) -> Path:
    """A copy of the checkout."""
    for name in files:
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


def test_a_wheel_holds_both_packages_and_runs_a_file(checkout, tmp_path):
    pytest.importorskip("setuptools.command.bdist_wheel", reason="needs setuptools 70.1 or newer")
    built = checkout / "build/lib/subp_ext"
    built.mkdir(parents=True)
    shutil.copy2(import_module("subp_ext._kernels").__file__, built)
    with (checkout / "setup.cfg").open("a") as file:
        file.write("[build]\nbuild_lib = build/lib\n")
    for step in (["build_py"], ["bdist_wheel", "--skip-build"]):
        command = [sys.executable, "setup.py", "-q", *step]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.stat().st_size < 5 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        names = set(archive.namelist())
    sources = {path.relative_to(checkout).as_posix() for path in checkout.glob("subp_dist/**/*.py")}
    sources |= {path.relative_to(checkout / "ext").as_posix() for path in checkout.glob("ext/**/*.py")} - sources
    assert {name for name in sources if name.startswith("subp_dist/")} <= names
    assert {f"subp_ext/{name}" for name in sources if not name.startswith("subp_dist/")} <= names
    for library in Path(np.__file__).parent, Path(np.__file__).parent.with_name("numpy.libs"):
        if library.exists():
            (tmp_path / "installed" / library.name).symlink_to(library)
    where = (
        f"import sys; sys.path[:] = [p for p in sys.path if '-packages' not in p] + [{str(tmp_path / 'installed')!r}]"
    )
    run = f"{where}\nimport runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-I", "-S", "-c", run, ROOT / "tests/run_a_file.py", ROOT / "tests/files/version1.subp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(subp_ext.__version__)


def test_a_source_distribution_holds_the_checkout(files, checkout, tmp_path):
    pytest.importorskip("setuptools")
    pack = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", pack, str(tmp_path)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    assert set(files) <= packed
    made = {name for name in packed - set(files) if ".egg-info/" not in name}
    assert made <= {"PKG-INFO", "setup.cfg"}, "leftovers of builds"
