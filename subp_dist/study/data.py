"""The images of a study: the first ones of each class, as links, and as ``.beton`` files where the study asks so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ..data.storage import Storage
from ..errors import UsageError
from .grid import Grid


def prepare(data: Path, folder: Path, grid: Grid) -> Path:
    """The folder that the runs read: ``data``, or one like it with fewer training images; validation is whole.

    Args:
        data: folder with the splits of the study, each a folder of class folders; all of it may be ``.beton`` files
            where the study takes all images.
        folder: where links and ``.beton`` files go; made anew if it holds others than it should.
        grid: the study.

    Raises:
        UsageError: there is no such data, or a class has fewer images.
    """
    if not data.is_dir():
        raise UsageError(
            f"--data-dir {data}: no such folder; expected one with {grid.splits[0]}/ and {grid.splits[1]}/"
        )
    if grid.images_per_class is None:
        return data
    links = _links(data, grid)
    betons = {f"{name}_{Storage.parse(grid.beton)}.beton" for name in ("train", "val")} if grid.beton else set()
    found = {path.relative_to(folder): path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    if found == links and {path.name for path in folder.glob("*.beton")} == betons:
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    for old in (temporary, folder):
        if old.exists():
            shutil.rmtree(old)
    for to, target in links.items():
        (temporary / to).parent.mkdir(parents=True, exist_ok=True)
        (temporary / to).symlink_to(target)
    if betons:
        writer = [sys.executable, "-m", "subp_dist.data.write", *map(str, (temporary, temporary)), grid.beton]
        if subprocess.run([*writer, "--train-split", grid.splits[0], "--val-split", grid.splits[1]]).returncode:
            raise UsageError("the images could not be written as .beton files, see above; leave beton out of the study")
    temporary.replace(folder)
    return folder


def _links(data: Path, grid: Grid) -> dict[Path, Path]:
    """Training images and other splits, by where they are linked to, relative to the new folder."""
    train = grid.splits[0]
    links = {Path(path.name): path.resolve() for path in data.iterdir() if path.is_dir() and path.name != train}
    classes = sorted(path for path in (data / train).glob("*") if path.is_dir())
    if not classes:
        raise UsageError(f"--data-dir {data}: expected {train}/ with a folder per class in it")
    for folder in classes:
        images = sorted(path for path in folder.iterdir() if path.is_file())[: grid.images_per_class]
        if len(images) < grid.images_per_class:
            raise UsageError(
                f"{folder} has {len(images)} images; the study asks for {grid.images_per_class} of each class"
            )
        links |= {image.relative_to(data): image.resolve() for image in images}
    return links
