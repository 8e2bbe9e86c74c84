"""subp_dist.data: the built-in digits, folders of pictures, shares of ranks, and what is refused.

Folders are made of the digits themselves as PNG files, 3 classes of 14 and 7 pictures.
"""

import multiprocessing
import os
import shutil
import signal
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from subp_dist.data import Data, create_data
from subp_dist.data.digits import Digits, load_digits
from subp_dist.errors import DataError, UsageError
from subp_dist.options import parse_args
from subp_dist.process_group import Rank

CONFIG = {"input_size": (3, 224, 224), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_pct": 0.9}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    pixels, labels = load_digits()
    for split, start, count in (("train", 0, 14), ("val", 100, 7)):
        for digit in range(3):
            folder = root / split / f"digit{digit}"
            folder.mkdir(parents=True)
            for index, image in enumerate(pixels[labels == digit][start : start + count]):
                Image.fromarray(np.stack([image] * 3, -1)).save(folder / f"{index}.png")
    return root


def opened(*flags: str) -> Data:
    given = parse_args(["resnet18", *flags])
    return create_data(given.data, given.augmentation, CONFIG, given.optimization.epochs)


def rank(index: int, world_size: int) -> Rank:
    return Rank(index, world_size, torch.device("cpu"))


def test_digits_are_real_and_split_by_class():
    train, test = Digits(train=True), Digits(train=False)
    assert (len(train), len(test)) == (4000, 1000)
    assert set(Counter(test.labels.tolist()).values()) == {100}
    both = {image.numpy().tobytes() for image in train.pixels} & {image.numpy().tobytes() for image in test.pixels}
    assert not both, "a picture is in both splits"


def test_digits_have_the_size_asked_for():
    image, label = Digits(train=False, size=40)[0]
    assert image.shape == (1, 40, 40) and image.dtype == torch.float32 and label == 0


def test_the_start_tells_how_many_images_there_are(pictures, caplog):
    caplog.set_level("INFO")
    opened("--data-dir", str(pictures))
    assert "images: 42 for training, 21 for validation; 3 classes" in caplog.text


def test_folders_of_pictures(pictures):
    data = opened("--data-dir", str(pictures), "--img-size", "32")
    assert (data.num_classes, data.input_size) == (3, (3, 32, 32))
    assert data.class_names == ["digit0", "digit1", "digit2"]
    image, label = data.val[0]
    assert image.shape == (3, 32, 32) and label in (0, 1, 2)
    # A black corner, normalised with the model's mean and std.
    assert torch.allclose(image[:, 0, 0], -torch.tensor(CONFIG["mean"]) / torch.tensor(CONFIG["std"]), atol=1e-5)


def test_grey_pictures_get_grey_statistics(pictures):
    data = opened("--data-dir", str(pictures), "--img-size", "32", "--in-chans", "1")
    assert data.input_size == (1, 32, 32) and data.mean == pytest.approx((0.4,))
    assert data.train[0][0].shape == (1, 32, 32)


def test_one_mean_serves_all_channels(pictures):
    data = opened("--data-dir", str(pictures), "--img-size", "32", "--mean", "0.5")
    assert data.mean == (0.5,) * 3 and data.std == CONFIG["std"]


@pytest.fixture
def imagenet(pictures, tmp_path):
    """The folders as torchvision's ImageNet, which has several names for a class, and one for several classes."""
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(pictures / split)
    names = {"digit0": ("crane", "Grus grus"), "digit1": ("goldfish", "Carassius auratus"), "digit2": ("crane",)}
    torch.save((names, []), tmp_path / "meta.bin")
    return tmp_path


def write_mnist(root: Path) -> Path:
    """Six digits for training and three for testing, in MNIST's own format."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    pixels, labels = load_digits()
    for split, chosen in (("train", slice(0, 5000, 900)), ("t10k", slice(7, 5000, 2000))):
        count = len(labels[chosen])
        images = struct.pack(">4i", 0x803, count, 28, 28) + pixels[chosen].tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images)
        label_bytes = labels[chosen].astype(np.uint8).tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + label_bytes)
    return root


def test_the_classes_of_an_imagenet_are_its_folders(imagenet):
    data = opened("--dataset", "torch/imagenet", "--data-dir", str(imagenet), "--img-size", "32")
    assert data.num_classes == 3 and data.class_names == ["digit0", "digit1", "digit2"]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_get_the_channels_asked_for(imagenet, tmp_path, channels):
    # MNIST is grey, and torchvision reads ImageNet in colours.
    for dataset, root in (("torch/mnist", write_mnist(tmp_path)), ("torch/imagenet", imagenet)):
        where = ["--dataset", dataset, "--data-dir", str(root)]
        data = opened(*where, "--img-size", "32", "--in-chans", str(channels))
        assert data.train[0][0].shape == data.val[0][0].shape == (channels, 32, 32)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("limit", [1, 10, 30, 999, 2000])
def test_a_limit_takes_images_from_everywhere(limit, world_size):
    # The digits are sorted by class.
    data = opened("--data-dir", "builtin", "--batch-size", "64")
    loaders = [data.val_loader(rank(index, world_size), limit=limit) for index in range(world_size)]
    counts = Counter(label for loader in loaders for _, labels in loader for label in labels.tolist())
    assert counts.total() == min(limit, 1000) and len(counts) == min(limit, 10)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_every_validation_picture_is_delivered_once(pictures, world_size):
    data = opened("--data-dir", str(pictures), "--img-size", "16", "--batch-size", "4", "--workers", "0")
    loaders = [data.val_loader(rank(index, world_size)) for index in range(world_size)]
    delivered = [image.numpy().tobytes() for loader in loaders for images, _ in loader for image in images]
    expected = [data.val[index][0].numpy().tobytes() for index in range(len(data.val))]
    assert sorted(delivered) == sorted(expected)


def test_training_shares_are_disjoint_and_new_each_epoch():
    data = opened("--data-dir", "builtin", "--batch-size", "64")
    samplers = [data.train_loader(rank(index, 2), seed=42).sampler for index in range(2)]
    orders = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert not set(shares[0]) & set(shares[1])
        orders.append(shares)
    assert orders[0] != orders[1]


def batches_of(loader) -> list[torch.Tensor]:
    return [images for images, _ in loader]


def train_loader(pictures, workers: int):
    return opened(
        "--data-dir", str(pictures), "--img-size", "32", "--batch-size", "4", "--workers", str(workers)
    ).train_loader(rank(0, 1), seed=42)


def test_an_epoch_continues_anywhere_with_the_same_images(pictures):
    # 42 pictures, cropped and flipped at random: 10 batches.
    loader = train_loader(pictures, workers=0)
    loader.set_epoch(3)
    whole = batches_of(loader)
    loader.set_epoch(3, first_batch=6)
    assert len(whole) == len(loader) == 10
    assert torch.equal(torch.stack(batches_of(loader)), torch.stack(whole[6:]))
    loader.set_epoch(4)
    assert not any(torch.equal(a, b) for a, b in zip(batches_of(loader), whole, strict=True))


def test_images_do_not_depend_on_the_processes_that_load_them(pictures):
    alone, helped = train_loader(pictures, workers=0), train_loader(pictures, workers=2)
    assert torch.equal(torch.stack(batches_of(alone)), torch.stack(batches_of(helped)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_outlive_the_signal_that_stops_a_job(pictures, split):
    data = opened("--data-dir", str(pictures), "--img-size", "32", "--batch-size", "4", "--workers", "1")
    loader = data.train_loader(rank(0, 1), seed=42) if split == "train" else data.val_loader(rank(0, 1))
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == len(loader) - 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data-dir", "{root}/nowhere"], "no such folder"),
        (["--data-dir", "{root}/train"], "it has no train/"),
        (["--data-dir", "{root}", "--train-split", "fit"], "it has no fit/"),
        (["--data-dir", "{root}", "--num-classes", "2"], "the data has 3 classes"),
        (["--data-dir", "{root}", "--in-chans", "4"], "grey .1. or colour .3."),
        (["--data-dir", "builtin", "--in-chans", "3"], "digits are grey"),
        (["--data-dir", "builtin", "--num-classes", "9"], "digits have 10"),
        (["--dataset", "nothing", "--data-dir", "{root}"], "expected PREFIX/NAME"),
        (["--data-dir", "{root}/train", "--train-split", "digit0", "--val-split", "digit1"], "not in class folders"),
        (["--dataset", "torch/nothing", "--data-dir", "{root}"], "cannot read the split 'train'"),
        (["--data-dir", "{root}", "--batch-size", "64"], "less than a batch of 64"),
        (["--dataset", "torch/mnist"], "set --data-dir"),
        (["--dataset", "Torch/mnist"], "set --data-dir"),
        (["--data-dir", "{root}", "--color-jitter", "-1"], "--color-jitter -1.0: expected 0 or more"),
        (["--data-dir", "{root}", "--aa", "randfoo"], "--aa randfoo: no policy of timm"),
        (["--data-dir", "{root}", "--mean", "0.5", "0.5"], "--mean 0.5 0.5: expected one value or 3"),
        (["--data-dir", "{root}", "--std", "1", "1", "1", "--in-chans", "1"], "--std .*: expected one value or 1"),
        (["--data-dir", "{root}", "--aa", "foo"], "--aa foo: .*policies such as"),
        (["--data-dir", "{root}", "--aa", "rand-m9.5"], "--aa rand-m9.5: .*policies such as"),
    ],
)
def test_what_is_refused(pictures, more, message):
    with pytest.raises(UsageError, match=message):
        opened(*(flag.format(root=pictures) for flag in more)).train_loader(rank(0, 1), seed=42)


def test_splits_with_other_classes_are_refused(pictures, tmp_path):
    (tmp_path / "train").symlink_to(pictures / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/digit0").symlink_to(pictures / "val/digit0")
    with pytest.raises(
        UsageError, match=r"training \(3\) and validation \(1\) differ; only in training: digit1, digit2"
    ):
        opened("--data-dir", str(tmp_path))


def test_the_validation_split_may_be_called_test(pictures, tmp_path):
    (tmp_path / "train").symlink_to(pictures / "train")
    (tmp_path / "test").symlink_to(pictures / "val")
    data = opened("--data-dir", str(tmp_path))
    assert len(data.val) == len(list((pictures / "val").rglob("*.*")))


def test_an_empty_split_is_refused(pictures, tmp_path):
    (tmp_path / "train").symlink_to(pictures / "train")
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="cannot read the split 'validation'"):
        opened("--data-dir", str(tmp_path))


def test_broken_pictures_are_left_out_if_asked(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "data")
    for name in ("train/digit0/3.png", "val/digit2/1.png"):
        (tmp_path / "data" / name).write_bytes(b"")
    flags = ["--data-dir", str(tmp_path / "data"), "--img-size", "16", "--batch-size", "4", "--workers", "0"]
    data = opened(*flags, "--broken", "skip")
    assert (len(data.train), len(data.val)) == (41, 20)
    assert sum(len(labels) for _, labels in data.val_loader(rank(0, 1))) == 20
    assert len(list(data.train_loader(rank(0, 1), seed=1))) == 10
    said = capsys.readouterr().err
    assert "train/digit0/3.png: UnidentifiedImageError" in said and "left out: 1 of 42" in said
    with pytest.raises(DataError, match=r"rank 0: .*val/digit2/1.png: cannot be read"):
        list(opened(*flags).val_loader(rank(0, 1)))


def test_digits_are_varied_and_normalised_as_asked():
    def some(*flags: str) -> torch.Tensor:
        train = opened("--data-dir", "builtin", *flags).train
        torch.manual_seed(3)
        return torch.stack([train[index][0] for index in range(20)])

    pixels = Digits(train=True).pixels[:20] / 255
    plain, shifted = some("--no-aug"), some()
    torch.testing.assert_close(plain, (pixels - 0.1307) / 0.3081)
    torch.testing.assert_close(some("--no-aug", "--mean", "0", "--std", "1"), pixels)
    assert not torch.equal(shifted, plain)
    assert torch.equal(plain, some("--no-aug", "--reprob", "1", "--aa", "rand-m9", "--color-jitter", "0.9"))
    for flags in (["--reprob", "1", "--remode", "pixel"], ["--aa", "rand-m9-inc1"], ["--color-jitter", "0.9"]):
        varied = some(*flags)
        assert varied.shape == shifted.shape and not torch.equal(varied, shifted), flags
    data = opened("--data-dir", "builtin", "--mean", "0", "--std", "1", "--reprob", "1")
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    torch.testing.assert_close(data.val[0][0], Digits(train=False).pixels[0] / 255)  # validation is not varied


@pytest.mark.parametrize(
    "flags", [["--vflip", "0.5"], ["--hflip", "0"], ["--crop-pct", "0.5"], ["--scale", "0.5", "1"]]
)
def test_what_is_not_done_to_digits_is_refused(flags):
    with pytest.raises(UsageError, match=f"{flags[0]}: the built-in digits are shifted, not cropped or flipped"):
        opened("--data-dir", "builtin", *flags)


def test_pictures_are_flipped_or_left_alone_as_asked(pictures):
    size = ["--data-dir", str(pictures), "--img-size", "28", "--hflip", "0"]
    whole = [*size, "--scale", "1", "1", "--ratio", "1", "1"]
    picture = opened(*whole).train[4][0]
    torch.testing.assert_close(opened(*whole, "--vflip", "1").train[4][0], picture.flip(1))
    torch.testing.assert_close(opened(*size, "--no-aug", "--vflip", "1", "--reprob", "1").train[4][0], picture)
    erased = opened(*whole, "--reprob", "1", "--remode", "const", "--recount", "1").train[4][0]
    changed = (erased != picture).any(0)
    assert changed.any() and (erased[:, changed] == 0).all()


def test_the_filter_of_training_may_be_another(pictures):
    flags = ["--data-dir", str(pictures), "--img-size", "40", "--no-aug"]
    box, cubic = (opened(*flags, "--train-interpolation", name) for name in ("box", "bicubic"))
    assert not torch.equal(box.train[0][0], cubic.train[0][0])
    assert torch.equal(box.val[0][0], cubic.val[0][0])
    assert opened(*flags[:4], "--train-interpolation", "random").train[0][0].shape == (3, 40, 40)
