"""timm models, with errors that say what to do."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .config import ModelConfig
from .errors import UsageError
from .flag_values import parse_kwargs


def check_model_name(name: str) -> None:
    """Raise a UsageError with names that are near if timm has no such model, or no such weights of it."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        raise UsageError(f"timm {timm.__version__} has no model {name!r}; did you mean {', '.join(near)}?")
    architecture, _, tag = name.partition(".")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise UsageError(f"timm has no weights {tag!r} of {architecture}; there are {', '.join(tagged)}")


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay images' weights out in channels-last, in place; torch's own way fails at a Conv3d, as lambda layers have."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def wrong_images(name: str, size: tuple[int, int, int], error: Exception) -> UsageError:
    """What to say when a model fails on images of a size; its own assertions often say nothing."""
    _, height, width = timm.get_pretrained_cfg(name).input_size
    return UsageError(
        f"{name} does not run on images of {size}: {str(error) or 'it refuses their size'}; it was made for "
        f"{height}x{width}: set --img-size"
    )


def model_arguments(config: ModelConfig, num_classes: int, in_chans: int) -> dict[str, Any]:
    """What ``timm.create_model`` is to be called with, the name aside, for a training."""
    optional = {"drop_rate": config.drop, "drop_path_rate": config.drop_path} | parse_kwargs(config.model_kwargs)
    given = {key: value for key, value in optional.items() if value is not None}
    return {"num_classes": num_classes, "in_chans": in_chans} | given


def create_model(name: str, **arguments: Any) -> nn.Module:
    """A timm model.

    Raises:
        UsageError: there is none of that name, or it does not take the arguments.
    """
    check_model_name(name)
    try:
        return timm.create_model(name, **arguments)
    except (RuntimeError, TypeError, FileNotFoundError, ValueError, AssertionError) as error:
        raise UsageError(f"timm cannot create {name}: {error}") from error


def create_pretrained(name: str, **arguments: Any) -> nn.Module:
    """A timm model with its trained weights, from timm's cache or the hub; its classifier is new for other classes.

    Raises:
        UsageError: there are no such weights, or they cannot be had here.
    """
    check_model_name(name)
    if not timm.models.is_model_pretrained(name):
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        known = f"there are {', '.join(tagged)}" if tagged else "leave it out"
        raise UsageError(f"--pretrained: timm has no trained weights of {name}; {known}")
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # of the network, the cache, the file, or the model's arguments
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"--pretrained: the weights of {name} cannot be had ({why}); start once where the hub can be reached, and "
            "they are kept in its cache, or pass a file of them as --initial-checkpoint"
        ) from error


def load_initial_weights(model: nn.Module, name: str, path: Path) -> None:
    """Load the weights to start from, in timm's keys: a state dict, a checkpoint of timm's own training, safetensors.

    Raises:
        UsageError: there is no such file, or it does not fit the model.
    """
    if not path.is_file():
        raise UsageError(f"--initial-checkpoint {path}: no such file")
    try:
        timm.models.load_checkpoint(model, str(path))
    except Exception as error:  # whatever unpickling a foreign file may raise
        text = "; ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
        hint = "last.pt is for --resume; the weights of a run are in its model.safetensors: "
        raise UsageError(
            f"--initial-checkpoint {path} does not fit {name}: {hint if '.parametrizations.' in text else ''}"
            f"{text if len(text) < 400 else f'{text[:400]} ...'}"
        ) from error
