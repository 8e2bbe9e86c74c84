"""Settings of all tests: torch on one thread, so that runs repeat bit for bit and tests do not fight for cores.

What takes long begins first, so that no worker is left alone with it at the end.
"""

from pathlib import Path

import pytest
import torch

# Files that take half a minute or more, longest first.
LONG = (
    *("test_faults", "test_data_ffcv", "test_train", "test_study", "test_launch", "test_bench", "test_every_error"),
    *("test_data_write", "test_ext_harness", "test_export_formats", "test_quantize", "test_quantize_export"),
    *("test_libraries", "test_pruner", "test_trained", "test_export_zoo", "test_zoo", "test_data_errors"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(LONG)))


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)
