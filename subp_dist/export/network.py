"""What can be exported: a network with its masks and its metadata, from a run, a checkpoint or a model's name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoint import load_checkpoint
from ..errors import UsageError
from ..pruner import SUBPPruner
from ..schedule import PruneSchedule
from .synthetic import random_network


@dataclass(frozen=True)
class Network:
    """A masked timm model in evaluation mode, (C, H, W) of its images, and what is stored beside its weights."""

    model: nn.Module
    input_size: tuple[int, int, int]
    metadata: dict[str, Any]

    @classmethod
    def open(cls, source: Path) -> Network:
        """Read a run's folder (its best checkpoint, else its last) or one checkpoint.

        Raises:
            UsageError: there is none, it is damaged, or its state does not fit its flags.
        """
        path = _checkpoint_of(source)
        checkpoint = load_checkpoint(path)
        args = checkpoint["args"]
        try:
            model = timm.create_model(args["model"], num_classes=args["num_classes"], in_chans=args["in_chans"])
            schedule = PruneSchedule(args["prune_rate"], 0, 0)
            pruner = SUBPPruner(model, schedule, block_size=args["block_size"], skip=args["skip"])
            model.load_state_dict(checkpoint.get("ema", checkpoint["model"]))
            keys = ("model", "num_classes", "mean", "std", "block_size", "prune_rate")
            metadata = {key: args[key] for key in keys}
            input_size = (args["in_chans"], args["img_size"], args["img_size"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"{path}: its weights and its flags do not fit together: {first}") from error
        if not pruner.at_target:
            raise UsageError(
                f"{path} is of epoch {checkpoint['epoch']}: {pruner.pruned_share():.1%} of its blocks are pruned, and "
                f"the run has not reached its rate of {args['prune_rate']:g}; export best.pt, or a later checkpoint"
            )
        metadata |= {"input_size": list(input_size), "class_names": _class_names(path.parent)}
        return cls(model.eval(), input_size, metadata)

    @classmethod
    def random(
        cls,
        name: str,
        rate: float,
        block_size: int,
        *,
        skip: Sequence[str] = (),
        image_size: int | None = None,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> Network:
        """A network without a training; the arguments are those of ``random_network``."""
        model, input_size = random_network(
            name, rate, block_size, skip=skip, image_size=image_size, num_classes=num_classes, seed=seed
        )
        config = model.pretrained_cfg
        metadata = {
            "model": name, "num_classes": num_classes or config["num_classes"], "input_size": list(input_size),
            "mean": list(config["mean"]), "std": list(config["std"]), "block_size": block_size, "prune_rate": rate,
            "init": f"random, seed {seed}",
        }  # fmt: skip
        return cls(model, input_size, metadata)


def _checkpoint_of(source: Path) -> Path:
    if not source.exists():
        raise UsageError(f"{source}: no such run or checkpoint")
    if not source.is_dir():
        return source
    found = next((path for name in ("best.pt", "last.pt") if (path := source / name).is_file()), None)
    if found is None:
        raise UsageError(f"{source} is not a run: it has neither best.pt nor last.pt")
    return found


def _class_names(folder: Path) -> list[str] | None:
    """The run's class names; a checkpoint has none, but the weights that a finished run writes beside it do."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    try:
        with safe_open(weights, "pt") as file:
            return json.loads((file.metadata() or {}).get("class_names", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UsageError(f"{weights} is damaged: {error}") from error
