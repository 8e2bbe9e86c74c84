"""What can be exported: a network with its masks and its metadata, from a run, a checkpoint or a model's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoint import load_checkpoint
from ..config import PruningConfig, Resolved
from ..errors import UsageError
from ..masks import at_rate
from ..models import create_model, model_arguments
from ..parametrization import block_mask_of, load_masked
from ..plan import LayerPlan, plan_layers
from .synthetic import random_network
from .weights import model_of_weights


@dataclass(frozen=True)
class Network:
    """A masked timm model with all that its files need.

    Attributes:
        model: in evaluation mode.
        input_size: (C, H, W) of its images.
        arguments: what timm creates its like with, the name aside.
        metadata: stored beside the weights.
        config: of the run that it comes from; None without a training.
        quantized: what its checkpoint holds of a training with fake quantization, if there was one.
    """

    model: nn.Module
    input_size: tuple[int, int, int]
    arguments: dict[str, object]
    metadata: dict[str, object]
    config: Resolved | None = None
    quantized: Mapping[str, Any] | None = None

    @classmethod
    def open(cls, source: Path) -> Network:
        """Read a run's folder (its best checkpoint, else its last) or one checkpoint.

        Raises:
            UsageError: there is none, it is damaged, or its state does not fit its flags.
        """
        path = _checkpoint_of(source)
        checkpoint = load_checkpoint(path)
        config = Resolved.from_dict(checkpoint["config"])
        name, data, pruning = config.model.name, config.data, config.pruning
        arguments = model_arguments(config.model, data.num_classes, data.in_chans)
        model = create_model(name, **arguments)
        try:
            plan = [layer for layer in plan_layers(model, **pruning.layers) if layer.reason is None]
            load_masked(model, checkpoint.get("ema", checkpoint["model"]), pruning.block_size)
        except (AttributeError, IndexError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"{path}: its weights and its flags do not fit together: {first}") from error
        if denser := [layer.name for layer in plan if not _at_target(model, layer, pruning)]:
            raise UsageError(
                f"{path} is of epoch {checkpoint['epoch']}, denser than its run's target in {len(denser)} layers, such "
                f"as {denser[0]}; the target is reached at epoch {pruning.prune_end:g}: export a later checkpoint"
            )
        input_size = (data.in_chans, data.img_size, data.img_size)
        metadata = {
            "model": name, "num_classes": data.num_classes, "mean": list(data.mean), "std": list(data.std),
            "block_size": pruning.block_size, "prune_rate": pruning.prune_rate, "input_size": list(input_size),
            "class_names": _class_names(path.parent),
        }  # fmt: skip
        return cls(model.eval(), input_size, arguments, metadata, config, checkpoint.get("quantized"))

    @classmethod
    def random(cls, name: str, rate: float, block_size: int, *, seed: int = 0, **others: Any) -> Network:
        """A network without a training; the arguments are those of ``random_network``."""
        model, input_size, arguments = random_network(name, rate, block_size, seed=seed, **others)
        metadata = _about(name, input_size, arguments)
        metadata |= {"block_size": block_size, "prune_rate": rate, "init": f"random, seed {seed}"}
        return cls(model, input_size, arguments, metadata)

    @classmethod
    def of_weights(cls, path: Path, name: str, image_size: int | None = None, **arguments: Any) -> Network:
        """A network with weights of another training; more arguments are those of ``model_of_weights``."""
        model, given = model_of_weights(path, name, **arguments)
        channels, height, width = timm.get_pretrained_cfg(name).input_size
        input_size = (cast("int", given.get("in_chans", channels)), image_size or height, image_size or width)
        return cls(model, input_size, given, _about(name, input_size, given))


def _about(name: str, input_size: tuple[int, int, int], arguments: dict[str, object]) -> dict[str, object]:
    """What is told of a timm model in its file; mean and std only where they are of as many channels."""
    config = timm.get_pretrained_cfg(name)
    about: dict[str, object] = {"model": name, "input_size": list(input_size)}
    if not arguments.get("features_only"):
        about["num_classes"] = arguments.get("num_classes", config.num_classes)
    if len(config.mean) == input_size[0]:
        about |= {"mean": list(config.mean), "std": list(config.std)}
    return about


def _at_target(model: nn.Module, layer: LayerPlan, pruning: PruningConfig) -> bool:
    rate = pruning.prune_rate if layer.rate is None else layer.rate
    block_mask = block_mask_of(model.get_submodule(layer.name))
    return block_mask is not None and at_rate(block_mask.mask, rate, pruning.pattern)


def _checkpoint_of(source: Path) -> Path:
    if not source.exists():
        raise UsageError(f"{source}: no such run or checkpoint")
    if source.suffix in (".subp", ".onnx", ".safetensors"):
        raise UsageError(
            f"{source} is an exported file, which holds no training: give the run's folder or a checkpoint, or, of "
            "weights, their --model"
        )
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
