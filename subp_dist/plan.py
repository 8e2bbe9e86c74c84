"""Which layers of a model are pruned, at which rate, and why the others stay dense; nothing is changed here."""

from __future__ import annotations

import fnmatch
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from timm.layers import CondConv2d, Conv2dSame
from torch import nn

from . import masks
from .flag_values import check_several
from .parametrization import STANDARDISED
from .torch_compat import ANY_CONVOLUTION

_logger = logging.getLogger(__name__)

# Below the first share of MACs in prunable layers a model is refused, below the second its user is warned.
REFUSED_SHARE, LOW_SHARE = 0.05, 0.50

# Convolutions whose forward is known to use the weight as it is, or to standardise it, which the mask then follows.
_KNOWN = (nn.Conv2d, Conv2dSame, *STANDARDISED)
# What timm's models call a stem that is deeper than one convolution.
_STEMS = ("stem", "conv1", "conv_stem", "patch_embed")


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer: pruned if ``reason`` is None, else kept dense because of it.

    Attributes:
        name: of the module in the model.
        rate: share of its blocks to prune; None for the rate of the schedule.
        own_name: of the module in its network, which is the same whatever wraps that; masks are drawn by it.
    """

    name: str
    module: nn.Module
    reason: str | None
    rate: float | None = None
    own_name: str = ""

    @property
    def drawn_by(self) -> str:
        """The name that decides which masks are drawn."""
        return self.own_name or self.name


def plan_layers(
    model: nn.Module,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    layer_rates: Mapping[str, float] | None = None,
    prune_linear: bool = False,
) -> list[LayerPlan]:
    """Decide for every convolution of a model, and for every linear layer if asked, whether it is pruned.

    Pruned is every 2-D convolution with more than one input channel per group, except the stem and the classifier.

    Args:
        model: a model without masks; a module around a network, which adds no layer to it, is looked through.
        skip: name patterns (shell style, such as ``*downsample*``) of layers that stay dense.
        only: name patterns of the layers to prune; all by default. ``skip`` wins.
        layer_rates: pruning rate by name pattern, for layers that shall not have the schedule's; the first that
            matches counts.
        prune_linear: prune linear layers as well, such as the pointwise ones of ConvNeXt.

    Raises:
        ValueError: a pattern matches no layer, a rate is out of range, or its pattern changes nothing.
    """
    check_several(skip, "skip")
    check_several(only, "only")
    if layer_rates is not None and not isinstance(layer_rates, Mapping):
        raise ValueError(f"layer_rates {layer_rates!r}: expected a dict, such as {{'layer4*': 0.75}}")
    prefix, network = find_network(model)
    if prefix:
        skip, only = ([pattern.removeprefix(prefix) for pattern in patterns] for patterns in (skip, only))
        layer_rates = {pattern.removeprefix(prefix): rate for pattern, rate in (layer_rates or {}).items()}
        plans = plan_layers(network, skip, only, layer_rates, prune_linear)
        return [replace(plan, name=f"{prefix}{plan.name}", own_name=plan.name) for plan in plans]
    layer_rates = dict(layer_rates or {})
    kinds = (ANY_CONVOLUTION, CondConv2d, nn.Linear) if prune_linear else (ANY_CONVOLUTION, CondConv2d)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    _check_patterns(layers, skip, only, layer_rates, "convolution or linear layer" if prune_linear else "convolution")
    stem, classifier = _stem(model, layers), _classifier(model)
    users = Counter(id(_own_weight(module)) for module in layers.values())

    def reason(name: str, module: nn.Module) -> str | None:
        if name in stem:
            return "stem"
        if any(name == c or name.startswith(f"{c}.") for c in classifier):
            return "classifier"
        if (pattern := _match(name, skip)) is not None:
            return f"skipped by {pattern!r}"
        if only and _match(name, only) is None:
            return "not among --only"
        if (unfit := _unfit(module)) is not None:
            return unfit
        return "shares its weight with another layer" if users[id(module.weight)] > 1 else None

    def plan(name: str, module: nn.Module) -> LayerPlan:
        why, pattern = reason(name, module), _match(name, list(layer_rates))
        return LayerPlan(name, module, why, layer_rates[pattern] if pattern and why is None else None)

    plans = [plan(name, module) for name, module in layers.items()]
    for pattern in layer_rates:
        _check_has_effect(pattern, plans, list(layer_rates))
    return plans


def find_network(model: nn.Module) -> tuple[str, nn.Module]:
    """The network in a module that just wraps it, such as a LightningModule, and what stands before its names there."""
    prefix, kinds = "", (ANY_CONVOLUTION, CondConv2d, nn.Linear)
    while "pretrained_cfg" not in vars(model):
        inside = [
            (name, child)
            for name, child in model.named_children()
            if any(isinstance(module, kinds) for module in child.modules())
        ]
        if len(inside) != 1 or isinstance(inside[0][1], kinds) or isinstance(model, nn.Sequential) and len(model) > 1:
            break
        prefix, model = f"{prefix}{inside[0][0]}.", inside[0][1]
    return prefix, model


def _check_patterns(
    layers: dict[str, nn.Module], skip: Sequence[str], only: Sequence[str], rates: dict[str, float], kind: str
) -> None:
    for flag, patterns in (("--skip", skip), ("--only", only), ("--layer-rates", rates)):
        for pattern in patterns:
            if not fnmatch.filter(layers, pattern):
                raise ValueError(f"{flag} {pattern!r} matches no {kind}; names look like {', '.join(list(layers)[:3])}")
    for pattern, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"--layer-rates {pattern}={rate}: expected a share of blocks in [0, 1), such as 0.5")


def _check_has_effect(pattern: str, plans: Sequence[LayerPlan], patterns: Sequence[str]) -> None:
    matched = [layer for layer in plans if fnmatch.fnmatchcase(layer.name, pattern)]
    if any(layer.reason is None and _match(layer.name, patterns) == pattern for layer in matched):
        return
    first = matched[0]
    earlier = _match(first.name, patterns)
    why = f"stays dense, {first.reason}" if first.reason else f"has its rate from {earlier!r}, named before"
    raise ValueError(f"--layer-rates {pattern!r} changes nothing: {first.name} {why}")


def _match(name: str, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)), None)


def _unfit(module: nn.Module) -> str | None:
    """Why a layer cannot hold uniform blocks, whatever its place in the model."""
    kind = type(module).__name__
    if isinstance(module, CondConv2d):
        return f"{kind} mixes several kernels anew for each image"
    if isinstance(module, nn.Linear):
        fits = type(module).forward is nn.Linear.forward
    else:
        if not isinstance(module, nn.Conv2d):
            return f"{kind} is not a 2-D convolution"
        if module.in_channels == module.groups:
            return "depthwise: one input channel per group"
        fits = any(type(module).forward is known.forward for known in _KNOWN)
    if not fits:
        return f"{kind} uses its weight in a way of its own, which may undo a mask"
    if _own_weight(module) is None:
        return "its weight is computed by another parametrization"
    return None


def _own_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight that a layer holds as a parameter of its own, or None where it is computed."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False)).get("weight")


def _stem(model: nn.Module, layers: dict[str, nn.Module]) -> set[str]:
    """The convolutions of the stem: the first one, and its neighbours where timm's stem is a module of several."""
    convolutions = [name for name, module in layers.items() if isinstance(module, ANY_CONVOLUTION)]
    first = _as_tuple((getattr(model, "pretrained_cfg", None) or {}).get("first_conv"))
    # Not every model's configuration is right about it.
    stem = {name for name in convolutions if name in first} or set(convolutions[:1])
    parents = {parent for name in stem if (parent := _stem_module(name))}
    return stem | {name for name in convolutions if any(name.startswith(f"{parent}.") for parent in parents)}


def _stem_module(first: str) -> str | None:
    """``conv1`` for ``conv1.0``: the module around the first convolution that is a stem by its name."""
    parts = first.split(".")
    # In a hybrid the patch embedding holds a whole network: its own stem counts.
    start = parts.index("backbone") + 1 if "backbone" in parts else 0
    ends = (end for end in range(start + 1, len(parts)) if parts[end - 1] in _STEMS)
    end = next(ends, None)
    return None if end is None else ".".join(parts[:end])


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that classify; in a model that does not tell, the last linear layer."""
    named = _as_tuple((getattr(model, "pretrained_cfg", None) or {}).get("classifier"))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return named or tuple(linear[-1:])


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def kept_macs_at(plan: Sequence[LayerPlan], macs: dict[str, int]) -> Callable[[float], float]:
    """Kept MACs of a model as a function of the uniform rate; every row of a layer keeps the same share.

    Layers with a rate of their own keep to it.
    """
    pruned = [layer for layer in plan if layer.reason is None]

    def kept(rate: float) -> float:
        shares = {}
        for layer in pruned:
            channels = layer.module.weight.shape[1]
            own_rate = rate if layer.rate is None else layer.rate
            shares[layer.name] = 1 - masks.num_candidates(own_rate, channels) / channels
        return sum(dense * shares.get(name, 1.0) for name, dense in macs.items())

    return kept


def check_prunable(plan: Sequence[LayerPlan], model_name: str) -> None:
    """Refuse a model in which no layer is to be pruned.

    Raises:
        ValueError: with the reasons of its first layers.
    """
    if any(layer.reason is None for layer in plan):
        return
    reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in plan[:8]) or "it has no convolutions"
    has_linear = any(isinstance(layer.module, nn.Linear) for layer in plan)
    advice = "" if has_linear else " (linear layers are pruned with --prune-linear)"
    raise ValueError(f"nothing to prune in {model_name}: {reasons}{advice}")


def check_worth(plan: Sequence[LayerPlan], macs: dict[str, int], model_name: str) -> float:
    """The share of a model's MACs that lies in layers to be pruned; a low one is warned about, a tiny one refused.

    Raises:
        ValueError: pruning could save next to nothing, as in a transformer.
    """
    total = sum(macs.values())
    pruned = {layer.name for layer in plan if layer.reason is None}
    share = sum(count for name, count in macs.items() if name in pruned) / total
    if not pruned or share >= LOW_SHARE:
        return share
    found = f"{model_name}: layers to be pruned hold {100 * share:.1f} % of its MACs"
    planned = {layer.name for layer in plan}
    linear = sum(count for name, count in macs.items() if name not in planned) / total
    advice = f"; linear layers hold {100 * linear:.1f} %: --prune-linear prunes them too" if linear > 0.1 else ""
    if share < REFUSED_SHARE:
        raise ValueError(
            f"{found}, too little to be worth it (at least {100 * REFUSED_SHARE:.0f} % are wanted){advice}"
        )
    _logger.warning("%s; whatever the rate, the rest stays%s", found, advice)
    return share


def reparametrised(plan: Sequence[LayerPlan], model: nn.Module) -> list[str]:
    """Classes of modules that can fuse several branches of which at least one is pruned, such as ``RepVggBlock``.

    Each branch is sparse on its own. Their sum is not: fusing them after the training fills the zeros of one branch
    with another's weights.
    """
    pruned = [layer.name for layer in plan if layer.reason is None]
    fusing = {
        type(module).__name__
        for name, module in model.named_modules()
        if callable(getattr(module, "reparameterize", None)) or callable(getattr(module, "switch_to_deploy", None))
        if any(layer.startswith(f"{name}.") for layer in pruned)
    }
    return sorted(fusing)
