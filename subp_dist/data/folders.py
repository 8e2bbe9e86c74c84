"""A folder of class folders: which files in it are pictures, and what is left out, by class."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFile
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from ..errors import UsageError

_NAMED = 10  # classes that a message names, of which there may be thousands
# What a telephone or a camera leaves beside pictures, and what to do with it.
_ADVICE = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "not read by Pillow: pip install pillow-heif, or convert to JPEG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"), "raw files of a camera: convert to JPEG"),
    **dict.fromkeys((".mov", ".mp4", ".avi", ".m4v", ".webm"), "videos"),
}
_NO_CLASS = "__MACOSX"  # what macOS packs beside folders; it holds hidden files only


@lru_cache(maxsize=1)
def readable_extensions() -> frozenset[str]:
    """Extensions of the formats that Pillow decodes, lower case, with the dot; those of its plug-ins, too."""
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()

    def decodes(name: str) -> bool:
        factory = Image.OPEN[name][0] if name in Image.OPEN else None
        # Stubs know a format, and leave its pixels to a program that is usually not there; MPEG's is not called one.
        is_stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        return factory is not None and not is_stub and name != "MPEG"

    return frozenset(extension for extension, name in Image.registered_extensions().items() if decodes(name))


class ClassFolders(Reader):
    """timm's reader of a folder: labels are the names of the innermost folders, in natural order.

    Unlike timm's it takes every format that Pillow reads, no hidden files or folders, and follows no link in a circle.

    Attributes:
        samples: (path, label) of each picture.
        class_to_idx: labels by class.
        left_out: by class, how many files of which kind are not taken.

    Raises:
        UsageError: a folder cannot be read; or a folder of a class has no picture that can be read.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root
        self.left_out: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[tuple[str, str], str] = {}
        self._totals: Counter[str] = Counter()
        found: list[tuple[str, str]] = []
        barren: dict[str, str] = {}
        try:
            self._walk(root, "", (os.path.realpath(root),), found, barren)
        except OSError as error:
            raise UsageError(f"{root}: cannot be read: {error}") from error
        names = sorted({name for _, name in found}, key=natural_key)
        self._refuse_lost_classes(barren, set(names))
        self.class_to_idx = {name: index for index, name in enumerate(names)}
        labelled = ((path, self.class_to_idx[name]) for path, name in found)
        self.samples = sorted(labelled, key=lambda sample: natural_key(sample[0]))

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        return Path(path).open("rb"), label  # closed by who reads it

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return Path(path).name
        return path if absolute else os.path.relpath(path, self.root)

    def _walk(
        self,
        folder: str,
        name: str,
        above: tuple[str, ...],
        found: list[tuple[str, str]],
        barren: dict[str, str],
    ) -> bool:
        """Collect the pictures below a folder; returns whether there is any.

        Args:
            folder: its path.
            name: the class of pictures that lie in it.
            above: real paths of this folder and of those that led here.
            found: (path, class) of the pictures, added to.
            barren: name by path of folders that have none, added to.
        """
        below, before = {}, len(found)
        for entry in _entries(folder):
            kind = self._kind(entry, above)
            if kind == "folder":
                below[entry.path] = entry.name
                continue
            self._totals[name] += 1
            if kind == "picture":
                found.append((entry.path, name))
            else:
                self.left_out[name][kind] += 1
                self._examples.setdefault((name, kind), entry.name)
        has_own = len(found) > before
        without = []
        for path, child in below.items():
            real = os.path.realpath(path)
            if not self._walk(path, child, (*above, real), found, barren):
                without.append(path)
        has_any = len(found) > before
        # Below a class a folder without pictures is not another class; beside classes it is one that is lost.
        if has_any and not has_own:
            barren.update({path: below[path] for path in without})
        return has_any

    def _kind(self, entry: os.DirEntry, above: tuple[str, ...]) -> str:
        """``folder``, ``picture``, or why it is neither."""
        if entry.name.startswith(".") or entry.name == _NO_CLASS:
            return "hidden"
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if entry.is_dir() and any(Path(path).is_relative_to(target) for path in above):
                return "link to a folder above"
        elif not entry.is_dir() and not entry.is_file():
            return "not a file"
        if entry.is_dir():
            return "folder"
        extension = Path(entry.name).suffix.lower()
        return "picture" if extension in readable_extensions() else extension or "no extension"

    def _refuse_lost_classes(self, barren: dict[str, str], names: set[str]) -> None:
        lost = [path for path, name in barren.items() if name not in names]
        if lost:
            listed = _listed([f"{path} ({self._story(Path(path).name) or 'empty'})" for path in sorted(lost)])
            raise UsageError(
                f"no picture that can be read in {listed}: a class would be lost; mend or remove "
                f"{'it' if len(lost) == 1 else 'them'}"
            )

    def _story(self, name: str) -> str:
        counts = self.left_out.get(name, {})
        return ", ".join(
            f"{count} {kind}, such as {self._examples[name, kind]}{f' ({_ADVICE[kind]})' if kind in _ADVICE else ''}"
            for kind, count in counts.items()
        )

    def count_left_out(self) -> int:
        """Files that are not taken, but for hidden ones, which no person has put there."""
        return sum(counts.total() - counts["hidden"] for counts in self.left_out.values())

    def report(self) -> str | None:
        """What is left out, by class, or None."""
        if not self.left_out:
            return None
        lines = [
            f"{name or 'outside of classes'}: {sum(counts.values())} of {self._totals[name]} ({self._story(name)})"
            for name, counts in sorted(self.left_out.items(), key=lambda item: natural_key(item[0]))
        ]
        total = sum(sum(counts.values()) for counts in self.left_out.values())
        return f"{self.root}: {total} files are no pictures, and left out: {_listed(lines, '; ')}"


def _entries(folder: str) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _listed(items: list[str], separator: str = ", ") -> str:
    more = len(items) - _NAMED
    return separator.join(items[:_NAMED]) + (f"{separator}and {more} more" if more > 0 else "")
