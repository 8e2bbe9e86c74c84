"""The runs of a study, from a YAML file of variants, cells and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import UsageError
from ..flags import build_parser
from ..options import parse_flags

_KEYS = {"model", "images_per_class", "beton", "seeds", "cells", "flags", "variants"}
_VARIANT_KEYS = {"label", "cells", "flags", "after"}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: of its folder; ``variant-rate-N-seed``.
        cell: (prune rate, block size).
        argv: flags of ``subp_dist.train``, but for where the data is and where the run goes.
        after: name of the run whose plain weights this one starts from, or None.
    """

    name: str
    variant: str
    cell: tuple[float, int]
    seed: int
    argv: tuple[str, ...]
    after: str | None


@dataclass(frozen=True)
class Grid:
    """A study: its runs, in the order in which they are worth doing, and the data they want.

    Attributes:
        runs: each comes later than the one that it starts from.
        images_per_class: training images of each class; None: all.
        beton: how the images are stored for FFCV, such as ``256_1.0_90``; None: they stay pictures.
        splits: names of the training and the validation split.
        labels: what each variant is called in the table, in the order of the file.
    """

    runs: tuple[Run, ...]
    images_per_class: int | None
    beton: str | None
    splits: tuple[str, str]
    labels: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read a grid file.

        Raises:
            UsageError: it is not one; the message names the key.
        """
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("variants"), dict):
            raise UsageError(f"{path}: expected a study with the keys {', '.join(sorted(_KEYS))}")
        _check(content, _KEYS, str(path))
        for key in ("model", "seeds", "cells"):
            if not content.get(key):
                raise UsageError(f"{path}: {key} is missing")
        if not _is_list(content["seeds"], int):
            raise UsageError(f"{path}: seeds: {content['seeds']}: expected whole numbers, such as [1, 2, 3]")
        if not isinstance(content.get("beton", ""), str):
            raise UsageError(f'{path}: beton: expected quotes, such as "256_1.0_90"; YAML takes it for a number')
        if content.get("beton") and not content.get("images_per_class"):
            raise UsageError(f"{path}: beton without images_per_class: for all images, give .beton files as --data-dir")
        variants = {name: variant or {} for name, variant in content["variants"].items()}
        earlier: list[str] = []
        for name, variant in variants.items():
            _check(variant, _VARIANT_KEYS, f"{path}: {name}")
            if variant.get("after") not in (None, *earlier):
                raise UsageError(f"{path}: {name}: after: there is no variant {variant['after']!r} above it")
            earlier.append(name)
        cells = {name: variant.get("cells", content["cells"]) for name, variant in variants.items()}
        runs = [
            _run(content, variants, name, tuple(cells[name][index]), seed)
            # A study that is cut short has compared all variants, with fewer seeds, and first in their first cells.
            for seed in content["seeds"]
            for index in range(max(map(len, cells.values())))
            for name in variants
            if index < len(cells[name])
        ]
        for run in runs:
            _check_flags(run, f"{path}: {run.variant}")
        flags = content.get("flags", {})
        return cls(
            tuple(runs), content.get("images_per_class"), content.get("beton"),
            (flags.get("train-split", "train"), flags.get("val-split", "validation")),
            {name: variant.get("label", name) for name, variant in variants.items()},
        )  # fmt: skip


def _is_list(value, kind) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check(mapping: dict, keys: set[str], where: str) -> None:
    if not isinstance(mapping, dict):
        raise UsageError(f"{where}: expected the keys {', '.join(sorted(keys))}")
    if unknown := set(mapping) - keys:
        raise UsageError(f"{where}: unknown {', '.join(map(str, unknown))}; expected {', '.join(sorted(keys))}")
    if not isinstance(mapping.get("flags", {}), dict):
        raise UsageError(f"{where}: flags: expected 'flag: value' lines")
    cells = mapping.get("cells", [[0.5, 16]])
    if (
        not cells
        or not _is_list(cells, list)
        or any(len(cell) != 2 or not _is_list(cell, (int, float)) for cell in cells)
    ):
        raise UsageError(f"{where}: cells: expected pairs of pruning rate and block size, such as [[0.5, 16]]")


def _check_flags(run: Run, where: str) -> None:
    """All runs would fail one after the other, an hour later."""
    parser = build_parser()

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"{where}: {message}")

    parser.error = refuse
    try:
        # The weights that it starts from, which are yet to come, are named when it begins.
        parse_flags(parser, [*run.argv, *(("--initial-checkpoint", "weights") if run.after else ())])
    except UsageError as error:
        raise error if str(error).startswith(where) else UsageError(f"{where}: {error}") from None


def _run(content: dict, variants: dict[str, dict], name: str, cell: tuple[float, int], seed: int) -> Run:
    variant = variants[name]
    flags = content.get("flags", {}) | variant.get("flags", {})
    flags |= {"prune-rate": cell[0], "block-size": cell[1], "seed": seed}
    after = variant.get("after")
    if after:
        after = run_name(after, tuple(variants[after].get("cells", content["cells"])[0]), seed)
    return Run(run_name(name, cell, seed), name, cell, seed, (content["model"], *flags_to_argv(flags)), after)


def run_name(variant: str, cell: tuple[float, int], seed: int) -> str:
    """Name of a run's folder."""
    return f"{variant}-{cell[0]:g}-1x{cell[1]}-s{seed}"


def flags_to_argv(flags: dict[str, Any]) -> list[str]:
    """``{"lr": 0.1, "amp": True, "skip": ["a", "b"]}`` -> ``["--lr", "0.1", "--amp", "--skip", "a", "b"]``."""
    argv = []
    for flag, value in flags.items():
        if value is None or value is False:
            continue
        argv.append(f"--{flag}")
        if value is not True:
            argv += map(str, value if isinstance(value, list) else [value])
    return argv
