"""A study of three variants, of which one fails, for the tests of studies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from subp_dist.study.grid import Grid

FLAGS = {"epochs": 1, "batch-size": 16, "workers": 0, "img-size": 32, "prune-start": 0, "prune-end": 0}
STUDY = {
    "model": "test_resnet",
    "images_per_class": 8,
    "seeds": [1],
    "cells": [[0.5, 16]],
    "flags": FLAGS | {"no-export": True},
    "variants": {
        "dense": {"cells": [[0, 16]]},
        "tuned": {"label": "tuned weights", "after": "dense", "flags": {"criterion": "l1"}},
        "broken": {"flags": {"opt": "no_such_optimizer"}},
    },
}


def grid_of(tmp_path: Path, **changes) -> Grid:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return Grid.read(tmp_path / "grid.yaml")


def call(monkeypatch, capsys, module: ModuleType, *argv) -> tuple[object, str, str]:
    """A command's exit code, and what it printed and complained of."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        module.cli()
        sys.exit(0)
    return ended.value.code, *capsys.readouterr()
