"""A run's folder, and the checkpoint that a run goes on from, found on whichever machine has it."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from pathlib import Path

import yaml

from .agreement import gather, on_primary, on_rank
from .checkpoint import (
    BEST,
    NEWEST,
    PREVIOUS,
    load_checkpoint,
    load_newest,
    position,
    remove_leftovers,
    save_checkpoint,
    write_atomically,
    write_errors_explained,
)
from .errors import UsageError

_logger = logging.getLogger(__name__)
_STARTED_BY = "# started by: "


def folder_of(args: argparse.Namespace) -> Path:
    """The folder that the flags choose."""
    name = args.experiment or f"{args.model}-{args.target_macs or format(args.prune_rate, 'g')}"
    return Path(args.output) / name.replace("/", "_")


def find_checkpoint(folder: Path, args: argparse.Namespace) -> dict | None:
    """The checkpoint to go on from, the same on every rank; None for a run that starts.

    A run that torchrun started again, on all machines or on some, goes on without being told.

    Raises:
        UsageError: the folder holds another run, or there is no complete checkpoint where there should be one.
    """
    launchers = {launcher for launcher in gather(_launcher()) if launcher}
    known = any(gather(bool(launchers & _launchers_of(folder))))
    restarted = known or any(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))
    if args.resume == "auto" or restarted:
        checkpoint = _newest_of_all_machines(folder)
        if checkpoint is not None or args.resume in (None, "auto"):
            if restarted and checkpoint is None:
                _logger.warning("started again, and no machine has a checkpoint in %s: from the beginning", folder)
            return checkpoint
    if args.resume:
        if not restarted and Path(args.resume).resolve().parent != folder.resolve():
            on_primary(lambda: _check_unused(folder))
        return on_primary(lambda: load_checkpoint(Path(args.resume)))
    on_primary(lambda: _check_unused(folder))
    return None


def _check_unused(folder: Path) -> None:
    if (folder / "args.yaml").exists():
        raise UsageError(
            f"{folder} already holds a run: pass --resume auto to go on with it, or another --experiment name"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the run needs a folder of that name")


def _newest_of_all_machines(folder: Path) -> dict | None:
    """The newest complete checkpoint among all machines, which may share the folder or each have their own."""
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    checkpoint, problems = load_newest(folder) if speaks else (None, [])
    positions = gather(position(checkpoint) if checkpoint else None)
    problems = [problem for found in gather(problems) for problem in found]
    if not any(positions):
        if problems:
            raise UsageError(f"no complete checkpoint is left: {'; '.join(dict.fromkeys(problems))}")
        return None
    source = max((rank for rank, found in enumerate(positions) if found), key=lambda rank: (positions[rank], -rank))
    for problem in dict.fromkeys(problems):
        _logger.warning("%s", problem)
    epoch, step = positions[source]
    _logger.info("going on at epoch %d%s", epoch, f", step {step}" if step else "")
    return on_rank(source, lambda: checkpoint)


def start_folder(folder: Path, args: argparse.Namespace, checkpoint: dict | None, best: float | None) -> float | None:
    """Make the folder ready on rank 0, once everything else has been checked; called on every rank.

    A run that goes on from another run's checkpoint gets copies of it and of its best one, as if it were its own.

    Returns:
        The top-1 of the best checkpoint in the folder, None if it has none; ``best`` is what the checkpoint says.

    Raises:
        UsageError: the folder cannot be written.
    """
    launchers = [launcher for launcher in gather(_launcher()) if launcher]
    has_best = gather((folder / BEST).is_file())
    on_primary(lambda: _write_flags(folder, args, launchers))
    if checkpoint is not None and checkpoint["best"] is not None and any(has_best) and not has_best[0]:
        # Another machine wrote this run's files so far.
        found = on_rank(has_best.index(True), lambda: load_checkpoint(folder / BEST))
        on_primary(lambda: save_checkpoint(folder / BEST, found))
    own = any(gather(any((folder / name).exists() for name in (NEWEST, PREVIOUS))))
    if checkpoint is None or own or args.resume in (None, "auto"):
        return best
    return on_primary(lambda: _bring_along(folder, Path(args.resume).parent, checkpoint))


def _bring_along(folder: Path, source: Path, checkpoint: dict) -> float | None:
    """Save another folder's checkpoint as this run's newest, with the best beside it; returns that one's top-1."""
    best = None
    if checkpoint["best"] is not None and (source / BEST).is_file():
        try:
            best = load_checkpoint(source / BEST)
        except UsageError as error:
            _logger.warning("%s; going on without it", error)
    with write_errors_explained(folder):
        # Not one that its run found later on.
        if best is not None and position(best) <= position(checkpoint):
            save_checkpoint(folder / BEST, best)
            checkpoint["best"] = best["best"]
        else:
            checkpoint["best"] = None
        save_checkpoint(folder / NEWEST, checkpoint)
    return checkpoint["best"]


def _write_flags(folder: Path, args: argparse.Namespace, launchers: list[str]) -> None:
    flags = {flag: value for flag, value in vars(args).items() if flag not in ("config", "resume")}
    text = f"{_STARTED_BY}{' '.join(dict.fromkeys(launchers))}\n{yaml.safe_dump(flags, sort_keys=False)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        write_atomically(folder / "args.yaml", lambda path: path.write_text(text))
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {folder}: {error}") from error


def _launcher() -> str | None:
    """Host, process and start of the torchrun that started this rank, which stays the same over its restarts."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = "0"
    return f"{socket.gethostname()}:{parent}:{started}"


def _launchers_of(folder: Path) -> set[str]:
    try:
        with (folder / "args.yaml").open() as file:
            first = file.readline()
    except OSError:
        return set()
    return set(first.removeprefix(_STARTED_BY).split()) if first.startswith(_STARTED_BY) else set()
