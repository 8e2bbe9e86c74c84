"""Settings of all tests, and what several files of them start from.

Torch runs on one thread, so that runs repeat bit for bit and tests do not fight for cores. What takes long begins
first, so that no worker is left alone with it at the end.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

# Files that take half a minute or more, longest first.
LONG = (
    *("test_faults", "test_data_ffcv", "test_bench", "test_train", "test_study", "test_launch", "test_every_error"),
    *("test_data_write", "test_ext_harness", "test_export_formats", "test_quantize_export", "test_libraries"),
    *("test_pruner", "test_trained", "test_data_errors", "test_export_model", "test_prove", "test_agreement"),
    "test_export_zoo",
)

# How long an example takes says something about the machine alone.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(LONG)))


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture
def few_pictures(tmp_path) -> Path:
    """A folder of 2 x 14 pictures to learn and 2 x 4 to test, of 24 pixels: all the same noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    for split, count in (("train", 14), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels).save(tmp_path / f"data/{split}/{name}/{index:02}.png")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def digit_pictures(tmp_path_factory) -> Path:
    """Real digits as PNG files: 20 of each class to learn, 4 to test."""
    from subp_dist.data import digits

    root = tmp_path_factory.mktemp("digits")
    pixels, labels = digits.load_digits()
    for label in range(10):
        of_class = pixels[labels == label]
        for index in range(24):
            folder = root / ("train" if index < 20 else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(of_class[index].reshape(28, 28)).save(folder / f"{index:03}.png")
    return root
