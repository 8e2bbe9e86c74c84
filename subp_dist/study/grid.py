"""The runs of a study, from a YAML file of variants, cells and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UsageError
from ..options import flags_to_argv

_KEYS = {"model", "images_per_class", "seeds", "cells", "flags", "variants"}
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
    """A study: its runs, in the order in which they are worth doing, and how many training images of each class.

    Attributes:
        labels: what each variant is called in the table, in the order of the file.
    """

    runs: tuple[Run, ...]
    images_per_class: int | None
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
        _known(content, _KEYS, str(path))
        for key in ("model", "seeds", "cells"):
            if not content.get(key):
                raise UsageError(f"{path}: {key} is missing")
        variants = {name: variant or {} for name, variant in content["variants"].items()}
        for name, variant in variants.items():
            _known(variant, _VARIANT_KEYS, f"{path}: {name}")
            if variant.get("after") not in (None, *variants):
                raise UsageError(f"{path}: {name}: after: there is no variant {variant['after']!r}")
        runs = [
            _run(content, variants, name, tuple(cell), seed)
            # A study that is cut short has compared all variants, with fewer seeds.
            for seed in content["seeds"]
            for name, variant in variants.items()
            for cell in variant.get("cells", content["cells"])
        ]
        return cls(tuple(runs), content.get("images_per_class"), {n: v.get("label", n) for n, v in variants.items()})


def _known(mapping: dict, keys: set[str], where: str) -> None:
    unknown = set(mapping) - keys
    if unknown:
        raise UsageError(f"{where}: unknown {', '.join(sorted(unknown))}; expected {', '.join(sorted(keys))}")


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
