"""Checkpoints: written whole or not at all, and complete enough that a resumed run ends like an undisturbed one.

Random states are not stored: every epoch seeds its generators from (seed, epoch, rank), and every mask is drawn from
(seed, epoch, layer), so the epoch stands for them. The model's entry has the keys of the *parametrized* model (latent
weights and masks); ``model.safetensors`` in the run's folder is the plain one.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from .errors import UsageError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename: readers see the old file or the new one.

    Raises:
        OSError: the file could not be written; nothing is left behind, and the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its file writer.
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a dict of tensors and plain values with ``torch.save``."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def save_plain_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(serialize(tensors, metadata)))


def load_checkpoint(path: Path) -> dict:
    """Read what ``save_checkpoint`` wrote, onto the CPU; only tensors and plain values are unpickled.

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
    missing = {"epoch", "args", "model", "optimizer"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise UsageError(f"{path}: not a checkpoint of a pruning run: it has no {', '.join(sorted(missing))}")
    return state
