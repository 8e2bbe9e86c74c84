"""subp_dist.data on .beton files: what is delivered, to whom, in which order; damage; early exits; which loader.

Photographs of up to 160 pixels, 20 + 7 of each of two classes. Pixels are compared with PIL's, exactly where nothing is
resized. The loop is compiled twice (float32, uint8), once for all tests of this process. Speed is out of scope.
"""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import timm.data
import torch
from photographs import write_photographs
from PIL import Image
from runs import LAUNCH, environment
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from subp_dist.bench import data as data_bench
from subp_dist.data import Data, choice, create_data
from subp_dist.data.augment import ImageAugment
from subp_dist.data.beton import Beton, find_beton, sidecar_of
from subp_dist.data.ffcv_loader import Crop, FFCVLoader, Output, choose_reading, usable_threads
from subp_dist.data.resolutions import Resolutions
from subp_dist.data.storage import Storage
from subp_dist.data.write import open_pictures, verify, write
from subp_dist.errors import DataError, UsageError
from subp_dist.options import parse_args
from subp_dist.process_group import Rank

CONFIG = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "crop_pct": 0.875}
OUTPUT = Output(CONFIG["mean"], CONFIG["std"])
CPU = torch.device("cpu")


def write_both(source: Path, folder: Path, storage: Storage) -> None:
    for split in ("train", "val"):
        pictures = open_pictures("", str(source), split)
        indices, largest = verify(pictures, storage, 2, skip=False)
        write(folder / f"{split}_{storage}.beton", pictures, indices, storage, 2, largest)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 20, 7)


@pytest.fixture(scope="module")
def betons(photographs, tmp_path_factory) -> Path:
    """Both splits, half JPEG, half raw, at most 140 pixels."""
    folder = tmp_path_factory.mktemp("betons")
    write_both(photographs, folder, Storage(140, 0.5, 90))
    return folder


@pytest.fixture(scope="module")
def raw(photographs, tmp_path_factory) -> Path:
    """Both splits to the bit."""
    folder = tmp_path_factory.mktemp("raw")
    write_both(photographs, folder, Storage(0, 0.0, 90))
    return folder


@pytest.fixture(scope="module")
def train(betons) -> Beton:
    return Beton.open(betons / "train_140_0.50_90.beton")


@pytest.fixture(scope="module")
def val(betons) -> Beton:
    return Beton.open(betons / "val_140_0.50_90.beton")


def loader(beton: Beton, batch_size: int = 8, crop: Crop | None = None, **kwargs) -> FFCVLoader:
    return FFCVLoader(beton, batch_size, kwargs.pop("size", 32), crop or Crop(True), OUTPUT, **kwargs)


def delivered(batches) -> list[tuple[bytes, int]]:
    return [(image.numpy().tobytes(), int(label)) for images, labels in batches
            for image, label in zip(images, labels, strict=True)]  # fmt: skip


def opened(folder: Path, *more: str) -> Data:
    given = parse_args(["resnet18", "--data-dir", str(folder), "--batch-size", "8", "--workers", "2", *more])
    return create_data(given.data, given.augmentation, CONFIG, given.optimization.epochs)


# --- what is delivered ---


def test_raw_images_are_delivered_to_the_bit(tmp_path):
    source = write_photographs(tmp_path / "pictures", 1, 3, sizes=((96, 96),))
    write_both(source, tmp_path, Storage(0, 0.0, 90))
    beton = Beton.open(tmp_path / "val_0_0.00_90.beton")
    images, labels = next(iter(loader(beton, 6, Crop(False, share=1.0), size=96)))
    files = sorted((source / "val").rglob("*.jpg"))
    assert [("china", "flower")[label] for label in labels] == [file.parent.name for file in files]
    for image, file in zip(images, files, strict=True):
        pixels = torch.from_numpy(np.asarray(Image.open(file)) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(CONFIG[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close(image.double(), (pixels - mean) / std, rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_memory_formats_hold_the_same_pixels(val, channels_last):
    expected = next(iter(loader(val, 14, Crop(False))))[0].clone()
    output = Output(CONFIG["mean"], CONFIG["std"], channels_last=channels_last)
    images, _ = next(iter(FFCVLoader(val, 14, 32, Crop(False), output)))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 20])
def test_every_validation_image_is_delivered_once(val, world_size):
    parts = [delivered(loader(val, 4, Crop(False), rank=r, world_size=world_size)) for r in range(world_size)]
    assert Counter(sum(parts, [])) == Counter(delivered(loader(val, 64, Crop(False))))
    assert sum(map(len, parts)) == len(val) == 14


def test_training_shares_are_disjoint_and_new_each_epoch(train):
    ranks = [loader(train, rank=r, world_size=2) for r in range(2)]
    orders = [[share.order(epoch) for share in ranks] for epoch in (0, 1)]
    for shares in orders:
        assert sorted(np.concatenate(shares)) == list(range(40))
    assert not np.array_equal(orders[0], orders[1])


def test_an_image_depends_on_seed_epoch_and_index_alone(train):
    def by_index(batch_size: int, epoch: int = 3, seed: int = 1, **kwargs) -> dict:
        found = loader(train, batch_size, seed=seed, **kwargs)
        found.set_epoch(epoch)
        return dict(zip(found.order(epoch).tolist(), delivered(found), strict=False))

    expected = by_index(8, workers=1)
    assert len(expected) == 40
    assert by_index(20, workers=2) == expected
    assert by_index(10, rank=0, world_size=2) | by_index(10, rank=1, world_size=2) == expected
    assert by_index(8, page_cache=False) == expected
    for other in (by_index(8, epoch=4), by_index(8, seed=2)):
        assert sum(other[index] == expected[index] for index in expected) == 0


def test_an_epoch_goes_on_where_it_is_told_to(train):
    found = loader(train)
    found.set_epoch(2)
    whole = delivered(found)
    found.set_epoch(2, first_batch=3)
    assert len(found) == 5
    assert delivered(found) == whole[24:]
    found.set_epoch(2, first_batch=5)
    assert delivered(found) == []


def test_incomplete_batches_are_dropped_in_training_only(train, val):
    assert [len(images) for images, _ in loader(train, 16)] == [16, 16]
    assert [len(images) for images, _ in loader(val, 4, Crop(False))] == [4, 4, 4, 2]


@pytest.mark.parametrize("limit", [2, 6, 50])
def test_a_limit_takes_images_from_everywhere(val, limit):
    parts = [loader(val, 4, Crop(False), rank=r, world_size=2, limit=limit) for r in range(2)]
    counts = Counter(label for part in parts for _, label in delivered(part))
    assert counts[0] == counts[1] == min(limit, 14) / 2


def test_size_changes_between_epochs(train):
    sizes = Resolutions.parse(["0:32", "2:48"], 64, 4)
    found = loader(train, size=sizes.at)
    shapes = []
    for epoch in range(4):
        found.set_epoch(epoch)
        shapes.append(next(iter(found))[0].shape[-1])
    assert shapes == [32, 32, 48, 48]


@pytest.mark.parametrize("text", ["160", "0:", "0:0", "1:160", "0:1 0:2", "0:160 9:224", "0:-1"])
def test_bad_resolution_schedules(text):
    with pytest.raises(UsageError, match="--res-schedule"):
        Resolutions.parse(text.split(), 224, 9)


def test_colours_and_erasing_are_timms_and_repeat(train):
    def run(*more: str):
        augmentation = parse_args(["resnet18", *more]).augmentation
        output = Output(CONFIG["mean"], CONFIG["std"], augment=ImageAugment.for_images(augmentation, 224))
        return next(iter(FFCVLoader(train, 8, 32, Crop(True), output)))[0].clone()

    plain, colours, erased = run(), run("--color-jitter", "0.4", "--aa", "rand-m9-mstd0.5-inc1"), run("--reprob", "1")
    torch.testing.assert_close(run("--color-jitter", "1e-9"), plain, rtol=0, atol=1e-5)
    assert (colours != plain).flatten(1).any(1).all()
    assert torch.equal(colours, run("--color-jitter", "0.4", "--aa", "rand-m9-mstd0.5-inc1"))
    assert all(0.01 < (a != b).float().mean() < 0.4 for a, b in zip(erased, plain, strict=True))


# --- what happens around it ---


def test_threads_of_torch_stay_as_they_were(train):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in loader(train, workers=1):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_leaving_epochs_early_leaks_nothing(train):
    found, process = loader(train, size=160), psutil.Process()

    def leave_early(times: int) -> tuple[int, int]:
        for epoch in range(times):
            found.set_epoch(epoch)
            for _ in found:
                break
        return threading.active_count(), process.memory_info().rss

    threads, memory = leave_early(10)
    threads_after, memory_after = leave_early(100)
    assert threads_after == threads
    assert memory_after - memory < 16 << 20  # one leaked epoch in FFCV: 8 MiB at this size


def test_memory_stays_flat_over_many_epochs(train):
    found, process = loader(train, size=96), psutil.Process()

    def epochs(numbers: range) -> int:
        for epoch in numbers:
            found.set_epoch(epoch)
            assert sum(len(images) for images, _ in found) == 40
        return process.memory_info().rss

    before = epochs(range(10))
    assert epochs(range(10, 60)) - before < 4 << 20


def test_an_error_in_the_loop_leaves_the_loader_usable(train):
    found = loader(train)
    with pytest.raises(ZeroDivisionError):
        for _ in found:
            raise ZeroDivisionError
    assert len(delivered(found)) == 40


def test_more_workers_than_cores_or_images(train):
    assert usable_threads(1000) <= (os.cpu_count() or 1) and usable_threads(0) == 1
    assert len(delivered(loader(train, 1, workers=1000))) == 40


def test_damage_in_a_picture_arrives_where_the_batch_is_awaited(betons, tmp_path):
    path = tmp_path / "train.beton"
    shutil.copy(betons / "train_140_0.50_90.beton", path)
    beton = Beton.open(path)
    victim = int(np.flatnonzero(beton.images["mode"] == 0)[3])
    with path.open("r+b") as file:
        file.seek(int(beton.images["data_ptr"][victim]))
        file.write(bytes(64))
    with pytest.raises(DataError, match=rf"^rank 0: .*train.beton: image {victim} is damaged"):
        delivered(loader(Beton.open(path)))
    assert len(delivered(loader(Beton.open(betons / "train_140_0.50_90.beton")))) == 40
    kept = beton.without_broken()
    assert len(kept) == len(delivered(loader(kept, 1))) == 39 and victim not in kept.kept


@pytest.mark.parametrize(
    "sides",
    [
        pytest.param((1200, 1), id="pages of 8 and 16 MiB"),
        pytest.param((1, 6000, 3000), id="30x30 to 6000x6000", marks=pytest.mark.slow),
    ],
)
def test_files_of_different_pages_are_read_in_one_process(train, tmp_path, sides):
    """What is compiled for one file must not break the next; `train` has pages of 8 MiB."""
    files, pages = [(train, 40)], {train.reader.page_size}
    for side in sides:
        source = write_photographs(tmp_path / f"{side}", 2, 1)
        noise = np.random.default_rng(0).integers(0, 256, (side + 30, side + 30, 3), np.uint8)
        Image.fromarray(noise).resize((side + 130, side) if side > 100 else (30, 30)).save(
            source / "train/china/large.png"
        )
        Image.fromarray(noise[:30, :30]).save(source / "train/china/small.png")
        write_both(source, tmp_path / f"{side}-betons", Storage(0, 0.0, 90))
        files.append((Beton.open(tmp_path / f"{side}-betons/train_0_0.00_90.beton"), 6))
        pages.add(files[-1][0].reader.page_size)
    assert len(pages) >= 2
    for page_cache in (True, False, True):
        for beton, count in (*files, files[0]):
            images = [*delivered(loader(beton, 2, page_cache=page_cache)), *delivered(loader(beton, 2, Crop(False)))]
            assert len(images) == 2 * count


SCRIPT = """
import signal, sys
from pathlib import Path
from subp_dist.data.beton import Beton
from subp_dist.data.ffcv_loader import Crop, FFCVLoader, Output
loader = FFCVLoader(Beton.open(Path(sys.argv[1])), 4, 32, Crop(True), Output((0.5,) * 3, (0.5,) * 3))
batches = iter(loader)
next(batches)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
print("ready", flush=True)
epoch = 0
while True:
    loader.set_epoch(epoch := epoch + 1)
    for _ in loader:
        pass
"""


def test_ctrl_c_ends_a_program_that_is_loading(train):
    command = [sys.executable, "-c", SCRIPT, str(train.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=500)
    finally:
        process.kill()
    # 1 where what a library runs at the end of the process makes Python forget that it was interrupted.
    assert process.returncode in (-signal.SIGINT, 1)
    assert "\nKeyboardInterrupt" in errors and "Exception ignored" not in errors, errors


# --- damaged files ---


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: b"", "the file is empty"),
        (lambda whole: whole[:10], "cut off or damaged: it has 10 bytes"),
        (lambda whole: whole[: len(whole) // 2], "cut off or damaged"),
        (lambda whole: whole[:-24], "should hold 40 images, and the data of 39 are there"),
        (lambda whole: whole[:-1], "cut off or damaged"),
        (lambda whole: b"\x89PNG" * 3000, "not a .beton file"),
        (lambda whole: b"\x03" + whole[1:], r"not a .beton file of format 2 \(its header says 3\)"),
        (lambda whole: whole[:5] + b"\x01" + whole[6:], "its pages should have 8388864 bytes"),
        (lambda whole: whole[:16] + bytes(8) + whole[24:], "its writer did not finish"),
        (lambda whole: whole[:8] + bytes(8) + whole[16:], "holds no images"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(train, tmp_path, damage, message):
    path = tmp_path / "train.beton"
    path.write_bytes(damage(train.path.read_bytes()))
    with pytest.raises(UsageError, match=message):
        Beton.open(path)


def test_the_sidecar_must_belong_to_the_file(train, tmp_path):
    path = tmp_path / "train.beton"
    shutil.copy(train.path, path)
    content = json.loads(sidecar_of(train.path).read_text())
    for change, message in (
        ({"bytes": 5}, "train.beton.json says 5"),
        ({"images": 41}, "says 41"),
        ({"class_to_idx": {"china": 0}}, "has the label 1"),
        ({"class_to_idx": {"china": 0, "flower": 2}}, "not numbered from 0"),
    ):
        sidecar_of(path).write_text(json.dumps(content | change))
        with pytest.raises(UsageError, match=message):
            Beton.open(path)
    sidecar_of(path).write_text("{")
    with pytest.raises(UsageError, match=r"train.beton.json: damaged"):
        Beton.open(path)


# --- the data of a run ---


def test_auto_takes_betons_and_says_so(betons, caplog):
    caplog.set_level("INFO")
    data = opened(betons)
    assert data.loader == "ffcv" and data.class_names == ["china", "flower"] and data.num_classes == 2
    assert "loader: ffcv, because train_140_0.50_90.beton and val_140_0.50_90.beton are there" in caplog.text
    images, labels = next(iter(data.train_loader(Rank(0, 1, CPU), seed=42)))
    assert images.shape == (8, 3, 64, 64) and labels.dtype == torch.int64
    assert "fit into" in caplog.text


def validation_images(folder: Path, *more: str) -> tuple[torch.Tensor, list[int]]:
    batches = opened(folder, *more).val_loader(Rank(0, 1, CPU))
    images, labels = zip(*((images.clone(), labels) for images, labels in batches), strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "share"), [("64", "0.875"), ("47", "0.95"), ("224", "1")])
def test_both_loaders_see_the_same_validation_images(photographs, raw, interpolation, size, share):
    more = ["--interpolation", interpolation, "--img-size", size, "--crop-pct", share]
    (expected, labels), (images, ffcv_labels) = (validation_images(folder, *more) for folder in (photographs, raw))
    assert labels == ffcv_labels
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)


def test_jpeg_is_decoded_like_pillow_does(val):
    """FFCV takes libjpeg-turbo's fast transform, Pillow the accurate one: about one of 255 levels between them."""
    content = val.path.read_bytes()
    transform = timm.data.create_transform((3, 64, 64), crop_pct=0.875, interpolation="bilinear", normalize=False)
    images = torch.cat([i.clone() for i, _ in FFCVLoader(val, 14, 64, Crop(False), Output((0.0,) * 3, (1 / 255,) * 3))])
    sizes = dict(zip(val.reader.alloc_table["ptr"].tolist(), val.reader.alloc_table["size"].tolist(), strict=True))
    jpegs = np.flatnonzero(val.images["mode"] == 0)
    assert len(jpegs)
    for index in jpegs:
        start = int(val.images["data_ptr"][index])
        picture = Image.open(io.BytesIO(content[start : start + sizes[start]]))
        difference = (images[index] - transform(picture)).abs()
        assert difference.max() <= 8 and difference.mean() < 1.5


def test_auto_without_ffcv(photographs, betons, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    find = choice.importlib.util.find_spec
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None if name == "ffcv" else find(name))
    with pytest.raises(UsageError, match=r"need ffcv, which is not installed: launch/setup.sh installs it"):
        opened(betons)
    for part in (*betons.iterdir(), *photographs.iterdir()):
        (tmp_path / part.name).symlink_to(part)
    assert opened(tmp_path).loader == "timm"
    assert "loader: timm, because ffcv" in caplog.text


def test_a_program_without_ffcv_says_what_to_install(betons, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(UsageError, match=r"cannot be imported .*launch/setup.sh installs it"):
        opened(betons, "--loader", "ffcv")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--in-chans", "1"], "hold colour pictures"),
        (["--num-classes", "1"], "the data has 2 classes"),
        (["--batch-size", "64"], "less than a batch of 64"),
        (["--loader", "timm"], "holds .beton files: leave --loader out"),
        (["--res-schedule", "5:32"], "--res-schedule"),
        (["--aa", "foo"], "--aa foo: .*policies such as"),
        (["--mean", "0.5", "0.5"], "--mean 0.5 0.5: expected one value or 3"),
        (["--train-split", "fit"], "found only val_140_0.50_90.beton, and no file of the split 'fit'"),
    ],
)
def test_what_is_refused(betons, more, message):
    with pytest.raises(UsageError, match=message):
        opened(betons, *more).train_loader(Rank(0, 1, CPU), seed=42)


def test_pictures_are_read_whatever_files_lie_beside_them(photographs, tmp_path):
    for split in photographs.iterdir():
        (tmp_path / split.name).symlink_to(split)
    for name in ("train_500_0.50_90.beton", "train_256_1.00_90.beton"):
        (tmp_path / name).touch()
    assert len(opened(tmp_path, "--loader", "timm").train) == 40
    with pytest.raises(UsageError, match="several files of the split 'train'"):
        opened(tmp_path)


def test_ffcv_on_folders_says_how_to_write(photographs):
    with pytest.raises(UsageError, match=r"--loader ffcv: .* has no .beton files \(launch/write_ffcv.sh writes them"):
        opened(photographs, "--loader", "ffcv")


def test_other_classes_in_validation_are_refused(photographs, betons, tmp_path):
    (tmp_path / "pictures/val/tree").mkdir(parents=True)
    shutil.copy(next((photographs / "val/china").iterdir()), tmp_path / "pictures/val/tree/0.jpg")
    pictures = open_pictures("", str(tmp_path / "pictures"), "val")
    write(tmp_path / "val.beton", pictures, [0], Storage(), 1, 160 * 160)
    for file in betons.glob("train*"):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(
        UsageError,
        match="train_140_0.50_90.beton and val.beton.* only in validation: tree",
    ):
        opened(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_list_of_classes_is_named(betons, tmp_path, split):
    for file in betons.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / f"{split}_140_0.50_90.beton.json").unlink()
    with pytest.raises(UsageError, match=f"{split}_140_0.50_90.beton.json: no such file; it names the classes"):
        opened(tmp_path)


def test_several_files_of_a_split(tmp_path):
    for name in ("train_500_0.50_90.beton", "train_256_1.00_90.beton"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="several files of the split 'train'"):
        find_beton(tmp_path, ("train",))
    assert find_beton(tmp_path, ("train_256_1.00_90",)).name == "train_256_1.00_90.beton"
    (tmp_path / "train.beton").touch()
    assert find_beton(tmp_path, ("train",)).name == "train.beton"


def test_reading_by_file_size_and_memory():
    assert choose_reading(10, 100, 1)[0]
    assert not choose_reading(1000, 100, 1)[0]
    assert choose_reading(1000, 100, 2)[0]
    assert choose_reading(1000, 100, 1, ordered=True)[0]


# --- whole runs ---


def judged(weights: Path, pictures: Path) -> dict[str, float]:
    """Loss and top-1 of a run's weights on class folders, by torchvision's reader and timm's transform."""
    model = timm.create_model("test_resnet", num_classes=2).eval()
    model.load_state_dict(load_file(weights))
    settings = {key: CONFIG[key] for key in ("mean", "std", "crop_pct")}
    transform = timm.data.create_transform((3, 64, 64), interpolation="bicubic", **settings)
    images, labels = zip(*ImageFolder(str(pictures), transform), strict=True)
    with torch.inference_mode():
        logits, labels = model(torch.stack(images)), torch.tensor(labels)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"loss": loss.item(), "top1": 100 * (logits.argmax(1) == labels).double().mean().item()}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_runs_on_betons_count_every_validation_image_once(tmp_path, ranks):
    """13 pictures do not divide among two ranks, nor into batches of four."""
    pictures = write_photographs(tmp_path / "pictures", 16, 7)
    (pictures / "val/flower/006.jpg").unlink()
    write_both(pictures, tmp_path, Storage(0, 0.0, 90))
    flags = ["test_resnet", "--data-dir", tmp_path, "--img-size", "64", "--crop-pct", "0.875", "--workers", "1"]
    flags += ["--mean", *CONFIG["mean"], "--std", *CONFIG["std"], "--interpolation", "bicubic", "--no-export"]
    flags += ["--epochs", "2", "--prune-start", "0", "--prune-end", "1", "--batch-size", "4", "--lr", "0.01"]
    where = ["--output", tmp_path / "out", "--experiment", "run"]
    torchrun = ["--standalone", f"--nproc-per-node={ranks}", "-m", "subp_dist.train"]
    command = [*LAUNCH, *torchrun, *map(str, flags + where)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "out/run"
    with (folder / "summary.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    expected = judged(folder / "model.safetensors", pictures / "val")
    assert float(last["val_top1"]) == pytest.approx(expected["top1"], abs=1e-9)
    assert float(last["val_loss"]) == pytest.approx(expected["loss"], rel=1e-4)
    report = json.loads((folder / "report.json").read_text())
    assert report["timings"]["loader"] == "ffcv" and report["timings"]["ranks"] == ranks


def test_benchmark_measures_both_loaders(photographs, betons):
    betons = {Storage(140, 0.5, 90): Beton.open(betons / "train_140_0.50_90.beton")}
    rows = data_bench.measure(photographs / "train", betons, batch_size=8, img_size=32, workers=1, seconds=0.1)
    assert [(row["loader"], row["storage"], row["resolution"]) for row in rows] == [
        ("torchvision", "jpeg", None),
        ("ffcv", "mixed", 140),
    ]
    assert all(row["images_per_s"] > 0 and row["workers"] == 1 for row in rows)
    assert "1.00x" in data_bench.as_table(rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "--workers 0: expected more than 0"),
        (["--batch-size", "0"], "--batch-size 0: expected more than 0"),
        (["--seconds", "0"], "--seconds 0.0: expected more than 0"),
        (["--seconds", "nan"], "--seconds nan: expected more than 0"),
    ],
)
def test_what_the_benchmark_refuses(photographs, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sys, "argv", ["bench", str(photographs), *more])
    with pytest.raises(SystemExit) as end:
        data_bench.cli()
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--vflip", "0.5"], ["--no-aug"], ["--train-interpolation", "random"]])
def test_what_is_done_to_pictures_alone_is_refused_by_name(betons, flags):
    with pytest.raises(UsageError, match=f"{' '.join(flags[:2]) if 'random' in flags else flags[0]}: .*--loader timm"):
        opened(betons, *flags)
