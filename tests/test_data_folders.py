"""Which files of a folder are pictures: formats, hidden files, links in circles, lost classes; and strict reading.

Two classes of three PNG files of 8 x 8 pixels, with other files beside them.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from subp_dist.data.folders import ClassFolders, readable_extensions
from subp_dist.data.pictures import Pictures
from subp_dist.data.splits import open_split
from subp_dist.errors import DataError, UsageError


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"train/{name}/{index}.png")
    return tmp_path


def found(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path, _ in ClassFolders(str(root)).samples}


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".bmp", ".gif", ".jp2", ".ppm", ".TIFF", ".tga"])
def test_every_format_that_pillow_reads_is_a_picture(root, suffix):
    (root / "train/emu").mkdir()
    Image.new("RGB", (8, 8)).save(root / f"train/emu/0{suffix}")
    pictures = Pictures(open_split("", str(root), "train"))
    assert len(pictures) == 7
    picture, label = pictures[6]
    assert (picture.mode, picture.size, label) == ("RGB", (8, 8), 2)


def test_heic_is_read_where_its_plugin_is_installed(root):
    plugin = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install pillow-heif")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    plugin.from_pillow(Image.fromarray(pixels)).save(root / "train/cat/IMG_1.HEIC", quality=90)
    readable_extensions.cache_clear()
    pictures = Pictures(open_split("", str(root), "train"))
    assert len(pictures) == 7
    picture, label = pictures[3]
    assert (picture.mode, picture.size, label) == ("RGB", (96, 64), 0)
    assert np.abs(np.asarray(picture, float) - pixels).mean() < 12


def test_formats_that_pillow_only_knows_are_none():
    assert {".jpg", ".jpeg", ".png"} < readable_extensions()
    assert not {".pdf", ".mpg", ".h5", ".grib", ".txt"} & readable_extensions()


def test_hidden_files_and_folders_are_left_out_and_counted(root, caplog):
    picture = root / "train/cat/0.png"
    for name in (".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/0.png", "__MACOSX/cat/._0.png"):
        (root / "train" / name).parent.mkdir(parents=True)
        (root / "train" / name).write_bytes(picture.read_bytes())
    (root / "train/cat/._0.png").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    (root / "train/cat/.DS_Store").write_bytes(b"Bud1")
    (root / "train/dog/notes.txt").write_text("a dog")
    (root / "train/dog/3.dng").write_bytes(bytes(9))
    assert len(Pictures(open_split("", str(root), "train"))) == 6
    assert "cat: 3 of 6 (3 hidden, such as .DS_Store)" in caplog.text
    assert "dog: 2 of 5 (1 .dng, such as 3.dng (raw files of a camera: " in caplog.text
    assert "convert to JPEG), 1 .txt, such as notes.txt)" in caplog.text


def test_links_in_circles_are_not_followed(root):
    (root / "train/cat/self").symlink_to(root / "train/cat")
    (root / "train/cat/up").symlink_to(root)  # where val/ would be found, too
    (root / "train/emu").symlink_to(root / "train/dog")  # not a circle
    assert found(root / "train") == {f"{name}/{index}.png" for name in ("cat", "dog", "emu") for index in range(3)}
    reader = ClassFolders(str(root / "train"))
    assert reader.left_out["cat"] == {"link to a folder above": 2}
    assert list(reader.class_to_idx) == [
        "cat",
        "dog",
        "emu",
    ]


@pytest.mark.parametrize(
    ("names", "told"),
    [(["a.dng", "b.dng"], r"2 \.dng, such as a\.dng"), (["._a.png"], "1 hidden"), ([], "empty")],
)
def test_a_class_that_would_vanish_is_an_error(root, names, told):
    (root / "train/emu").mkdir()
    for name in names:
        (root / "train/emu" / name).write_bytes(b"0")
    with pytest.raises(
        UsageError, match=rf"no picture that can be read in .*train/emu \({told}.*a class would be lost"
    ):
        open_split("", str(root), "train")


def test_order_and_labels_are_timms(root):
    from timm.data.readers.reader_image_folder import find_images_and_targets

    for name in ("dog10", "dog9"):
        (root / "train/more" / name).mkdir(parents=True)
        for index in (10, 9):
            Image.new("RGB", (8, 8)).save(root / f"train/more/{name}/{index}.png")
    reader = ClassFolders(str(root / "train"))
    assert (reader.samples, reader.class_to_idx) == find_images_and_targets(str(root / "train"))


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_broken_picture_is_named_and_not_replaced(root, content):
    victim = root / "train/dog/1.png"
    victim.write_bytes(victim.read_bytes()[:40] if content is None else content)
    pictures = Pictures(open_split("", str(root), "train"))
    with pytest.raises(DataError, match=r"train/dog/1.png: cannot be read \(.*--broken skip"):
        pictures[4]
    assert pictures[5][1] == 1


def test_a_transform_that_fails_names_the_picture(root):
    pictures = Pictures(open_split("", str(root), "train"), transform=lambda picture: 1 // 0)
    with pytest.raises(DataError, match=r"cat/0.png: its augmentation or resize failed \(ZeroDivisionError"):
        pictures[0]
