"""subp_dist.study.curve and subp_dist.study.letters: the table counted by hand, the plot, pictures, what is refused."""

import errno
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from grids import call
from PIL import Image

from subp_dist.study import curve, letters, precision

FONTS = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf"


def row(name: str, rate: float, dtype: str, top1: float, same: int, latency: float) -> dict[str, str]:
    values = (
        name,
        "subp",
        f"{rate:g}",
        16,
        name[-1],
        dtype,
        f"{top1:.2f}",
        same,
        200,
        "1.000",
        1500000,
        latency,
        "python",
    )
    return dict(zip(precision.COLUMNS, map(str, values), strict=True))


def results(path: Path, plus: float = 0) -> str:
    rows = [row("a-s1", 0, "float32", 60 + plus, 200, 0.5), row("a-s2", 0, "float32", 62 + plus, 198, 0.4)]
    rows += [row("b-s1", 0.5, "int8", 59 + plus, 190, 0.2)]
    precision.write_rows(path, rows)
    return f"data of {path.stem}={path}"


def test_the_table_joins_data_sets_and_the_plot_repeats_byte_for_byte(tmp_path, monkeypatch, capsys):
    given = [results(tmp_path / "one.csv"), results(tmp_path / "two.csv", plus=10)]
    drawn = []
    for name in ("a.svg", "b.svg"):
        code, out, _ = call(monkeypatch, capsys, curve, tmp_path / name, *given)
        assert code == 0
        drawn.append((tmp_path / name).read_text())
    head, _, dense, half = out.splitlines()
    assert (
        head
        == "| blocks pruned | data type | data of one | data of two | prediction as torch, % | latency, ms | file, MB |"
    )
    assert dense == "| dense | float32 | 61.0 ± 1.4 | 71.0 ± 1.4 | 99.5 | 0.400 | 1.50 |"
    assert half == "| 50 % | int8 | 59.0 | 69.0 | 95.0 | 0.200 | 1.50 |"
    assert drawn[0] == drawn[1] and "data of two" in drawn[0] and "50 %" in drawn[0]


@pytest.mark.parametrize(
    ("plot", "results", "message"),
    [
        ("plot.pdf", "a=b.csv", "expected the name of a .png or .svg file"),
        ("plot.svg", "b.csv", "expected the name of a data set and a file"),
        ("plot.svg", "a=b.csv", "b.csv: no results there; they come from python -m subp_dist.study.precision"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch, capsys, plot, results, message):
    code, _, errors = call(monkeypatch, capsys, curve, tmp_path / plot, results)
    assert code == 2 and message in errors


def test_letters_of_one_family_are_to_learn_or_to_test(tmp_path, monkeypatch, capsys):
    given = (tmp_path / "letters", "--fonts", FONTS, "--train", 3, "--test", 2)
    assert call(monkeypatch, capsys, letters, *given)[0] == 0
    groups = letters.split(letters.families(FONTS))
    names = {
        split: {letters.ImageFont.truetype(str(face)).getname()[0] for face in faces} for split, faces in groups.items()
    }
    assert names["train"] and names["test"] and not names["train"] & names["test"]
    for split, count in (("train", 3), ("test", 2)):
        pictures = sorted((tmp_path / "letters" / split).rglob("*.png"))
        assert [path.parent.name for path in pictures] == sorted(letters.LETTERS * count)
        shown = [np.asarray(Image.open(path)) for path in pictures]
        assert all(picture.shape == (32, 32, 3) and np.ptp(picture) >= 32 for picture in shown)
    code, _, errors = call(monkeypatch, capsys, letters, *given)
    assert code == 2 and "is there already" in errors


def test_a_folder_without_typefaces_is_refused(tmp_path, monkeypatch, capsys):
    code, _, errors = call(monkeypatch, capsys, letters, tmp_path / "letters", "--fonts", tmp_path)
    assert code == 2 and "0 families of typefaces with letters" in errors
    code, _, errors = call(monkeypatch, capsys, letters, tmp_path / "letters", "--fonts", FONTS, "--test", 0)
    assert code == 2 and "--test 0: expected 1 or more" in errors and list(tmp_path.iterdir()) == []


def test_letters_that_could_not_all_be_drawn_leave_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(letters, "draw_all", full)
    with pytest.raises(OSError, match="No space"):
        call(monkeypatch, capsys, letters, tmp_path / "letters", "--fonts", FONTS)
    assert list(tmp_path.iterdir()) == []
