"""FFCV's files of pictures (``.beton``): finding them, and proving them whole before the first batch.

FFCV itself reads whatever a header says, and hangs or crashes on a file that was cut off. So everything that can be
known without decoding is checked here: sizes, addresses, labels, and the classes that the writer kept beside the file.
"""

from __future__ import annotations

import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..cores import usable_cores
from ..errors import UsageError

_logger = logging.getLogger(__name__)
SUFFIXES = (".beton", ".ffcv")
JPEG, RAW = 0, 1
_IMAGE_FIELD, _INT_FIELD = 2, 1
_SMALLEST_PAGE = 1 << 21  # of FFCV, whose pages are powers of two
INSTALL = (
    "launch/setup.sh installs it; by hand: its system packages (Debian, Ubuntu: libopencv-dev libturbojpeg0-dev "
    "pkg-config g++ libgl1 libglib2.0-0), then pip install --no-cache-dir 'subp-dist[ffcv]'"
)


def require_ffcv() -> None:
    """Import FFCV, which takes seconds, and keep the number of torch's threads, which it would set to one.

    Raises:
        UsageError: it is not installed, or its libraries are missing.
    """
    threads = torch.get_num_threads()
    try:
        import ffcv  # noqa: F401
    except (ImportError, OSError) as error:
        raise UsageError(f".beton files need ffcv, which cannot be imported ({error}): {INSTALL}") from error
    finally:
        torch.set_num_threads(threads)


def find_beton(root: Path, splits: tuple[str, ...]) -> Path | None:
    """The one file of a split: ``SPLIT.beton``, or ``SPLIT_anything.beton`` such as ``train_500_0.50_90.beton``.

    Args:
        root: the folder to look in.
        splits: names of the split; the first that has a file decides.

    Raises:
        UsageError: several files fit.
    """
    files = sorted(path for path in root.glob("*") if path.suffix in SUFFIXES and path.is_file())
    for split in splits:
        exact = [path for path in files if split in (path.name, path.stem)]
        fitting = exact or [path for path in files if path.stem.startswith(f"{split}_")]
        if len(fitting) > 1:
            names = ", ".join(path.name for path in fitting)
            raise UsageError(f"{root} has several files of the split {split!r}: {names}; name one as the split")
        if fitting:
            return fitting[0]
    return None


def sidecar_of(path: Path) -> Path:
    """Where the writer keeps what the file itself cannot hold: the classes, the size, how it was written."""
    return path.with_name(f"{path.name}.json")


@dataclass(frozen=True)
class Beton:
    """A whole file of pictures and labels.

    Attributes:
        path: the file.
        reader: FFCV's reader of it.
        class_names: name of each class, or None for a file that was written without this package.
        kept: images of the file that are used, ``[n]``; None for all.
    """

    path: Path
    reader: object
    class_names: list[str] | None
    kept: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path) -> Beton:
        """Read the tables of a file and prove it whole.

        Raises:
            UsageError: FFCV is missing, or the file is, or it is empty, cut off, damaged, or holds something else.
        """
        require_ffcv()
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        _check_header(path)
        from ffcv.reader import Reader

        try:
            reader = Reader(str(path))
        except Exception as error:  # a damaged table leads it to whatever it leads it to
            raise _damaged(path, f"its tables cannot be read ({error})") from error
        if reader.field_names != ["image", "label"]:
            raise UsageError(f"{path}: expected the fields image, label; found {', '.join(reader.field_names)}")
        beton = cls(path, reader, _class_names(path, len(reader.metadata)))
        beton._check_tables()
        return beton

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def file_size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    @cached_property
    def labels(self) -> np.ndarray:
        """``[n]`` int64."""
        labels = np.ascontiguousarray(self.reader.metadata["f1"]).reshape(-1).astype(np.int64)
        return labels if self.kept is None else labels[self.kept]

    @cached_property
    def images(self) -> dict[str, np.ndarray]:
        """``mode`` (0 JPEG, 1 raw), ``height``, ``width`` and ``data_ptr`` of each image, each ``[n]`` int64."""
        fields = self.reader.metadata["f0"]
        kinds = dict(zip(("mode", "width", "height", "data_ptr"), fields.dtype.names, strict=True))
        chosen = slice(None) if self.kept is None else self.kept
        return {name: fields[field].astype(np.int64)[chosen] for name, field in kinds.items()}

    def without_broken(self) -> Beton:
        """The same without the JPEGs that cannot be decoded, which are named.

        Raises:
            UsageError: none can.
        """
        content, table = np.memmap(self.path, np.uint8, "r"), self.reader.alloc_table
        sizes = dict(zip(table["ptr"].tolist(), table["size"].tolist(), strict=True))

        def is_sound(index: int) -> bool:
            start = int(self.images["data_ptr"][index])
            if self.images["mode"][index] == RAW:
                return True
            try:
                with Image.open(io.BytesIO(content[start : start + sizes[start]].tobytes())) as picture:
                    picture.load()
                return (picture.height, picture.width) == (self.images["height"][index], self.images["width"][index])
            except Exception as error:  # a decoder raises whatever a damaged file leads it to
                _logger.warning("broken: %s: image %d: %s", self.path, index, error)
                return False

        with ThreadPoolExecutor(usable_cores()) as pool:
            sound = np.flatnonzero(list(pool.map(is_sound, range(len(self)))))
        if len(sound) == 0:
            raise UsageError(f"{self.path}: none of the images can be decoded")
        if len(sound) < len(self):
            _logger.warning("left out: %d of %d images of %s", len(self) - len(sound), len(self), self.path.name)
        return replace(self, kept=sound)

    def _check_tables(self) -> None:
        images, table = self.images, self.reader.alloc_table
        if len(table) != len(self):
            raise _damaged(self.path, f"it should hold {len(self)} images, and the data of {len(table)} are there")
        order, places = np.argsort(table["ptr"]), np.argsort(images["data_ptr"])
        pointers, sizes = table["ptr"][order].astype(np.int64), table["size"][order].astype(np.int64)
        end = int(self.reader.header["alloc_table_ptr"])
        area = (images["height"] * images["width"])[places]
        raw = images["mode"][places] == RAW
        sound = (
            np.array_equal(pointers, images["data_ptr"][places])
            and (pointers[:-1] + sizes[:-1] <= pointers[1:]).all()
            and pointers[-1] + sizes[-1] <= end
            and (area > 0).all()
            and np.isin(images["mode"], (JPEG, RAW)).all()
            and (sizes[raw] == 3 * area[raw]).all()
        )
        if not sound:
            raise _damaged(self.path, "the addresses in it contradict each other")
        if self.labels.min() < 0:
            raise UsageError(f"{self.path}: it has negative labels ({self.labels.min()}); expected classes from 0")
        if self.class_names is not None and self.labels.max() >= len(self.class_names):
            raise UsageError(
                f"{self.path}: it has the label {self.labels.max()}, but {sidecar_of(self.path).name} names only "
                f"{len(self.class_names)} classes: the two do not belong together"
            )


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path}: cut off or damaged: {why}; write it again with launch/write_ffcv.sh")


def _check_header(path: Path) -> None:
    """Refuse what FFCV would read past: an empty file, another format, a table of contents that is not there."""
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path}: the file is empty; write it again with launch/write_ffcv.sh")
    if size < HeaderType.itemsize:
        raise _damaged(path, f"it has {size} bytes")
    header = np.fromfile(path, HeaderType, count=1)[0]
    if header["version"] != CURRENT_VERSION or not 0 < header["num_fields"] <= 16:
        raise UsageError(
            f"{path}: not a .beton file of format {CURRENT_VERSION} (its header says {header['version']}); "
            "write it again with launch/write_ffcv.sh"
        )
    if header["num_samples"] == 0:
        raise UsageError(f"{path}: it holds no images")
    page = int(header["page_size"])
    if page < _SMALLEST_PAGE or page & (page - 1):
        raise _damaged(path, f"its pages should have {page} bytes")
    table = int(header["alloc_table_ptr"])
    if table == 0:
        raise _damaged(path, "its writer did not finish")
    fields = HeaderType.itemsize + int(header["num_fields"]) * FieldDescType.itemsize
    if not fields < table < size or (size - table) % ALLOC_TABLE_TYPE.itemsize:
        raise _damaged(path, f"it has {size} bytes, and its table of contents should start at {table}")
    types = np.fromfile(path, FieldDescType, count=header["num_fields"], offset=HeaderType.itemsize)["type_id"]
    if types.tolist() != [_IMAGE_FIELD, _INT_FIELD]:
        raise UsageError(f"{path}: expected the fields image (RGB) and label (int), found others")


def _class_names(path: Path, count: int) -> list[str] | None:
    sidecar = sidecar_of(path)
    if not sidecar.exists():
        return None
    try:
        content = json.loads(sidecar.read_text())
        mapping, size, images = content["class_to_idx"], content["bytes"], content["images"]
        names = sorted(mapping, key=mapping.get) if mapping else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{sidecar}: damaged ({type(error).__name__}: {error}); write both files again") from error
    if size != path.stat().st_size:
        raise _damaged(path, f"it has {path.stat().st_size} bytes, and {sidecar.name} says {size}")
    if images != count:
        raise _damaged(path, f"it has {count} images, and {sidecar.name} says {images}")
    if names is not None and sorted(mapping.values()) != list(range(len(names))):
        raise UsageError(f"{sidecar}: its classes are not numbered from 0; write both files again")
    return names
