"""What the package needs of torch without a public name: each test fails where a new torch no longer has it.

They look at what the names do, with real processes where it takes some, so that a name that is there but means
something else is found as well. The last one finds private names that are used elsewhere in the package.
"""

from __future__ import annotations

import ast
import inspect
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher import api
from torch.utils.data import DataLoader

from subp_dist import torch_compat

PACKAGE = Path(__file__).resolve().parent.parent / "subp_dist"
PREFIX = "Conv", "LazyConv"


def test_all_convolutions_of_torch_have_the_same_base_and_nothing_else_does():
    modules = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    found = {name for name, kind in modules.items() if issubclass(kind, torch_compat.ANY_CONVOLUTION)}
    assert found == {name for name in modules if name.startswith(PREFIX)} and len(found) == 12
    transposed = {name for name, kind in modules.items() if issubclass(kind, torch_compat.ANY_TRANSPOSED)}
    assert transposed == {name for name in found if "Transpose" in name}


def test_all_batch_norms_of_torch_have_the_same_base():
    norms = {name for name, kind in vars(nn).items() if inspect.isclass(kind) and "BatchNorm" in name}
    found = {name for name in norms if issubclass(getattr(nn, name), torch_compat.ANY_BATCH_NORM)}
    assert found == norms and len(found) == 7


def test_nested_results_flatten_in_order_with_the_keys_that_lead_to_them():
    nested = {"b": (1, [2]), "a": 3}
    found = [
        ([str(entry) for entry in path], leaf) for path, leaf in torch_compat.pytree.tree_flatten_with_path(nested)[0]
    ]
    assert found == [(["['b']", "[0]"], 1), (["['b']", "[1]", "[0]"], 2), (["['a']"], 3)]
    assert torch_compat.pytree.tree_leaves(nested) == [1, 2, 3]


def test_the_processes_of_a_loader_are_known_and_end():
    batches = iter(DataLoader(list(range(64)), num_workers=2))
    next(batches)
    processes = torch_compat.loading_processes(batches)
    assert len(processes) == 2 and all(process.is_alive() for process in processes)
    torch_compat.end_loading_processes(batches)
    assert not any(process.is_alive() for process in processes)
    assert torch_compat.loading_processes(iter(DataLoader([1]))) == []


def test_an_operator_of_an_exported_graph_has_a_schema_and_a_function_has_none():
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    target = next(node.target for node in program.graph.nodes if node.op == "call_function")
    schema = torch_compat.operator_schema(target)
    assert schema.name == "aten::relu" and [argument.name for argument in schema.arguments] == ["self"]
    assert torch_compat.operator_schema(len) is None


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_lays_out_its_gradients_before_the_first_step(process_group):
    laid_out = []
    for early in (False, True):
        ddp = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
        if early:
            torch_compat.lay_out_gradients(ddp)
            assert all(parameter.grad is None for parameter in ddp.parameters())
        ddp(torch.ones(1, 3)).sum().backward()  # its first forward pass takes the new layout up, if there is one
        laid_out.append(bool(ddp._has_rebuilt_buckets))
    assert laid_out == [False, True]


# Of two ranks, the second leaves without a word; the first waits for it in a collective.
_LOST = """
import os, sys
import torch, torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
dist.all_reduce(torch.ones(1))
if rank == 1:
    os._exit(0)
from subp_dist.torch_compat import reason_of_lost_rank
try:
    for _ in range(100):
        dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print(reason_of_lost_rank(error), flush=True)
    os._exit(7)
"""


def test_a_lost_rank_is_told_from_other_errors(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _LOST, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True,
            cwd=PACKAGE.parent,
        )
        for rank in range(2)
    ]  # fmt: skip
    said, _ = ranks[0].communicate(timeout=300)
    ranks[1].communicate(timeout=300)
    assert ranks[0].returncode == 7
    assert said.strip() not in ("", "None") and "This is typically caused" not in said and not said.startswith("[")
    assert torch_compat.reason_of_lost_rank(RuntimeError("size mismatch")) is None
    assert torch_compat.reason_of_lost_rank(dist.DistBackendError("gone")) == "gone"


class _Recorder(torch_compat.WatchedAgent):
    """Writes down what failed, allows one restart, then no more."""

    seen: list[tuple] = []

    def ranks_failed(self, failures, ended) -> None:
        codes = {rank: failure.exitcode for rank, failure in failures.items()}
        self.seen.append((codes, {failure.local_rank for failure in ended}, self.restarts_left))
        if len(self.seen) == 2:
            self.restarts_left = 0


def test_an_agent_is_told_of_failures_and_decides_on_restarts(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "LocalElasticAgent", api.LocalElasticAgent)  # and have it back afterwards
    torch_compat.use_agent(_Recorder)
    program = tmp_path / "program.py"
    program.write_text("import os, sys, time\nsys.exit(3) if os.environ['RANK'] == '1' else time.sleep(100)\n")
    config = api.LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=5,
        monitor_interval=0.1,
    )  # fmt: skip
    with pytest.raises(ChildFailedError):
        api.launch_agent(config, sys.executable, [str(program)])
    codes = {0: -signal.SIGTERM, 1: 3}
    assert _Recorder.seen == [(codes, {0}, 5), (codes, {0}, 4)]


def test_an_agent_that_leaves_the_rendezvous_open_does_not_shut_it_down():
    class Handler:
        def shutdown(self):
            raise AssertionError("closed for all others")

    spec = api.WorkerSpec("rank", 1, Handler(), entrypoint="true")
    agent = torch_compat.WatchedAgent(spec, api.DefaultLogsSpecs(), exit_barrier_timeout=0)
    agent.leave_rendezvous_open()
    spec.rdzv_handler.shutdown()


def test_torchrun_reads_the_switch_for_a_store_of_each_attempt(monkeypatch):
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    handler = dynamic_rendezvous.DynamicRendezvousHandler.__new__(dynamic_rendezvous.DynamicRendezvousHandler)
    assert handler.use_agent_store
    torch_compat.use_fresh_stores()
    assert not handler.use_agent_store


def test_torchrun_knows_this_machine_and_no_other():
    assert torch_compat.takes_for_this_machine("localhost")
    assert not torch_compat.takes_for_this_machine("203.0.113.7")  # of a network for documentation


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_replace"  # that of every NamedTuple


def private_names(path: Path) -> set[str]:
    """Names with an underscore that a file imports from other packages, or reaches for in their modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {f"{node.module}: {name}" for name in names if is_private(name)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if ast.unparse(node.value) not in ("self", "cls", "super()"):
                found.add(ast.unparse(node))
    return found


# Of this package's own classes, and of argparse.
OWN = {"beton._check_tables", "parser._actions"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_are_in_one_file(path):
    if path.name != "torch_compat.py":
        assert private_names(path) - OWN == set()
