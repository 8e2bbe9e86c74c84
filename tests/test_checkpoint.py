"""subp_dist.checkpoint: nothing half-written, every damage has a name.

Files of a few kilobytes; faults are real: truncated and flipped files, a full disk (RLIMIT_FSIZE).
"""

import re
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from subp_dist.checkpoint import load_checkpoint, save_checkpoint, save_plain_weights, write_atomically
from subp_dist.errors import UsageError


def state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    weights = {"w": torch.randn(40, 50, generator=generator), "mask": torch.rand(4, 5, generator=generator) > 0.5}
    return {
        "epoch": 3,
        "best": None,
        "config": {"model": {"name": "m"}, "pruning": {"skip": ["a"]}},
        "model": weights,
        "optimizer": {},
    }


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "last.pt", state())
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], state()["model"]["w"])
    assert loaded["model"]["mask"].dtype == torch.bool
    assert loaded["config"] == state()["config"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_atomically(path, fail)
    assert load_checkpoint(path)["epoch"] == 3
    assert [found.name for found in tmp_path.iterdir()] == ["last.pt"]


@pytest.fixture
def nearly_full_disk():
    """Files of this process end at 20 kB, with an error instead of a signal."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, nearly_full_disk):
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1, "config": {}, "model": {}, "optimizer": {}})
    large = {"epoch": 2, "config": {}, "model": {"w": torch.zeros(100_000)}, "optimizer": {}}
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        save_checkpoint(tmp_path / "last.pt", large)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [found.name for found in tmp_path.iterdir()] == ["last.pt"]


def test_an_error_that_is_not_of_a_file_is_passed_on(tmp_path):
    save_checkpoint(tmp_path / "last.pt", state())

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="^CUDA error"):
        write_atomically(tmp_path / "last.pt", fail)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    assert [found.name for found in tmp_path.iterdir()] == ["last.pt"]


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_plain_state_dict_is_not_a_checkpoint(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="it has no config, epoch, model, optimizer"):
        load_checkpoint(tmp_path / "weights.pt")


def test_a_configuration_of_another_kind_is_none(tmp_path):
    torch.save(state() | {"config": 5}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="it has no config"):
        load_checkpoint(tmp_path / "last.pt")


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"epoch": 0, "config": {}, "model": Hostile(), "optimizer": {}}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="damaged, or not a checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_files_have_a_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("truncated") / "last.pt"
    save_checkpoint(path, state())
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(data.draw(st.integers(0, size - 1)))
    with pytest.raises(UsageError, match="damaged, or not a checkpoint"):
        load_checkpoint(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bits_never_load_as_another_state(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "last.pt"
    save_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except UsageError:
        return
    assert torch.equal(loaded["model"]["w"], state()["model"]["w"])
    assert torch.equal(loaded["model"]["mask"], state()["model"]["mask"])
    assert loaded["epoch"] == 3 and loaded["config"] == state()["config"]


def test_plain_weights_are_safetensors_with_metadata(tmp_path):
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    save_plain_weights(tmp_path / "model.safetensors", {"w": weight, "same": weight}, {"model": "m"})
    loaded = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded["w"], weight) and torch.equal(loaded["same"], weight)
