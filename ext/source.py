"""Where a model is read from, a path, bytes or an open file, and what else a file may be."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Union

if TYPE_CHECKING:
    from typing_extensions import Buffer

ModelSource = Union[str, "os.PathLike[str]", "Buffer", IO[bytes]]


class Readable(Protocol):
    """What a reader needs of a file."""

    def seek(self, position: int, /) -> Any: ...
    def read(self, size: int, /) -> bytes: ...
    def readinto(self, target: Any, /) -> int | None: ...


class _Memory:
    """Bytes that are there already, read as a file is, without a copy of the whole."""

    def __init__(self, data: Buffer) -> None:
        self._data, self._at = memoryview(data).cast("B"), 0

    def __len__(self) -> int:
        return len(self._data)

    def seek(self, position: int, /) -> None:
        self._at = position

    def read(self, size: int, /) -> bytes:
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        return bytes(part)

    def readinto(self, target: Any, /) -> int:
        place = memoryview(target).cast("B")
        part = self._data[self._at : self._at + len(place)]
        place[: len(part)] = part
        self._at += len(part)
        return len(part)


def name_of(source: ModelSource) -> str:
    """What messages call a source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"the {type(source).__name__}"


@contextmanager
def opened(source: ModelSource) -> Iterator[tuple[Readable, int]]:
    """Gives a source as something to read from its begin, and its size in bytes.

    A regular file is read as it is needed, a pipe and an open file, from where it stands, to its end at once.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        TypeError: it is none of these, or a file that was opened as text.
    """
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode):
                yield file, found.st_size
                return
            data: Any = file.read()
    elif hasattr(source, "read") and not _is_buffer(source):
        data = source.read()
        if isinstance(data, str):
            raise TypeError(f"{name_of(source)} was opened as text; open it in binary mode, 'rb'")
    else:
        data = source
    try:
        memory = _Memory(data)
    except TypeError as error:
        kind = type(data).__name__
        given = f"the model is a {kind}" if data is source else f"reading {name_of(source)} gave a {kind}"
        raise TypeError(f"{given}; expected a path, bytes, a memoryview or a file opened in binary mode") from error
    yield memory, len(memory)


def _is_buffer(value: Any) -> bool:
    """Whether it holds its bytes in memory, as a memory map does, which can be read like a file too."""
    try:
        memoryview(value).release()
    except TypeError:
        return False
    return True


# First bytes of what people take for a network's file, what it is, and what makes a network of it.
_EXPORT = "export its network with `python -m subp_dist.export`"
_KNOWN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pt, .pth)", _EXPORT),
    (b"\x80\x02", "a pickle, as torch.save wrote before torch 1.6", _EXPORT),
    *((bytes([0x80, protocol]), "a pickle", _EXPORT) for protocol in (3, 4, 5)),
    (b"\x1f\x8b", "compressed (gzip)", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "decompress it first"),
    (b"\xfd7zXZ\x00", "compressed (xz)", "decompress it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"version https://git-lfs", "a pointer of Git LFS, without the content", "fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"<?xml", "an XML file, such as the description of an OpenVINO network", _EXPORT),
    (b"\x89SUBP", "a .subp file whose line ends were changed, as transfers in text mode do", "copy it in binary mode"),
    (b"\xc2\x89SUBP", "a .subp file that was taken for text", "copy it in binary mode"),
)  # fmt: skip


def foreign(head: bytes, size: int) -> str:
    """Says what a file is that does not start as a .subp file does, and what to do.

    Args:
        head: its first bytes, some 64.
        size: of the whole file.
    """
    known = _recognise(head, size)
    if known is None:
        return "does not start as a .subp file does; check its path, or export the network again"
    kind, advice = known
    return f"is {kind}; expected a .subp file: {advice}"


def _recognise(head: bytes, size: int) -> tuple[str, str] | None:
    """What the file is and what makes a network of it, where that is known."""
    if not size:
        return "empty", "copy or export it again"
    for magic, kind, advice in _KNOWN:
        if head.lower().startswith(magic.lower()):
            return kind, advice
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] < size:
        return "a safetensors file, which has weights and no network", _EXPORT
    # A protobuf message whose first field is the version of the format, and whose second the producer's name.
    if len(head) > 4 and head[0] == 0x08 and head[1] < 0x40 and head[2] in (0x12, 0x3A):
        return "an ONNX file", _EXPORT
    return None
