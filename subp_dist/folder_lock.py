"""One writer for a run's folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger(__name__)
LOCK = ".lock"


class FolderLock:
    """The right to write into a folder, as long as this process lives or until the end of the ``with`` block.

    It is a POSIX record lock: forked loading processes, which may outlive a rank that was killed, do not inherit it,
    and NFS passes it on between machines. The file says who holds it, and is removed at the end; one that a killed
    process has left is taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = False
        self._file: TextIO | None = None

    def take(self) -> None:
        """Take the lock of a folder, if that exists; then it is ``found``.

        A folder that cannot be written is left to whoever writes to it, and says why not.

        Raises:
            UsageError: another process writes into the folder.
        """
        self.found = self.folder.is_dir()
        while self.found and self._file is None:
            try:
                file = (self.folder / LOCK).open("a+")
            except OSError:
                break
            if not _lock(file):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise UsageError(
                    f"{self.folder}: {holder} is writing a run there; wait for its end, or pass another --experiment"
                )
            if _is_at(file, self.folder / LOCK):
                self._file = file
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            else:  # its last holder removed it just now
                file.close()

    def release(self) -> None:
        """Give the folder free."""
        if self._file is not None:
            # Before it is unlocked, so that nobody locks a file that is about to go.
            (self.folder / LOCK).unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(file: TextIO) -> bool:
    """Lock a file; whether nobody else has it. Where there are no locks, there is a warning instead."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        _logger.warning("%s: %s; nothing keeps a second run from writing there", file.name, error.strerror)
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
