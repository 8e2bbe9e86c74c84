"""subp_dist.data.write: broken pictures, signals and killed processes, what is left behind.

Faults are real: files cut off, a process that kills itself, signals to a command at chosen moments (faults_write.py)
while it writes 2 x 2000 pictures, so many that work waits in queues. What is written is read back in test_data_ffcv.py.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
import torch
from nursery import Fork
from photographs import write_photographs
from PIL import Image
from programs import session

from subp_dist.data import write as module
from subp_dist.data.beton import Beton
from subp_dist.data.storage import Storage
from subp_dist.data.write import Pictures, open_pictures, verify, write
from subp_dist.errors import UsageError


@pytest.fixture
def photographs(tmp_path) -> Path:
    return write_photographs(tmp_path / "pictures", 4, 2)


def run(monkeypatch, *arguments: str) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["write", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        module.cli()
    except SystemExit as error:
        return error.code
    return 0


@pytest.fixture
def segments(monkeypatch) -> list[Path]:
    """The files of the shared memory that this process creates, as they come; other processes create some, too."""
    created = []

    class Recorded(shared_memory.SharedMemory):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            created.append(Path("/dev/shm", self.name))

    monkeypatch.setattr(shared_memory, "SharedMemory", Recorded)
    return created


def test_the_command_writes_both_splits_and_their_classes(photographs, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, photographs, tmp_path / "out", "100", "1.0", "80", "--workers", "2") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train_100_1.00_80.beton", "train_100_1.00_80.beton.json"),
        *("val_100_1.00_80.beton", "val_100_1.00_80.beton.json"),
    }
    content = json.loads((tmp_path / "out/train_100_1.00_80.beton.json").read_text())
    assert content["class_to_idx"] == {"china": 0, "flower": 1} and content["images"] == 8
    beton = Beton.open(tmp_path / "out/train_100_1.00_80.beton")
    assert max(beton.images["width"].max(), beton.images["height"].max()) == 100
    assert (beton.images["mode"] == 0).all()
    assert run(monkeypatch, photographs, tmp_path / "out", "100_1.0_80") == 2
    assert "is there already: pass --overwrite" in capsys.readouterr().err
    assert run(monkeypatch, photographs, tmp_path / "out", "100_1.0_80", "--overwrite", "--only", "val") == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
def test_the_command_ends_on_one_cpu(photographs, tmp_path):
    # This process is bound for a moment, as its child inherits.
    usable = os.sched_getaffinity(0)
    command = [sys.executable, "-m", module.__name__, str(photographs), str(tmp_path / "out"), "64_1.0_80"]
    try:
        os.sched_setaffinity(0, {min(usable)})
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        os.sched_setaffinity(0, usable)
    assert done.returncode == 0, done.stderr


def test_the_classes_of_an_imagenet_are_read_back(photographs, tmp_path, monkeypatch):
    torch.save(({"china": ("temple", "shrine"), "flower": ("daisy",)}, []), photographs / "meta.bin")
    assert run(monkeypatch, photographs, tmp_path, "--dataset", "torch/imagenet", "--only", "val") == 0
    assert Beton.open(tmp_path / "val_500_0.50_90.beton").class_names == ["china", "flower"]


def test_broken_pictures_are_named_and_nothing_is_written(photographs, tmp_path, monkeypatch, capsys):
    cut = photographs / "train/china/001.jpg"
    cut.write_bytes(cut.read_bytes()[:900])
    (photographs / "train/flower/002.jpg").write_text("not a picture")
    assert run(monkeypatch, photographs, tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "train/china/001.jpg" in errors and "train/flower/002.jpg" in errors
    assert "2 of 8 images cannot be decoded" in errors
    assert not (tmp_path / "out").exists()


def test_broken_pictures_are_left_out_if_asked(photographs, tmp_path, monkeypatch, capsys):
    (photographs / "train/flower/002.jpg").write_bytes(b"")
    assert run(monkeypatch, photographs, tmp_path, "--only", "train", "--broken", "skip") == 0
    assert "left out: 1 of 8" in capsys.readouterr().err
    assert Beton.open(tmp_path / "train_500_0.50_90.beton").labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_pictures_that_cannot_be_stored_are_broken(photographs, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (2000, 3)).save(photographs / "train/china/line.png")
    assert run(monkeypatch, photographs, tmp_path / "out") == 2
    assert "line.png: ValueError: 2000x3 pixels are too narrow to be shrunk to 500" in capsys.readouterr().err
    assert run(monkeypatch, photographs, tmp_path / "out", "0_0.0_90") == 0
    with pytest.raises(ValueError, match="70000x10 pixels are too many for a JPEG"):
        Storage(0, 0.5, 90).shape(10, 70000)


def test_what_a_killed_writer_left_is_cleared_away(photographs, tmp_path, monkeypatch):
    (tmp_path / ".val_500_0.50_90.beton.123.tmp").write_bytes(bytes(1000))
    assert run(monkeypatch, photographs, tmp_path, "--only", "val") == 0
    assert not list(tmp_path.glob(".*"))


def test_splits_with_other_classes_are_refused(photographs, tmp_path, monkeypatch, capsys):
    (photographs / "val/flower").rename(photographs / "val/tree")
    assert run(monkeypatch, photographs, tmp_path / "out") == 2
    assert "differ; only in training: flower; only in validation: tree" in capsys.readouterr().err


class Deadly(Pictures):
    """Kills the process that asks for its third picture."""

    def __getitem__(self, index: int):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Failing(Pictures):
    def __getitem__(self, index: int):
        raise OSError("No space left on device")


@pytest.mark.parametrize("kind", [Deadly, Failing])
def test_a_process_that_dies_ends_the_writing_and_leaves_nothing(photographs, tmp_path, kind, segments):
    pictures = kind(open_pictures("", str(photographs), "train").dataset)
    with pytest.raises(UsageError, match=r"cannot write .*a writing process died \(exit code (-9|1)\)"):
        write(tmp_path / "out/train.beton", pictures, range(8), Storage(), 2, 160 * 160)
    assert list((tmp_path / "out").iterdir()) == []
    assert segments and not [path for path in segments if path.exists()]


def test_a_full_disk_ends_the_writing_and_leaves_nothing(photographs, tmp_path, segments):
    """Pages are written last, when all images have been counted as done: FFCV waits elsewhere then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    pictures = open_pictures("", str(photographs), "train")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"a writing process died \(exit code 1\): is the disk full"):
            write(tmp_path / "out/train.beton", pictures, range(8), Storage(), 2, 160 * 160)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
    assert segments and not [path for path in segments if path.exists()]


def test_a_killed_decoder_is_an_error(photographs):
    with pytest.raises(UsageError, match="a process that decodes images was killed"):
        verify(Deadly(open_pictures("", str(photographs), "train").dataset), Storage(), 2, skip=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """2 x 2000 names of four pictures."""
    root = write_photographs(tmp_path_factory.mktemp("many"), 2, 1, sizes=((48, 40), (40, 48)))
    for picture in root.glob("train/*/*.jpg"):
        for index in range(1, 1000):
            os.link(picture, picture.with_name(f"{picture.stem}-{index}.jpg"))
    return root


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        ("a decoder starts", "SIGTERM"),
        pytest.param("a decoder starts", "SIGINT", marks=SLOW),
        pytest.param("decoding", "SIGINT", marks=SLOW),
        pytest.param("decoding", "SIGTERM", marks=SLOW),
        pytest.param("decoding", "SIGKILL", marks=SLOW),
        ("memory is shared", "SIGINT"),
        pytest.param("a writer starts", "SIGTERM", marks=SLOW),
        ("writing", "SIGINT"),
        pytest.param("writing", "SIGTERM", marks=SLOW),
        ("writing", "SIGKILL"),
        pytest.param("the file is renamed", "SIGINT", marks=SLOW),
    ],
)
def test_a_signal_ends_it_with_one_line_and_leaves_nothing(many, tmp_path, moment, name):
    program = str(Path(__file__).with_name("faults_write.py"))
    environment = os.environ | {"FAULT": moment, "FAULT_SIGNAL": name, "FAULT_SEGMENTS": str(tmp_path / "segments")}
    command = [program, str(many), str(tmp_path / "out"), "--workers", "2", "--only", "train"]
    if name == "SIGKILL":  # memory is given back by a process that forks share
        process = subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
    else:
        process = Fork(command, environment)
    errors = process.communicate(timeout=300)[1]
    number = signal.Signals[name]
    assert process.returncode == (-number if name == "SIGKILL" else 128 + number), errors
    end = time.monotonic() + 60
    segments = tmp_path / "segments"
    created = [Path("/dev/shm", line) for line in segments.read_text().split()] if segments.exists() else []
    while (session(process.pid) or any(path.exists() for path in created)) and time.monotonic() < end:
        time.sleep(0.1)  # after SIGKILL the system clears up
    assert not session(process.pid)
    assert not [path for path in created if path.exists()]
    assert "Traceback" not in errors
    left = {path.name for path in tmp_path.glob("out/*")}
    if name != "SIGKILL":
        said = "interrupted" if name == "SIGINT" else "terminated"
        assert errors.count(f"\n{said}: what was not complete has been removed\n") == 1
        # A file that is complete by then stays, with its classes.
        stem = "train_500_0.50_90.beton"
        assert left == ({stem, f"{stem}.json"} if moment == "the file is renamed" else set())


def test_large_raw_pictures_get_a_large_page(tmp_path):
    source = write_photographs(tmp_path / "pictures", 1, 1)
    file = source / "train/china/000.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), np.uint8)
    Image.fromarray(noise).save(file, quality=50)
    pictures = open_pictures("", str(source), "train")
    storage = Storage(0, 0.0, 90)
    indices, largest = verify(pictures, storage, 1, skip=False)
    assert largest == 1700 * 1700
    write(tmp_path / "train.beton", pictures, indices, storage, 1, largest)
    assert Beton.open(tmp_path / "train.beton").images["width"].max() == 1700


def test_another_program_may_name_the_classes(photographs, tmp_path):
    pictures = open_pictures("", str(photographs), "val")
    write(tmp_path / "val.beton", pictures, range(len(pictures)), Storage(), 1, 160 * 160)
    (tmp_path / "val.beton.json").unlink()
    assert Beton.open(tmp_path / "val.beton").class_names is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere", "{root}/out"], "no such folder"),
        (["{root}/train", "{root}/out"], "it has no train/"),
        (["{root}", "{root}/out", "500"], "expected MAXRESOLUTION_JPEGSHARE_QUALITY"),
        (["{root}", "{root}/out", "500_1.5_90"], "expected MAXRESOLUTION_JPEGSHARE_QUALITY"),
        (["{root}", "{root}/out", "--workers", "0"], "expected 1 or more"),
        (["{root}", "{root}/train/china/000.jpg/out", "--only", "val"], "error: cannot write"),
        (["{root}", "{root}/out", "--dataset", "torch/nothing"], "cannot read the split 'train'"),
        (["{root}", "{root}/out", "--dataset", "nothing"], "expected PREFIX/NAME"),
        (["{root}", "{root}/out", "--train-split", ""], "it has no /"),
        (["{root}/train", "{root}/out", "--train-split", "china", "--only", "train"], "not in class folders"),
    ],
)
def test_what_is_refused(photographs, monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, *(argument.format(root=photographs) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
