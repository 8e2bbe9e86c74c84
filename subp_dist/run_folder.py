"""A run's folder, and the checkpoint that a run goes on from, found on whichever machine has it."""

from __future__ import annotations

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
from .config import Resolved, TrainConfig
from .errors import UsageError
from .folder_lock import FolderLock

_logger = logging.getLogger(__name__)
FLAGS, RESOLVED = "args.yaml", "resolved.yaml"
_STARTED_BY = "# started by: "
_GIVEN = "# The flags as they were given, or their defaults; --config with this file starts another run.\n"
_DERIVED = "# All values of this run, those that follow from its model, data and ranks included.\n"


def folder_of(given: TrainConfig) -> Path:
    """The folder that the flags choose."""
    rate = given.pruning.target_macs or format(given.pruning.prune_rate, "g")
    name = given.run.experiment or f"{given.model.name}-{rate}"
    return Path(given.run.output) / name.replace("/", "_")


def find_checkpoint(folder: Path, resume: str | None) -> dict | None:
    """The checkpoint to go on from, the same on every rank; None for a run that starts.

    A run that torchrun started again, on all machines or on some, goes on without being told.

    Args:
        folder: of the run.
        resume: a checkpoint, ``auto`` for the newest of the folder, or None.

    Raises:
        UsageError: the folder holds another run, or there is no complete checkpoint where there should be one.
    """
    launchers = {launcher for launcher in gather(_launcher()) if launcher}
    known = any(gather(bool(launchers & _launchers_of(folder))))
    restarted = known or any(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))
    if resume == "auto" or restarted:
        checkpoint = _newest_of_all_machines(folder)
        if checkpoint is not None or resume in (None, "auto"):
            if restarted and checkpoint is None:
                _logger.warning("started again, and no machine has a checkpoint in %s: from the beginning", folder)
            return checkpoint
    if resume:
        if not restarted and Path(resume).resolve().parent != folder.resolve():
            on_primary(lambda: _check_unused(folder))
        return on_primary(lambda: load_checkpoint(Path(resume)))
    on_primary(lambda: _check_unused(folder))
    return None


def _check_unused(folder: Path) -> None:
    if (folder / FLAGS).exists():
        raise UsageError(
            f"{folder} already holds a run: pass --resume auto to go on with it, or another --experiment name"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the run needs a folder of that name")


def claim_folder(folder: Path, lock: FolderLock) -> None:
    """Make the folder of a run that is about to write, and take its lock unless it was there to be taken before.

    Raises:
        UsageError: the folder cannot be made, or another run was faster.
    """
    if lock.found:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {folder}: {error}") from error
    lock.take()
    _check_unused(folder)


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


def start_folder(
    folder: Path, given: TrainConfig, config: Resolved, checkpoint: dict | None, best: float | None
) -> float | None:
    """Make the folder ready on rank 0, once everything else has been checked; called on every rank.

    A run that goes on from another run's checkpoint gets copies of it and of its best one, as if it were its own.

    Args:
        folder: of the run.
        given: what was asked for; ``args.yaml`` keeps it.
        config: resolved; ``resolved.yaml`` keeps it.
        checkpoint: to go on from, or None.
        best: what the checkpoint says.

    Returns:
        The top-1 of the best checkpoint in the folder, None if it has none.

    Raises:
        UsageError: the folder cannot be written.
    """
    launchers = [launcher for launcher in gather(_launcher()) if launcher]
    has_best = gather((folder / BEST).is_file())
    on_primary(lambda: _write_config(folder, given, config, launchers))
    if checkpoint is not None and checkpoint["best"] is not None and any(has_best) and not has_best[0]:
        # Another machine wrote this run's files so far.
        found = on_rank(has_best.index(True), lambda: load_checkpoint(folder / BEST))
        on_primary(lambda: save_checkpoint(folder / BEST, found))
    own = any(gather(any((folder / name).exists() for name in (NEWEST, PREVIOUS))))
    if checkpoint is None or own or given.run.resume in (None, "auto"):
        return best
    return on_primary(lambda: _bring_along(folder, Path(given.run.resume).parent, checkpoint))


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


def _write_config(folder: Path, given: TrainConfig, config: Resolved, launchers: list[str]) -> None:
    """Write both files; what is None is left out of the flags, for it would be derived anew from them."""
    flags = {flag: value for flag, value in given.flags().items() if flag != "resume" and value is not None}
    started_by = f"{_STARTED_BY}{' '.join(dict.fromkeys(launchers))}"
    texts = {
        FLAGS: f"{started_by}\n{_GIVEN}{yaml.safe_dump(flags, sort_keys=False)}",
        RESOLVED: f"{_DERIVED}{yaml.safe_dump(config.to_dict(), sort_keys=False)}",
    }
    try:
        remove_leftovers(folder)
        # The flags last: they mark the folder as a run's.
        for name in (RESOLVED, FLAGS):
            write_atomically(folder / name, lambda path, name=name: path.write_text(texts[name]))
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {folder}: {error}") from error


def read_config(folder: Path) -> Resolved:
    """The resolved configuration of a run; runs of earlier versions have it in their flags.

    Raises:
        UsageError: the file cannot be read, or is another one.
    """
    path = folder / (RESOLVED if (folder / RESOLVED).is_file() else FLAGS)
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected the configuration of a run, found {type(values).__name__}")
    return Resolved.from_dict(values) if path.name == RESOLVED else Resolved.from_flags(values)


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
        with (folder / FLAGS).open() as file:
            first = file.readline()
    except OSError:
        return set()
    return set(first.removeprefix(_STARTED_BY).split()) if first.startswith(_STARTED_BY) else set()
