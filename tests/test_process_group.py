"""Joining and leaving a process group: what the environment and the machine say, and how the loss of a rank is told.

In this process, without other ranks; several of them are in test_agreement.py, DDP in test_pruner.py.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from subp_dist import process_group
from subp_dist.process_group import Rank, data_parallel, init_process_group, world
from subp_dist.stopping import StopRequest

CPU = torch.device("cpu")


@pytest.fixture
def no_torchrun(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_stands_alone(no_torchrun):
    rank = init_process_group("cpu")
    assert (rank.rank, rank.world_size, rank.device, rank.is_primary) == (0, 1, CPU, True)
    assert not dist.is_initialized()
    assert world() == (0, 1)


def test_auto_takes_the_cpu_without_a_gpu(no_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert init_process_group("auto").device == CPU


def test_cuda_without_a_gpu_is_an_error_that_points_to_the_cpu(no_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="no CUDA device|0 CUDA devices") as error:
        init_process_group("cuda")
    # Fewer ranks do not help where there is no GPU at all.
    assert "--device cpu" in str(error.value)
    assert "NPROC" not in str(error.value)


def test_more_ranks_than_gpus_is_an_error_that_says_how_many_to_start(no_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match="4 ranks on this machine but 2 CUDA devices: set NPROC=2"):
        init_process_group("cuda")


@pytest.mark.parametrize("device", ["tpu", "cuda:1", ""])
def test_an_unknown_device_is_an_error_that_lists_the_known_ones(no_torchrun, device):
    with pytest.raises(ValueError, match=f"device '{device}': expected auto, cpu or cuda"):
        init_process_group(device)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE"])
def test_processes_of_another_launcher_are_refused(no_torchrun, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=f"one of 2 processes .{name}.*launch/train.slurm.*torchrun") as error:
        init_process_group("cpu")
    assert "\n" not in str(error.value)


def test_one_process_of_another_launcher_is_fine(no_torchrun, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # of the job
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # of srun -n 1 in it
    assert init_process_group("cpu").world_size == 1


@pytest.fixture
def machine_of_gpus(monkeypatch) -> list:
    """Local rank 3 of 4 on a machine of four GPUs, which is not there; calls of torch with their arguments."""
    calls = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda **settings: calls.append(("init", settings)))
    monkeypatch.setattr(dist, "new_group", lambda **settings: calls.append(("group", settings)))
    monkeypatch.setattr(process_group, "_talk", None)
    monkeypatch.setattr(dist, "get_rank", lambda: 7)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    for name, value in {"RANK": 7, "WORLD_SIZE": 8, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    return calls


def test_a_rank_of_nccl_takes_the_gpu_of_its_local_rank(machine_of_gpus):
    rank = init_process_group("auto", timeout_minutes=2.5)
    gpu = torch.device("cuda", 3)
    # The device comes first: NCCL's communicator, and what torch sends for it, lie on the current one.
    (first, device), (second, settings), talk = machine_of_gpus
    assert (first, device, second) == ("set_device", gpu, "init")
    assert settings == {"backend": "nccl", "timeout": timedelta(minutes=2.5), "device_id": gpu}
    assert talk == ("group", {"backend": "gloo", "timeout": timedelta(minutes=2.5)}), "from CPU to CPU"
    assert (rank.rank, rank.world_size, rank.device) == (7, 8, gpu)


def test_ddp_of_a_gpu_is_told_which(monkeypatch):
    calls = []
    monkeypatch.setattr(process_group, "DistributedDataParallel", lambda model, **settings: calls.append(settings))
    monkeypatch.setattr(process_group, "lay_out_gradients", lambda ddp: None)
    data_parallel(torch.nn.Linear(1, 1), Rank(3, 4, torch.device("cuda", 3)))
    data_parallel(torch.nn.Linear(1, 1), Rank(0, 2, CPU))
    assert calls == [{"device_ids": device_ids, "broadcast_buffers": False} for device_ids in ([3], None)]


def test_ranks_of_nccl_agree_to_stop_over_gloo(monkeypatch):
    # NCCL would take no tensor of the CPU, and have the host wait for the GPU in every step.
    groups = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "new_group", lambda **settings: groups.append(settings))
    StopRequest(3)
    assert groups == [{"backend": "gloo", "timeout": timedelta(minutes=3)}]
