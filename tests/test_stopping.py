"""A rank ends with its launcher, even if that is killed and can tell nobody. SIGTERM is in test_faults.py."""

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

from subp_dist.errors import EXIT_LOST_RANK
from subp_dist.stopping import LAUNCHER

ROOT = Path(__file__).resolve().parent.parent
RANK = [
    *(sys.executable, "-c"),
    "import time; from subp_dist.stopping import end_with_launcher; end_with_launcher(); print('ready', flush=True); "
    "time.sleep(500)",
]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


def test_a_rank_is_killed_with_its_launcher():
    launcher = f"""
        import subprocess, sys
        with subprocess.Popen({RANK!r}, stdout=subprocess.PIPE, text=True) as rank:
            print(rank.pid, rank.stdout.readline().strip(), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(launcher)],
        env=environment(TORCHELASTIC_RUN_ID="test"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid, ready = process.stdout.readline().split()
    assert ready == "ready"
    rank = os.pidfd_open(int(pid))
    process.kill()
    process.communicate()
    ended, *_ = select.select([rank], [], [], 300)
    os.close(rank)
    assert ended


def test_a_rank_whose_launcher_is_gone_already_does_not_start():
    done = subprocess.run(RANK, env=environment(TORCHELASTIC_RUN_ID="test", **{LAUNCHER: "1"}), check=False)
    assert done.returncode == EXIT_LOST_RANK


def test_a_process_that_nobody_launched_is_left_alone():
    code = "from subp_dist.stopping import end_with_launcher; end_with_launcher()"
    subprocess.run([sys.executable, "-c", code], env=environment(**{LAUNCHER: "1"}), check=True)
