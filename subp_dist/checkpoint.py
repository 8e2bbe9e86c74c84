"""Checkpoints: written whole or not at all, and complete enough that a resumed run ends like an undisturbed one.

Random states are not stored: every optimizer step, every image and every mask seeds its generators from its place in
the run. The model's entry has the keys of the *parametrized* model (latent weights and masks); ``model.safetensors`` in
the run's folder is the plain one.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from . import __version__
from .config import Resolved
from .errors import UnreadError, UsageError

NEWEST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, whether a file can be written.

    Raises:
        UsageError: it cannot; the message says why.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the folder {path.parent} cannot be written")


def write_atomically(path: Path, write: Callable[[Path], None], previous: Path | None = None) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename: readers see the old file or the new one.

    Args:
        path: the file.
        write: writes to the path it is given.
        previous: where the file that is replaced goes on living; a process that dies between the two renames leaves
            that one alone, complete.

    Raises:
        OSError: the file could not be written; nothing is left behind, and the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        cause = _write_error(error)
        if cause is None:
            raise
        raise OSError(f"cannot write {path}: {cause.strerror or cause}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_error(error: BaseException | None) -> OSError | None:
    """What happened to a file: torch's writer raises a RuntimeError of its own after the error of the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_json(path: Path, value: object) -> None:
    """Write a document for other programs.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))
    except OSError as error:
        raise UsageError(str(error)) from error


_KEPT = "Earlier checkpoints are complete"


@contextmanager
def write_errors_explained(folder: Path) -> Iterator[None]:
    """Say what a run that cannot write to its folder any more has, and how it can go on.

    Raises:
        UsageError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot write to {folder}: {error.strerror}" if error.strerror else str(error)
        raise UsageError(f"{text}. {_KEPT}: make room or mend the folder, and go on with --resume auto") from error


@contextmanager
def output_errors_explained() -> Iterator[None]:
    """Say what a run that cannot write to standard output any more has, and how it can go on.

    Raises:
        UnreadError: nobody reads it any more.
        UsageError: in place of another OSError.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise UnreadError(f"nobody reads the output of the run any more. {_KEPT}: go on with --resume auto") from error
    except OSError as error:
        why = f"cannot write to standard output: {error.strerror}"
        raise UsageError(f"{why}. {_KEPT}: go on with --resume auto") from error


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that were killed while they wrote."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict, previous: Path | None = None) -> None:
    """Write a dict of tensors and plain values; see ``write_atomically``."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save({"version": __version__} | state, file)

    write_atomically(path, write, previous)


def keep_history(folder: Path, epoch: int, count: int) -> None:
    """Keep the newest checkpoint as that of an epoch, too, and no more than ``count`` of them.

    It is another name of the same file where the file system has such, and so costs no time.
    """
    if not count:
        return
    path = folder / f"epoch-{epoch:04}.pt"
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(folder / NEWEST)
    except OSError:
        shutil.copyfile(folder / NEWEST, path)
    for older in sorted(folder.glob("epoch-*.pt"))[:-count]:
        older.unlink()


def save_plain_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(serialize(tensors, metadata)))


def load_checkpoint(path: Path) -> dict:
    """Read what ``save_checkpoint`` wrote, onto the CPU; only tensors and plain values are unpickled.

    ``config`` of what is returned is for ``Resolved.from_dict``, in checkpoints of earlier versions, too.

    Raises:
        UsageError: there is no such file, or it is damaged, or it is not a checkpoint of this package.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        # torch.load checks no sums: the archive's own CRCs tell damage apart before anything is made of it.
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {broken} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever a damaged stream leads it to
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{path}: damaged, or not a checkpoint: {first_line}") from error
    state = state if isinstance(state, dict) else {}
    if isinstance(state.get("args"), dict):  # earlier checkpoints hold their flags, as resolved
        state["config"] = Resolved.from_flags(state.pop("args")).to_dict()
    if not isinstance(state.get("config"), dict):
        state.pop("config", None)
    if missing := {"epoch", "config", "model", "optimizer"} - set(state):
        raise UsageError(f"{path}: not a checkpoint of a pruning run: it has no {', '.join(sorted(missing))}")
    return state


def load_newest(folder: Path) -> tuple[dict | None, list[str]]:
    """The newest complete checkpoint of a run's folder, or None, and what is wrong with newer ones."""
    problems: list[str] = []
    for path in (folder / NEWEST, folder / PREVIOUS):
        if path.exists():
            try:
                return load_checkpoint(path), problems
            except UsageError as error:
                problems.append(str(error))
    return None, problems


def position(state: dict) -> tuple[int, int]:
    """Where a run goes on from a checkpoint: the epoch, and the optimizer steps of it that are done."""
    return (state["epoch"], state["in_epoch"]["step"]) if state.get("in_epoch") else (state["epoch"] + 1, 0)
