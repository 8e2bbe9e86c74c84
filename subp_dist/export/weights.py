"""Weights of other trainings, in files of the usual kinds, into a timm model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UsageError
from ..models import create_model

# Under what trainings keep the weights in their checkpoints; averages first, as they are what was validated.
_WRAPPINGS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)
_WRAPPINGS += ("network", "net", "weights")

State = dict[str, Tensor]


def read_weights(path: Path) -> State:
    """The tensors of a file: safetensors, or what ``torch.save`` wrote, wrapped as trainings do.

    Raises:
        UsageError: there is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, no file of weights' if path.is_dir() else 'no such file'}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # timm keeps its flags beside the weights
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged, or not a safetensors file: {error}") from error
    except Exception as error:  # an unpickler raises whatever a stream leads it to, and torch advises to trust the file
        raise UsageError(
            f"{path} cannot be read as weights: it is damaged, no file of torch.save, or holds other objects than "
            "tensors; save the state_dict() alone"
        ) from error
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        content = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds no weights: expected a state_dict, by itself or as {', '.join(_WRAPPINGS)}")
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if any(".parametrizations." in key for key in state):
        raise UsageError(f"{path} holds masked weights: a checkpoint of a run is exported without --model")
    return state


def model_of_weights(
    path: Path,
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
) -> tuple[nn.Module, dict[str, object]]:
    """A timm model with the weights of a file.

    Args:
        path: of the weights, in timm's keys, perhaps behind a prefix.
        name: of the timm model.
        num_classes: those of the weights by default; 0 leaves the classifier out.
        in_chans: those of the weights by default.
        features_only: the model returns its feature maps.

    Returns:
        The model in evaluation mode, and the arguments that timm creates its like with.

    Raises:
        UsageError: the file does not fit the model; the message names keys or sizes.
    """
    state = read_weights(path)
    model = create_model(name)
    state = _without_prefix(state, list(model.state_dict()))
    found = {
        "num_classes": _size(state, _of_config(name, "classifier"), 0),
        "in_chans": _size(state, _of_config(name, "first_conv"), 1),
    }
    arguments: dict[str, object] = {key: size for key, size in found.items() if size is not None}
    given = {"num_classes": num_classes, "in_chans": in_chans}
    for key, size in given.items():
        if size is None or (key == "num_classes" and size == 0):
            continue
        if found[key] is not None and size != found[key]:
            flag = key.replace("_", "-")
            raise UsageError(f"--{flag} {size}: the weights of {path} are of {found[key]}; leave it out")
        arguments[key] = size
    if found["num_classes"] is None and (num_classes == 0 or features_only):
        arguments["num_classes"] = 0  # the file has no classifier either
    model = create_model(name, **arguments)
    _load(model, state, path, name)
    if features_only:
        arguments = {key: size for key, size in arguments.items() if key != "num_classes"} | {"features_only": True}
        features = create_model(name, **arguments)
        _load(features, _renamed(model.state_dict(), features), path, name)
        return features.eval(), arguments
    if num_classes == 0:
        model.reset_classifier(0)
        arguments["num_classes"] = 0
    return model.eval(), arguments


def _of_config(name: str, key: str) -> tuple[str, ...]:
    """The layers that timm's configuration names."""
    found = timm.get_pretrained_cfg(name).to_dict().get(key) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _size(state: State, layers: tuple[str, ...], dim: int) -> int | None:
    """A size of the weight of the first of these layers that there is."""
    weights = [state[f"{layer}.weight"] for layer in layers if f"{layer}.weight" in state]
    return weights[0].shape[dim] if weights else None


def _without_prefix(state: State, keys: list[str]) -> State:
    """The tensors behind the prefix (``module.``, ``model.``, none) under which most of the keys are."""
    prefixes = {key[: -len(wanted)] for wanted in keys[:20] for key in state if key.endswith(wanted)}
    whole = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]

    def fits(prefix: str) -> tuple[int, bool, int]:
        return sum(f"{prefix}{key}" in state for key in keys), "ema" in prefix, -len(prefix)

    best = max(whole, key=fits, default="")
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def _renamed(state: State, features: nn.Module) -> State:
    """A model's tensors by the keys that they have in its features, which timm flattens."""
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    found = {}
    for key in features.state_dict():
        name = key.replace(".", "_")
        if (tensor := flat.get(name, flat.get(name.removeprefix("model_")))) is not None:
            found[key] = tensor
    return found


def _load(model: nn.Module, state: State, path: Path, name: str) -> None:
    """Load all that the model has.

    Raises:
        UsageError: something is missing, of another shape, or unknown to the model.
    """
    own = model.state_dict()
    wrong = [
        f"{key} is {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    counters = "num_batches_tracked"
    missing = [key for key in own if key not in state and not key.endswith(counters)]
    unknown = [key for key in state if key not in own and not key.endswith(counters)]
    problems = []
    for what, keys in (("lacks", missing), ("has in addition", unknown), ("differs:", wrong)):
        if keys:
            problems.append(f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}")
    if problems:
        raise UsageError(f"{path} does not fit {name}: it {'; it '.join(problems)}")
    model.load_state_dict(state, strict=False)
