"""Joining and leaving a process group: what the environment and the machine say, and how the loss of a rank is told.

In this process, without other ranks; several of them are in test_agreement.py, DDP in test_pruner.py.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from subp_dist.process_group import init_process_group, world

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
