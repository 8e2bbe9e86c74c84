"""Draws the letters of the study: ``python -m subp_dist.study.letters OUTPUT --fonts FOLDER``.

A to J as 32x32 pictures in ``train/`` and ``test/``, folders of class folders: turned, moved, in two
greys. A family of typefaces is in one of the two alone: a network is asked for letters of typefaces it has not seen.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checkpoint import check_writable
from ..errors import UsageError, report_usage_errors
from ..flag_values import as_path

LETTERS = "ABCDEFGHIJ"
SIZE = 32
_CANVAS = 64  # drawn at twice the size, so that edges are smooth
_CONTRAST = 64  # of two greys, at least
_TURN = 25  # degrees at most, either way
_TEST_SHARE = 3  # every third family is for testing
_MOST_PER_FAMILY = 4  # typefaces, or families of dozens of weights would be most of the pictures


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m subp_dist.study.letters", description=__doc__.split("\n\n")[0])
    parser.add_argument("output", type=as_path, metavar="OUTPUT", help="new folder of the pictures")
    parser.add_argument("--fonts", type=as_path, default=Path("/usr/share/fonts"), help="folder of .ttf and .otf files")
    parser.add_argument("--train", type=int, default=600, help="pictures of each letter to learn; 600")
    parser.add_argument("--test", type=int, default=1000, help="and to test; 1000")
    args = parser.parse_args()
    if args.output.exists():
        raise UsageError(f"{args.output} is there already; give the name of a new folder")
    for flag, count in (("--train", args.train), ("--test", args.test)):
        if count < 1:
            raise UsageError(f"{flag} {count}: expected 1 or more")
    check_writable(args.output)
    groups = split(families(args.fonts))
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=f".{args.output.name}-") as unfinished:
        for (name, faces), count in zip(groups.items(), (args.train, args.test), strict=True):
            draw_all(Path(unfinished, "all", name), faces, count, np.random.default_rng(len(name)))
            print(f"{name}: {count} pictures of each of {len(LETTERS)} letters, in {len(faces)} typefaces")
        Path(unfinished, "all").rename(args.output)


def families(folder: Path) -> dict[str, list[Path]]:
    """Typefaces by family, both in alphabetical order, of those that have all letters.

    Raises:
        UsageError: there are fewer than three families.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf")):
        with contextlib.suppress(OSError, ValueError):  # bitmaps of other sizes, damaged files
            font = ImageFont.truetype(str(path), 24)
            if _has_letters(font):
                found[font.getname()[0] or path.stem].append(path)
    if len(found) < _TEST_SHARE:
        raise UsageError(f"--fonts {folder}: {len(found)} families of typefaces with letters; expected three and more")
    return {name: found[name][:_MOST_PER_FAMILY] for name in sorted(found)}


def _has_letters(font: ImageFont.FreeTypeFont) -> bool:
    """Whether each letter is drawn, and not as what stands for a missing one."""
    missing = bytes(font.getmask("\ufffe"))
    drawn = [bytes(font.getmask(letter)) for letter in LETTERS]
    return all(any(picture) and picture != missing for picture in drawn)


def split(found: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Typefaces to learn and to test. Every third family is for testing."""
    test = list(found)[_TEST_SHARE - 1 :: _TEST_SHARE]
    train = [name for name in found if name not in test]
    return {
        name: [path for family in names for path in found[family]] for name, names in (("train", train), ("test", test))
    }


def draw_all(folder: Path, faces: Sequence[Path], count: int, rng: np.random.Generator) -> None:
    """Writes ``count`` pictures of each letter."""
    for letter in LETTERS:
        (folder / letter).mkdir(parents=True)
        for i in range(count):
            face = faces[rng.integers(len(faces))]
            draw(letter, face, rng).save(folder / letter / f"{i:04}.png")


def draw(letter: str, face: Path, rng: np.random.Generator) -> Image.Image:
    """A letter on a ground of another grey, at some angle and place; RGB."""
    font = ImageFont.truetype(str(face), int(rng.integers(40, 57)))
    mask = Image.new("L", (_CANVAS, _CANVAS))
    centre = tuple(_CANVAS / 2 + rng.uniform(-6, 6, 2))
    ImageDraw.Draw(mask).text(centre, letter, fill=255, font=font, anchor="mm")
    mask = mask.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BILINEAR)
    ground, ink = rng.choice(256, 2, replace=False)
    while abs(int(ground) - int(ink)) < _CONTRAST:
        ground, ink = rng.choice(256, 2, replace=False)
    picture = Image.composite(Image.new("L", mask.size, int(ink)), Image.new("L", mask.size, int(ground)), mask)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX).convert("RGB")


if __name__ == "__main__":
    cli()
