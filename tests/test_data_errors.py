"""Errors out of loaders, their workers and transforms, on one of two ranks, end a run: one line with rank and picture,
an exit code, no process left, within seconds. Real runs of test_resnet on 2 x 14 and 2 x 4 pictures of 24 pixels.

Here broken files, and the loader alone; whatever else may fail is in test_every_error.py.
"""

import csv
import re
import struct
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from nursery import Fork
from picture_runs import run
from PIL import Image
from runs import environment
from torch.utils.data import Dataset

from subp_dist.data.guarded import GuardedLoader
from subp_dist.errors import DataError, LoaderError


def bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))))


def interpreter(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    """An interpreter as people start it; what ends a ``Fork`` is not all that ends it."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("split", "ranks", "workers", "start"),
    [("train", 2, "2", interpreter), ("train", 1, "2", Fork), ("val", 2, "1", Fork), ("val", 1, "0", Fork)],
)
def test_a_bomb_ends_the_run_with_its_name(few_pictures, split, ranks, workers, start):
    bomb(few_pictures / split / "dog/00.png")
    code, errors = run(few_pictures, "--workers", workers, ranks=ranks, start=start)
    assert code == 2 and "Traceback" not in errors, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"{split}/dog/00.png: cannot be read (DecompressionBombError" in lines[0], errors
    assert lines[0].startswith("error: rank ")


def test_the_traceback_can_be_had(few_pictures):
    (few_pictures / "train/cat/03.png").write_bytes(b"")
    code, errors = run(few_pictures, "--workers", "1", SUBP_DEBUG="1")
    assert code == 2 and "Traceback" in errors and "cat/03.png: cannot be read (not a picture, or empty)" in errors


def test_unreadable_pictures_are_left_out_alike_on_two_ranks(few_pictures):
    for name in ("train/cat/00.png", "train/dog/05.png", "val/cat/02.png"):
        (few_pictures / name).write_bytes(b"")
    ended, errors = run(few_pictures, "--workers", "1", "--broken", "skip", ranks=2)
    assert ended == 0, errors
    assert "images: 26 for training, 7 for validation; 2 classes" in errors
    assert errors.count("broken: ") == 3 and errors.count("left out: ") == 2
    (row,) = csv.DictReader((few_pictures.parent / "out/run/summary.csv").open())
    hits = float(row["val_top1"]) * 7 / 100  # each of the seven counts once
    assert hits == pytest.approx(round(hits))


WITHOUT_HEIC = pytest.mark.skipif(
    find_spec("pillow_heif") is not None, reason="pillow-heif reads what has to be left out"
)


def phone(folder: Path) -> None:
    """A folder of telephone photographs: turned ones, HEIC and a film beside JPEG, some broken."""
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8)
    for split in ("train", "val"):
        Image.fromarray(pixels).save(folder / split / "cat/IMG_0001.JPG", exif=turned)
        (folder / split / "dog/IMG_0002.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "train/dog/IMG_0003.MOV").write_bytes(bytes(9))
    (folder / "train/dog/._IMG_0001.JPG").write_bytes(bytes(9))
    whole = (folder / "train/cat/IMG_0001.JPG").read_bytes()
    (folder / "train/cat/IMG_0004.JPG").write_bytes(whole[: len(whole) // 2])
    (folder / "val/dog/IMG_0005.JPG").write_bytes(b"")


@WITHOUT_HEIC
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_check_lists_all_that_is_wrong_with_photographs_and_writes_nothing(few_pictures, ranks):
    phone(few_pictures)
    ended, errors = run(few_pictures, "--check-data", ranks=ranks)
    assert ended == 1 and "Traceback" not in errors, errors
    assert "1 .heic, such as IMG_0002.HEIC (not read by Pillow: pip install pillow-heif, or convert to JPEG)" in errors
    assert "1 .mov, such as IMG_0003.MOV (videos)" in errors
    for name in ("train/cat/IMG_0004.JPG", "val/dog/IMG_0005.JPG"):
        assert errors.count(f"broken: {few_pictures / name}: ") == 1
    assert errors.count("error: --check-data: 5 things are wrong, named above") == 1
    assert "verify: 100%" in errors and not (few_pictures.parent / "out").exists()


@WITHOUT_HEIC
def test_photographs_are_trained_without_what_is_wrong_if_asked(few_pictures):
    phone(few_pictures)
    ended, errors = run(few_pictures, "--broken", "skip", "--workers", "0")
    assert ended == 0, errors
    assert "images: 29 for training, 9 for validation; 2 classes" in errors and "pip install pillow-heif" in errors


def test_a_check_of_sound_data_ends_well(few_pictures):
    ended, errors = run(few_pictures, "--check-data")
    assert ended == 0 and "wrong" not in errors, errors


def test_a_check_goes_on_where_a_split_cannot_be_opened(few_pictures):
    for path in (few_pictures / "train/cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    ended, errors = run(few_pictures, "--check-data")
    assert ended == 1 and "wrong: no picture that can be read in" in errors, errors
    assert "error: --check-data: 1 thing is wrong" in errors
    assert set(re.findall(r"verify: 100%.* (\d+/\d+) ", errors)) == {"8/8"}, errors  # of the split that was opened


class Slow(Dataset):
    """Its third item fails, and those of other batches take very long."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            raise ArithmeticError("odd\nnumber")
        time.sleep(0 if index < 16 else 60)
        return torch.zeros(index % 2 + 1)


def test_an_iteration_that_fails_leaves_no_worker_and_does_not_wait_for_the_others():
    before, start = set(psutil.Process().children()), time.monotonic()
    loader = GuardedLoader(Slow(), 16, num_workers=4)
    with pytest.raises(LoaderError, match="^rank 0: loading failed: ArithmeticError: odd number$"):
        list(loader)
    assert set(psutil.Process().children()) <= before
    assert time.monotonic() - start < 300  # a batch of the others takes 16 minutes


def test_an_iteration_that_is_left_leaves_no_worker():
    before = set(psutil.Process().children())
    for _ in GuardedLoader(torch.arange(64), 4, num_workers=2):
        break
    assert set(psutil.Process().children()) <= before


def test_images_of_different_sizes_are_named_as_such():
    class Uneven(Slow):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(index % 2 + 1)

    with pytest.raises(LoaderError, match="rank 0: loading failed: RuntimeError: stack expects each tensor"):
        next(iter(GuardedLoader(Uneven(), 4)))


def test_an_explained_error_of_a_worker_stays_one():
    class Broken(Slow):
        def __getitem__(self, index: int):
            raise DataError("x.png: cannot be read")

    for workers in (0, 1):
        with pytest.raises(DataError, match="^rank 0: x.png: cannot be read$"):
            next(iter(GuardedLoader(Broken(), 4, num_workers=workers)))


SCRIPT = """
import torch
from subp_dist.data.guarded import GuardedLoader
batches = iter(GuardedLoader(torch.arange(64), 4, num_workers=2))
next(batches)
raise SystemExit(3)
"""


def test_a_program_ends_with_an_iteration_in_its_hands():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=environment(), timeout=500, capture_output=True)
    assert ended.returncode == 3
