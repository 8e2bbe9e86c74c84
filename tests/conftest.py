"""Settings of all tests: torch on one thread, so that runs repeat bit for bit and tests do not fight for cores."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)
