"""Two "machines": network namespaces with a virtual link, each with a launcher of its own, one rank each.

A machine is killed with everything on it and started again, and the link is cut and brought back. The runs must end
like one that was left alone. Folders are shared, as on a cluster, or each machine's own. Needs root and `ip`; skipped
where namespaces are not permitted.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import assert_same_end, finish, start

# The machine may be slow, or stop for a while.
pytestmark = pytest.mark.timeout(1800)

HOSTS = {"a": "10.213.77.1", "b": "10.213.77.2"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespaces():
    """Names of two namespaces, ``a`` and ``b``, joined by a link; ``b`` comes second in every rendezvous."""
    if not shutil.which("ip"):
        pytest.skip("two machines: no command 'ip' (package iproute2)")
    names = {host: f"subp{os.getpid()}{host}" for host in HOSTS}
    try:
        for name in names.values():
            ip("netns", "add", name)
        ip("link", "add", f"{names['a']}0", "type", "veth", "peer", "name", f"{names['b']}0")
        for host, name in names.items():
            ip("link", "set", f"{name}0", "netns", name)
            ip("-n", name, "addr", "add", f"{HOSTS[host]}/24", "dev", f"{name}0")
            ip("-n", name, "link", "set", f"{name}0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two machines: network namespaces are not permitted here: {error.stderr.strip()}")
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class Machines:
    """Starts the same command on both machines, and kills them."""

    def __init__(self, names: dict[str, str], output: Path, own_disks: bool = False) -> None:
        self.names = names
        self.outputs = {host: output / host if own_disks else output for host in names}
        self.processes = {}

    def start(self, host: str, **extra: str) -> None:
        address, name = HOSTS[host], self.names[host]
        torchrun = (
            *("--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=test"),
            *(f"--rdzv-endpoint={HOSTS['a']}:29400", f"--local-addr={address}"),
            *("--rdzv-conf=join_timeout=240,read_timeout=5",),
        )
        self.processes[host] = start(
            self.outputs[host], "--recovery-interval", "3", "--timeout", "0.25", torchrun=torchrun,
            prefix=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=f"{name}0", **extra,
        )  # fmt: skip

    def kill(self, host: str) -> None:
        """Everything on a machine ends at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=True)
        for pid in map(int, pids.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes[host].communicate()

    def link(self, state: str) -> None:
        ip("-n", self.names["b"], "link", "set", f"{self.names['b']}0", state)

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + 300
        while not path.exists():
            assert all(process.poll() is None for process in self.processes.values()), self.finish()
            assert time.monotonic() < end
            time.sleep(0.02)

    def finish(self) -> list[subprocess.CompletedProcess]:
        return [finish(process) for process in self.processes.values()]

    def assert_finished(self) -> list[str]:
        """All launchers end well; what they said."""
        ended = self.finish()
        assert all(done.returncode == 0 for done in ended), "\n---\n".join(done.stderr for done in ended)
        return [done.stderr for done in ended]


@pytest.fixture
def machines(namespaces, tmp_path):
    """Starts machines that share their disk; whatever is left of them is killed."""
    made = []

    def make(own_disks: bool = False) -> Machines:
        made.append(Machines(namespaces, tmp_path / "runs", own_disks))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(subprocess.CalledProcessError):
            one.link("up")
        for host in one.processes:
            one.kill(host)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The same run on one machine."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = finish(start(output))
    assert done.returncode == 0, done.stderr
    return output / "run"


@pytest.mark.slow
@pytest.mark.parametrize("own_disks", [False, True], ids=["shared-disk", "own-disks"])
def test_a_machine_that_is_killed_and_comes_back_costs_nothing(undisturbed, machines, own_disks):
    both = machines(own_disks)
    both.start("a")
    both.start("b")
    # Global rank 0 is on the machine whose address comes first.
    both.wait_for(both.outputs["a"] / "run/previous.pt")
    both.kill("b")
    both.start("b")
    said = both.assert_finished()
    assert "going on at epoch" in said[0]
    assert_same_end(both.outputs["a"] / "run", undisturbed)


@pytest.mark.slow
def test_the_machine_of_the_rendezvous_may_be_killed_too(undisturbed, machines):
    both = machines()
    both.start("a")
    both.start("b")
    both.wait_for(both.outputs["a"] / "run/previous.pt")
    both.kill("a")
    both.start("a")
    said = both.assert_finished()
    assert any("lost the rendezvous at 10.213.77.1:29400" in text for text in said)
    assert_same_end(both.outputs["a"] / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 45])
def test_a_link_that_is_cut_and_comes_back_costs_nothing(undisturbed, machines, seconds):
    both = machines()
    both.start("a")
    both.start("b")
    both.wait_for(both.outputs["a"] / "run/previous.pt")
    both.link("down")
    time.sleep(seconds)
    both.link("up")
    both.assert_finished()
    assert_same_end(both.outputs["a"] / "run", undisturbed)
