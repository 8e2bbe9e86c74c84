"""Real forks of a process that has run the kernels on several threads, as DataLoader workers and pre-fork servers are.

GNU OpenMP keeps its threads for the next run; a forked child has none of them and would wait for them for ever. Each
program here runs in a process of its own, alone and beside torch, which brings the OpenMP that both then share.
"""

from __future__ import annotations

import sys

import pytest
from programs import run_program

PRELUDE = """
import multiprocessing, os, signal, threading
import numpy as np, subp_ext
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 32, 40, 40)).astype("f4")
weight = rng.standard_normal((64, 32, 3, 3)).astype("f4")
run = lambda: subp_ext.conv2d(x, weight, padding=1, threads=3, winograd=True)
want = run()

def child(check):
    signal.alarm(240)  # a child that hangs is killed
    os._exit(0 if check() else 1)

def assert_fine(check):
    pid = os.fork() or child(check)
    assert os.waitpid(pid, 0)[1] == 0, "the child hung or failed"

same = lambda: run().tobytes() == want.tobytes()
"""

TORCH = """
import torch
torch.set_num_threads(3)
a = torch.randn(2, 64, 40, 40)
torch.nn.functional.conv2d(a, torch.randn(64, 64, 3, 3))
"""


def check_program(*parts, attempts=1):
    done = run_program([sys.executable, "-c", "\n".join([*parts, "print('fine')"])], 250, attempts)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("torch", ["", TORCH], ids=["alone", "beside_torch"])
def test_child_and_parent_run_on_after_a_fork(torch):
    if torch:
        pytest.importorskip("torch")
    check_program(torch, PRELUDE, "for _ in range(3): assert_fine(same); assert same()")


def test_a_child_may_fork_again():
    check_program(PRELUDE, "assert_fine(lambda: same() and (assert_fine(same) or same()))")


def test_a_fork_from_another_thread_while_the_kernels_run():
    check_program(
        PRELUDE,
        """
stop = threading.Event()
def keep_running():
    while not stop.is_set():
        assert same()
worker = threading.Thread(target=keep_running)
worker.start()
for _ in range(20):
    assert_fine(same)
stop.set()
worker.join()
""",
    )


def test_a_fork_while_another_thread_plans():
    """More shapes than a session remembers: there is always a plan in the making, under the session's lock."""
    check_program(
        PRELUDE,
        """
graph = subp_ext.Graph(
    [subp_ext.TensorSpec("x", (None, 32, None, None))], [subp_ext.TensorSpec("y", (None, 64, None, None))],
    [subp_ext.Node("conv2d", "y", {"input": subp_ext.Ref("x"), "weight": subp_ext.Ref("w"), "padding": 1})],
    {"w": weight},
)
session, stop = subp_ext.Session(graph, threads=2), threading.Event()
one = session.run(x)
def keep_planning():
    while not stop.is_set():
        for side in range(8, 32): session.run(x[..., :side, :side])
worker = threading.Thread(target=keep_planning)
worker.start()
for _ in range(30):
    assert_fine(lambda: session.run(x).tobytes() == one.tobytes())
stop.set()
worker.join()
""",
    )


def test_multiprocessing_and_dataloader_workers():
    pytest.importorskip("torch")
    check_program(
        TORCH,
        PRELUDE,
        """
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return run()[0, index]

for batch in torch.utils.data.DataLoader(Rows(), 4, num_workers=2, timeout=240, multiprocessing_context="fork"):
    assert batch.shape == (4, 40, 40)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(len, [want] * 4).get(240) == [1] * 4
assert same()
""",
        attempts=2,  # workers of multiprocessing were once seen to wait for its own semaphore on a busy machine
    )
