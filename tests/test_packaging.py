"""The source distribution: what is in a checkout is in it, whatever machine packs it.

Packed from a copy of the checkout, as setuptools also packs what it remembers from earlier. That it compiles and runs
with NumPy alone is in test_ext_alone.py.
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of a repository, not of a distribution.
NOT_PACKED = {".gitignore", ".ci/run", ".github/workflows/wheels.yml"}


@pytest.fixture
def files() -> list[str]:
    """The files of the checkout, as git lists them."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: nothing to compare the distribution with")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and name not in NOT_PACKED and (ROOT / name).is_file()]


def test_a_source_distribution_holds_the_checkout(files, tmp_path):
    pytest.importorskip("setuptools")
    checkout = tmp_path / "checkout"
    for name in files:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    pack = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", pack, str(tmp_path)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    assert set(files) <= packed
    made = {name for name in packed - set(files) if ".egg-info/" not in name}
    assert made <= {"PKG-INFO", "setup.cfg"}, "leftovers of builds"
