"""One check of one timm model, from masks to plain weights; `test_zoo.py` runs it over families, or over all of timm.

`python tests/zoo.py [SHARD/SHARDS] [PATTERN ...]` prints a line per model and a summary. Every model is made by timm
with random weights, gets masks of half of its 1x16 blocks, takes one training step of two small images, and gives its
plain weights to a fresh model of timm. What is counted and compared here is written independently of the package.
"""

from __future__ import annotations

import copy
import fnmatch
import os
import sys
import time
import traceback
import warnings
from dataclasses import dataclass

import numpy as np
import timm
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from subp_dist.flops import count_macs
from subp_dist.parametrization import plain_state_dict
from subp_dist.plan import check_worth, plan_layers
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

RATE, BLOCK_SIZE, CLASSES = 0.5, 16, 10
SIZES = (64, 96, 128, 192, 224, 256)
STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


@dataclass(frozen=True)
class Outcome:
    """`passed`, `refused` (with the reason that the package gives) or `failed` (with what went wrong)."""

    status: str
    reason: str = ""
    pruned_layers: int = 0
    prunable_share: float = 0.0


def check(name: str, prune_linear: bool = False) -> Outcome:
    """Take a model through everything."""
    try:
        return _check(name, prune_linear)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("failed", f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})")


def _check(name: str, prune_linear: bool) -> Outcome:
    try:
        # Shapes tell most of what is refused; the meta device has them at once.
        with torch.device("meta"):
            shapes = timm.create_model(name, num_classes=CLASSES)
        pruner = SUBPPruner(shapes, PruneSchedule(RATE, 0, 0), block_size=BLOCK_SIZE, prune_linear=prune_linear)
    except ValueError as error:
        return Outcome("refused", str(error))
    need = 24 * sum(parameter.numel() for parameter in shapes.parameters())
    if need > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return Outcome("skipped", f"needs about {need / 2**30:.0f} GiB")
    torch.manual_seed(0)
    fresh = timm.create_model(name, num_classes=CLASSES)
    size, macs = _smallest_size(fresh)
    try:
        share = check_worth(plan_layers(fresh, prune_linear=prune_linear), macs, name)
        model = copy.deepcopy(fresh)
        pruner = SUBPPruner(
            model, PruneSchedule(RATE, 0, 0), block_size=BLOCK_SIZE, criterion="l1", prune_linear=prune_linear
        )
    except ValueError as error:
        return Outcome("refused", str(error))
    kinds = {layer: type(fresh.get_submodule(layer)) for layer in pruner.layers}
    pruner.step(0)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    _train_one_step(model, pruner, images, macs)
    pruner.step(1)
    for layer, module in pruner.layers.items():
        _assert_uniform(layer, module)
    for row in pruner.report(macs):
        assert (row["reason"] is None) == (row["name"] in pruner.layers) and row["reason"] != "", row
    fresh.load_state_dict(plain_state_dict(model), strict=True)
    for layer, kind in kinds.items():
        assert type(fresh.get_submodule(layer)) is kind
    with torch.no_grad():
        expected, found = (_tensors(network.eval()(images))[0] for network in (model, fresh))
    scale = max(1.0, expected.abs().max().item())
    assert expected.isfinite().all(), "the outputs are not finite"
    # Standardising the exported weight once more rounds; all other layers compute the very same.
    tolerance = 1e-3 if any(issubclass(kind, STANDARDISED) for kind in kinds.values()) else 1e-5
    assert (expected - found).abs().max() <= tolerance * scale, (expected - found).abs().max().item()
    return Outcome("passed", "", len(pruner.layers), share)


def _smallest_size(model: nn.Module) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The smallest image that a model takes, two at a time in training, and its MACs."""
    own = model.pretrained_cfg["input_size"]
    sizes = [(own[0], size, size) for size in SIZES if size < own[1]] + [tuple(own)]
    if model.pretrained_cfg.get("fixed_input_size"):
        sizes = [tuple(own)]
    for size in sizes:
        try:
            macs = count_macs(model, size)
            with torch.no_grad():
                outputs = _tensors(model.eval()(torch.randn(2, *size)))
            # Pooling an image away gives NaN in some models, and an error in others.
            if all(output.isfinite().all() for output in outputs) or size == sizes[-1]:
                return size, macs
        except (RuntimeError, AssertionError, ValueError):
            if size == sizes[-1]:
                raise
    raise AssertionError


def _train_one_step(model: nn.Module, pruner: SUBPPruner, images: torch.Tensor, macs: dict[str, int]) -> None:
    """One step of SGD; masked blocks must get a gradient wherever their layer gets one, and move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(output.float().square().mean() for output in _tensors(model.train()(images))).backward()
    pruner.decay_gradients()
    before = {}
    for layer, module in pruner.layers.items():
        latent = module.parametrizations.weight.original
        if layer not in macs or latent.grad is None:
            continue
        masked = ~_kept(module)
        assert latent.grad.isfinite().all(), f"{layer}: gradient is not finite"
        if latent.grad[~masked].any():
            assert latent.grad[masked].any() or not masked.any(), f"{layer}: pruned blocks get no gradient"
            before[layer] = latent.detach().flatten()[:64].clone()
    assert before, "no pruned layer got a gradient"
    optimizer.step()


def _kept(module: nn.Module) -> torch.Tensor:
    """Elementwise mask of a weight, from the zeros of what the layer computes with."""
    weight = module.weight.detach()
    blocks = _blocks(module)
    kept = torch.from_numpy(blocks.any(-1))
    groups, out = getattr(module, "groups", 1), weight.shape[0]
    rows = (
        torch.arange(out) // (out // groups) * (len(kept) // groups) + torch.arange(out) % (out // groups) // BLOCK_SIZE
    )
    return kept[rows].view(*weight.shape[:2], *(1,) * (weight.ndim - 2)).expand_as(weight)


def _blocks(module: nn.Module) -> np.ndarray:
    """Blocks `[R, I, D]` of the weight that a layer computes with, row by row."""
    weight, groups = module.weight.detach().numpy(), getattr(module, "groups", 1)
    rows = []
    for group in np.split(weight, groups):
        for start in range(0, len(group), BLOCK_SIZE):
            row = group[start : start + BLOCK_SIZE].reshape(-1, weight.shape[1], weight[0, 0].size)
            padded = np.zeros((BLOCK_SIZE, *row.shape[1:]), weight.dtype)
            padded[: len(row)] = row
            rows.append(padded.transpose(1, 0, 2).reshape(weight.shape[1], -1))
    return np.stack(rows)


def _assert_uniform(layer: str, module: nn.Module) -> None:
    blocks = _blocks(module)
    channels = blocks.shape[1]
    pruned = min(int(RATE * channels), channels - 1)
    zeros = (~blocks.any(-1)).sum(1)
    # A weight that starts at zero keeps blocks of zeros.
    if blocks.any():
        assert (zeros == pruned).all(), f"{layer}: rows prune {sorted(set(zeros.tolist()))} of {channels}, not {pruned}"


def _tensors(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _tensors(value)]


def names_by_size() -> list[str]:
    """All models of timm, the smallest first, so that what is most likely to be used is seen early."""
    sizes = {}
    for name in timm.list_models():
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    return sorted(sizes, key=lambda name: (sizes[name], name))


def sweep(names: list[str], say=print) -> dict[str, list[str]]:
    """Check many models; a line for each, then the summary. Returns names by status."""
    found: dict[str, list[str]] = {"passed": [], "refused": [], "failed": [], "skipped": []}
    for name in names:
        start = time.perf_counter()
        outcome = check(name)
        found[outcome.status].append(name)
        say(
            f"{outcome.status:8} {name:40} {outcome.pruned_layers:4} layers {100 * outcome.prunable_share:5.1f} % "
            f"{time.perf_counter() - start:6.1f} s  {outcome.reason}"
        )
    say(f"{len(names)} models: " + ", ".join(f"{len(group)} {status}" for status, group in found.items()))
    return found


def main(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    shard, shards = 0, 1
    if arguments and "/" in arguments[0]:
        shard, shards = map(int, arguments.pop(0).split("/"))
    patterns = arguments or ["*"]
    every = names_by_size() if patterns == ["*"] else timm.list_models()
    names = [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return 1 if sweep(names[shard::shards], lambda line: print(line, flush=True))["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
