"""What ranks agree on: shares of work, scores, masks, sums.

Processes: this file is also a program that forks two ranks, then four, with torchrun's environment (torch is imported
once, before any thread exists); they meet at stores of the test's own, so no port is chosen in advance. On gloo, with
one thread each, they go through every collective once, and the tests look at what each rank wrote. A program that takes
550 s is killed with all its ranks.
Sizes: a network of five convolutions of at most 40 channels, 8 updates. Tolerances: none; conftest.py has the test
itself on one thread too, as the order of float32 sums may depend on it.
Out of scope: NCCL, DDP and the training loop, restarts; what a process without torchrun finds is in
test_process_group.py.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from subp_dist.agreement import compute_shared, on_primary, share_out, sum_over_ranks, verify_identical
from subp_dist.errors import LostRankError, UsageError
from subp_dist.process_group import init_process_group, lost_ranks_named, world
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

LAUNCH_SECONDS = 550
WORLD_SIZES = [2, 4]
# A launch whose ranks wait, and the seconds that one of them may wait for another: many, for a busy machine.
LONG, WAIT = "long", 20
CPU = torch.device("cpu")
SHAPES = [(3, 4), (1,), (2, 0), (5,), (2, 2, 2), (7,), ()]
COSTS = [12, 1, 0, 5, 8, 7, 1]


# What every rank does


def computed(index: int) -> torch.Tensor:
    """Values that a sum over ranks must not round: odd digits, infinity and NaN."""
    values = torch.randn(SHAPES[index], generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    if index == 3:
        values[:3] = torch.tensor([float("inf"), float("nan"), 1e-300])
    return values


def small_pruner(seed: int = 0, draw_seed: int = 0) -> SUBPPruner:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 12, 3),
        nn.Conv2d(12, 22, 1),
        nn.Conv2d(22, 12, 3, groups=2),
        nn.Conv2d(12, 40, 1),
    )
    return SUBPPruner(model, PruneSchedule(0.6, 1, 6), block_size=4, seed=draw_seed)


def updates(pruner: SUBPPruner) -> list[dict]:
    """Eight updates with weights that move alike on every rank: what `step` returned, and the masks."""
    history = []
    for epoch in range(8):
        with torch.no_grad():
            for index, layer in enumerate(pruner.layers.values()):
                weight = layer.parametrizations.weight.original
                generator = torch.Generator().manual_seed(100 * epoch + index)
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
        update = vars(pruner.step(epoch))
        history.append({"update": update, "masks": {name: mask.clone() for name, mask in pruner.masks.items()}})
    return history


def two_masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(4, 9, generator=generator) < 0.5 for name in ("layer1.conv", "layer2.conv", "layer3.conv")}


def message_of(call) -> str | None:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return None


def work_of_a_rank(folder: Path, rank: int, world_size: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    place = init_process_group("cpu", timeout_minutes=4)
    torch.manual_seed(rank)  # global generators differ, as they do in training
    result: dict = {"place": place, "world": world()}

    calls: list[int] = []

    def compute(index: int) -> torch.Tensor:
        calls.append(index)
        return computed(index)

    result["shared"], result["calls"] = compute_shared(compute, SHAPES, COSTS, CPU), calls
    result["updates"] = updates(small_pruner())
    result["sums"] = sum_over_ranks([rank + 1, 2**50 + rank, 0.5, -3], CPU)
    result["no message"] = message_of(lambda: verify_identical(two_masks(), "masks", CPU))
    masks = two_masks()
    if rank == 1:
        masks["layer2.conv"][2, 5] ^= True
    result["one bit"] = message_of(lambda: verify_identical(masks, "masks", CPU))
    many = {f"layer{i}": torch.zeros(2, 3, dtype=torch.bool) for i in range(8)}
    if rank == world_size - 1:
        many = {name: ~mask for name, mask in many.items()}
    result["many layers"] = message_of(lambda: verify_identical(many, "masks", CPU))
    pruner = small_pruner(draw_seed=int(rank == 1))
    result["other seed"] = message_of(lambda: pruner.step(4))

    torch.save(result, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def work_at_length(folder: Path, rank: int, world_size: int) -> None:
    """Rank 0 takes longer than another may wait; then it dies at work."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    init_process_group("cpu", timeout_minutes=WAIT / 60)
    threads = threading.active_count()
    result: dict = {"told": on_primary(lambda: time.sleep(1.25 * WAIT) or "done")}
    result["left"] = threading.active_count() - threads
    try:
        on_primary(lambda: refuse("not so"))
    except UsageError as error:
        result["refused"] = str(error)
    torch.save(result, folder / f"rank{rank}.pt")
    try:
        with lost_ranks_named():
            on_primary(lambda: os.kill(os.getpid(), signal.SIGKILL))
    except LostRankError as error:
        torch.save(result | {"lost": str(error)}, folder / f"rank{rank}.pt")
    os._exit(0)


def refuse(message: str) -> None:
    raise ValueError(message)


# Launching


WORK = {"2": work_of_a_rank, "4": work_of_a_rank, LONG: work_at_length}


def program(folder: Path, places: list[str]) -> int:
    """Fork the ranks of each launch ``NAME:PORT``, wait for them; 0 if all went well.

    What takes long, and mostly waits, runs beside the others.
    """
    context, failed = multiprocessing.get_context("fork"), False
    waiting: list = []
    for place in sorted(places, key=lambda place: not place.startswith(LONG)):
        name, _, os.environ["MASTER_PORT"] = place.partition(":")
        (folder / name).mkdir()
        size = 2 if name == LONG else int(name)
        ranks = [context.Process(target=WORK[name], args=(folder / name, rank, size)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        if name == LONG:
            waiting = ranks
            continue
        for rank in ranks:
            rank.join()
        failed = failed or any(rank.exitcode for rank in ranks)
    for rank in waiting:
        rank.join()
    return int(failed or [rank.exitcode for rank in waiting] != [-signal.SIGKILL, 0])


@pytest.fixture(scope="module")
def launches(tmp_path_factory) -> dict[int | str, list[dict]]:
    """What every rank of a launch found, by the number of ranks, or the name of the launch."""
    folder = tmp_path_factory.mktemp("ranks")
    stores = {
        name: dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=4))
        for name in (*WORLD_SIZES, LONG)
    }
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the ranks join this store, as under torchrun
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder), *(f"{name}:{store.port}" for name, store in stores.items())],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the ranks can be ended with their program
        )
        try:
            code = process.wait(timeout=LAUNCH_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    assert code == 0, log.read_text()
    sizes = {size: size for size in WORLD_SIZES} | {LONG: 2}
    return {
        name: [torch.load(folder / f"{name}/rank{rank}.pt", weights_only=False) for rank in range(size)]
        for name, size in sizes.items()
    }


@pytest.fixture(params=WORLD_SIZES, ids=lambda size: f"{size}-ranks")
def ranks(request, launches) -> list[dict]:
    """What every rank of a launch found, by rank."""
    return launches[request.param]


def identical(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.int64), b.view(torch.int64))
        for a, b in zip(first, second, strict=True)
    )


# Sharing out

COST_LISTS = st.lists(st.one_of(st.integers(0, 10**9), st.floats(0, 1e9)), max_size=60)


@settings(max_examples=100, deadline=None)
@given(COST_LISTS, st.integers(1, 16))
def test_every_task_has_one_owner_that_exists(costs, world_size):
    owners = share_out(costs, world_size)
    assert len(owners) == len(costs)
    assert all(0 <= owner < world_size for owner in owners)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.integers(2, 16))
def test_no_rank_carries_more_than_the_others_but_for_its_last_task(costs, world_size):
    owners = share_out(costs, world_size)
    shares = [[cost for cost, owner in zip(costs, owners, strict=True) if owner == r] for r in range(world_size)]
    lightest = min(map(sum, shares))
    assert all(sum(share) - min(share, default=0) <= lightest for share in shares)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_the_largest_load_is_within_a_third_of_the_best_possible(costs, world_size):
    # Graham 1969: largest first stays below 4/3 - 1/(3 m) of the best; all m^n assignments are tried here.
    def largest_load(owners) -> int:
        return max(sum(cost for cost, o in zip(costs, owners, strict=True) if o == rank) for rank in range(world_size))

    best = min(largest_load(owners) for owners in itertools.product(range(world_size), repeat=len(costs)))
    assert largest_load(share_out(costs, world_size)) * 3 * world_size <= best * (4 * world_size - 1)


@settings(max_examples=50, deadline=None)
@given(COST_LISTS, st.integers(1, 16))
def test_sharing_out_is_deterministic(costs, world_size):
    assert share_out(list(costs), world_size) == share_out(tuple(costs), world_size)


def test_equal_tasks_are_dealt_in_turn():
    assert share_out([3] * 6, 4) == [0, 1, 2, 3, 0, 1]


def test_one_large_task_does_not_get_company():
    assert share_out([1, 1, 10, 1, 1], 2) == [1, 1, 0, 1, 1]


# Alone


def test_alone_everything_is_computed_here():
    assert identical(compute_shared(computed, SHAPES, COSTS, CPU), [computed(i) for i in range(len(SHAPES))])


def test_alone_sums_are_the_values():
    assert sum_over_ranks([1, 2.5], CPU) == [1, 2.5]


def test_alone_masks_are_identical():
    verify_identical(two_masks(), "masks", CPU)


# Together


def test_ranks_know_their_place(ranks):
    for index, rank in enumerate(ranks):
        place = rank["place"]
        assert (place.rank, place.world_size, place.device) == (index, len(ranks), CPU)
        assert place.is_primary == (index == 0)
        assert rank["world"] == (index, len(ranks))


def test_every_rank_gets_every_shared_tensor_exactly(ranks):
    for rank in ranks:
        assert identical(rank["shared"], [computed(index) for index in range(len(SHAPES))])


def test_every_shared_tensor_is_computed_once_and_by_its_owner(ranks):
    owners = share_out(COSTS, len(ranks))
    for index, rank in enumerate(ranks):
        assert rank["calls"] == [task for task, owner in enumerate(owners) if owner == index]


def test_masks_are_the_same_on_every_rank_and_as_in_one_process(ranks):
    alone = updates(small_pruner())
    for rank in ranks:
        for expected, found in zip(alone, rank["updates"], strict=True):
            assert found["masks"].keys() == expected["masks"].keys()
            assert all(torch.equal(mask, expected["masks"][name]) for name, mask in found["masks"].items())


def test_the_numbers_of_an_update_are_the_same_on_every_rank_and_as_in_one_process(ranks):
    alone = updates(small_pruner())
    for rank in ranks:
        for expected, found in zip(alone, rank["updates"], strict=True):
            scores = expected["update"]["scores"]
            assert all(torch.equal(score, scores[name]) for name, score in found["update"]["scores"].items())
            assert found["update"] | {"scores": None} == expected["update"] | {"scores": None}


def test_masks_changed_in_these_updates(ranks):
    first, *_, last = ranks[0]["updates"]
    assert all(mask.all() for mask in first["masks"].values())
    assert not any(mask.all() for mask in last["masks"].values())


def test_sums_over_ranks_are_exact(ranks):
    size = len(ranks)
    extra = size * (size - 1) // 2
    for rank in ranks:
        # float32 would lose the ranks beside 2**50.
        assert rank["sums"] == [size + extra, size * 2**50 + extra, size * 0.5, size * -3]


def test_identical_masks_pass(ranks):
    assert [rank["no message"] for rank in ranks] == [None] * len(ranks)


def test_one_flipped_bit_is_the_same_error_on_every_rank(ranks):
    messages = {rank["one bit"] for rank in ranks}
    assert len(messages) == 1
    message = messages.pop()
    assert "layer2.conv on rank " in message
    assert "layer1.conv" not in message
    assert "layer3.conv" not in message


def test_the_error_names_the_rank_that_flipped_the_bit(ranks):
    # Of two ranks that differ, nobody can tell which is wrong: the error may name both, but not the innocent alone.
    assert "layer2.conv on rank 1" in ranks[0]["one bit"] or "layer2.conv on rank 0, 1" in ranks[0]["one bit"]


def test_the_error_of_many_layers_is_cut_short(ranks):
    messages = {rank["many layers"] for rank in ranks}
    assert len(messages) == 1
    assert "layer4 on rank" in (message := messages.pop())
    assert "layer5" not in message
    assert "and 3 more layers" in message


def test_a_rank_with_another_seed_fails_the_update_on_every_rank(ranks):
    messages = {rank["other seed"] for rank in ranks}
    assert len(messages) == 1
    assert "masks differ between ranks: " in (message := messages.pop())
    assert "Resume from the last checkpoint" in message


def test_a_rank_may_work_for_longer_than_others_wait(launches):
    assert [rank["told"] for rank in launches[LONG]] == ["done", "done"]
    assert [rank["refused"] for rank in launches[LONG]] == ["not so", "not so"]
    assert [rank["left"] for rank in launches[LONG]] == [0, 0], "threads"


def test_a_rank_that_dies_at_work_is_missed_by_the_others(launches):
    first, second = launches[LONG]
    assert "lost" not in first and second["lost"]  # as gloo says it: closed, or reset


if __name__ == "__main__":
    sys.exit(program(Path(sys.argv[1]), sys.argv[2:]))
