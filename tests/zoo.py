"""One check of one timm model, from masks to plain weights; `test_zoo.py` runs it over families, or over all of timm.

`python tests/zoo.py [SHARD/SHARDS] [PATTERN ...]` prints a line per model and a summary. Every model is made by timm
with random weights, gets masks of half of its 1x16 blocks, takes one training step of two small images, and gives its
plain weights to a fresh model of timm. What is counted and compared here is written independently of the package.
"""

from __future__ import annotations

import copy
import fnmatch
import logging
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import timm
import torch
from timm.layers import CondConv2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from subp_dist.flops import count_macs
from subp_dist.parametrization import plain_state_dict
from subp_dist.plan import check_worth, plan_layers
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule
from subp_dist.torch_compat import ANY_CONVOLUTION

RATE, BLOCK_SIZE, CLASSES = 0.5, 16, 10
SIZES = (64, 96, 128, 192, 224, 256)
# Parameters from which a model is checked by its shapes alone.
LARGE = 150e6
STATUSES = ("passed", "structure", "refused", "failed")
STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        status: `passed`; `structure`: passed without being run, on the meta device, because it is large; `refused` with
            the reason that the package gives; `failed` with what went wrong.
        kind: the reason without what is the model's own, to count by.
        prunable_share: share of the MACs in layers that are pruned.
        convolution_share: share of the MACs in convolutions of any kind; half or more makes it a CNN here.
    """

    status: str
    reason: str = ""
    kind: str = ""
    pruned_layers: int = 0
    prunable_share: float = 0.0
    convolution_share: float = 0.0


def check(name: str, prune_linear: bool = False) -> Outcome:
    """Take a model through everything."""
    try:
        return _check(name, prune_linear)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("failed", f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})")


def _check(name: str, prune_linear: bool) -> Outcome:
    # Shapes tell all that is refused; the meta device has them at once.
    shapes = _create(name, "meta")
    size, macs = _smallest_size(shapes)
    plan = plan_layers(shapes, prune_linear=prune_linear)
    convolutions = [
        layer for layer, module in shapes.named_modules() if isinstance(module, ANY_CONVOLUTION | CondConv2d)
    ]
    convolution_share = sum(macs.get(layer, 0) for layer in convolutions) / sum(macs.values())
    kinds = {layer.name: type(layer.module) for layer in plan if layer.reason is None}
    is_large = sum(parameter.numel() for parameter in shapes.parameters()) > LARGE
    try:
        share = check_worth(plan, macs, name)
        pruner = _attach(shapes, prune_linear)
    except ValueError as error:
        reasons = sorted({_general(layer.reason) for layer in plan if layer.reason is not None})
        kind = "too small a share of its MACs in layers to prune" if kinds else ", ".join(reasons) or "no convolutions"
        return Outcome("refused", str(error), kind, len(kinds), 0.0, convolution_share)
    assert list(pruner.layers) == list(kinds)
    if is_large:
        _assert_plain(shapes, _create(name, "meta"), kinds)
        return Outcome("structure", "", "", len(kinds), share, convolution_share)
    del shapes, plan
    torch.manual_seed(0)
    fresh = _create(name, "cpu")
    model = copy.deepcopy(fresh)
    pruner = _attach(model, prune_linear)
    pruner.step(0)
    images = _images(fresh, size)
    _train_one_step(model, pruner, images, macs)
    pruner.step(1)
    for layer, module in pruner.layers.items():
        _assert_uniform(layer, module)
    for layer in pruner.report(macs):
        assert layer.is_pruned == (layer.name in pruner.layers) and layer.reason != "", layer
    _assert_plain(model, fresh, kinds)
    with torch.no_grad():
        expected, found = (_tensors(network.eval()(images))[0] for network in (model, fresh))
    scale = max(1.0, expected.abs().max().item())
    assert expected.isfinite().all(), "the outputs are not finite"
    # Standardising the exported weight once more rounds; all other layers compute the very same.
    tolerance = 1e-3 if any(issubclass(kind, STANDARDISED) for kind in kinds.values()) else 1e-5
    assert (expected - found).abs().max() <= tolerance * scale, (expected - found).abs().max().item()
    return Outcome("passed", "", "", len(kinds), share, convolution_share)


def _create(name: str, device: str) -> nn.Module:
    with torch.device(device):
        return timm.create_model(name, num_classes=CLASSES)


def _attach(model: nn.Module, prune_linear: bool) -> SUBPPruner:
    return SUBPPruner(
        model, PruneSchedule(RATE, 0, 0), block_size=BLOCK_SIZE, criterion="l1", prune_linear=prune_linear
    )


def _general(reason: str) -> str:
    return re.sub(r"^\w+ (?=is not a|mixes|uses)", "a convolution that ", reason)


def _assert_plain(model: nn.Module, fresh: nn.Module, kinds: dict[str, type]) -> None:
    """The plain weights load strictly into a model of timm that has never seen a mask; on meta: keys and shapes."""
    fresh.load_state_dict(plain_state_dict(model), strict=True)
    for layer, kind in kinds.items():
        assert type(fresh.get_submodule(layer)) is kind


def _sizes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Image sizes to try, the model's own last."""
    own = tuple(model.pretrained_cfg["input_size"])
    smaller = [(own[0], size, size) for size in SIZES if size < own[1]]
    return [own] if model.pretrained_cfg.get("fixed_input_size") else [*smaller, own]


def _smallest_size(model: nn.Module) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The smallest image that a model takes, and its MACs."""
    *smaller, own = _sizes(model)
    for size in smaller:
        try:
            return size, count_macs(model, size)
        except (RuntimeError, AssertionError, ValueError):
            pass
    return own, count_macs(model, own)


def _images(model: nn.Module, smallest: tuple[int, int, int]) -> torch.Tensor:
    """Two images `[2, C, H, W]`, large enough: some models pool a small image away, which gives NaN."""
    sizes = _sizes(model)
    for size in sizes[sizes.index(smallest) :]:
        images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            if all(output.isfinite().all() for output in _tensors(model.eval()(images))):
                return images
    raise AssertionError("the outputs are not finite, whatever the size of the image")


def _train_one_step(model: nn.Module, pruner: SUBPPruner, images: torch.Tensor, macs: dict[str, int]) -> None:
    """One step of SGD; masked blocks must get a gradient wherever their layer gets one."""
    for module in model.modules():
        # The statistics become those of this batch: with a mixture of them and the initial ones a deep network, which
        # has not been trained, overflows in evaluation.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(output.float().square().mean() for output in _tensors(model.train()(images))).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # gradients of random weights can be of any size
    pruner.decay_gradients()
    compared = 0
    for layer, module in pruner.layers.items():
        grad = module.parametrizations.weight.original.grad
        if layer not in macs or grad is None:
            continue
        assert grad.isfinite().all(), f"{layer}: gradient is not finite"
        kept, learning = (_blocks(tensor, module).any(-1) for tensor in (module.weight, grad))
        if learning[kept].any():
            assert learning[~kept].any() or kept.all(), f"{layer}: pruned blocks get no gradient"
            compared += 1
    assert compared, "no pruned layer got a gradient"
    optimizer.step()


def _blocks(tensor: torch.Tensor, module: nn.Module) -> np.ndarray:
    """Blocks `[R, I, D]` of a tensor of the shape of a layer's weight, row by row."""
    weight, groups = tensor.detach().numpy(), getattr(module, "groups", 1)
    rows = []
    for group in np.split(weight, groups):
        for start in range(0, len(group), BLOCK_SIZE):
            row = group[start : start + BLOCK_SIZE].reshape(-1, weight.shape[1], weight[0, 0].size)
            padded = np.zeros((BLOCK_SIZE, *row.shape[1:]), weight.dtype)
            padded[: len(row)] = row
            rows.append(padded.transpose(1, 0, 2).reshape(weight.shape[1], -1))
    return np.stack(rows)


def _assert_uniform(layer: str, module: nn.Module) -> None:
    blocks = _blocks(module.weight, module)
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


def sweep(names: list[str], say=print) -> dict[str, Outcome]:
    """Check many models; a line for each, with seconds of CPU time, then the summary."""
    found = {}
    for name in names:
        start = time.process_time()
        found[name] = outcome = check(name)
        say(
            f"{outcome.status:9} {name:40} {outcome.pruned_layers:4} layers, {100 * outcome.prunable_share:5.1f} % of "
            f"MACs (convolutions {100 * outcome.convolution_share:5.1f} %) {time.process_time() - start:6.1f} s  "
            f"{outcome.reason}"
        )
    say(summary(list(found.values())))
    return found


def summary(outcomes: list[Outcome]) -> str:
    """How many of the CNNs, and of the others, came to what, and why not further."""
    lines = []
    for title, is_cnn in (("convolutions hold half of the MACs or more", True), ("the others", False)):
        # What failed has not got as far as its share; it counts against the CNNs.
        group = [o for o in outcomes if (o.convolution_share >= 0.5 or o.status == "failed") == is_cnn]
        counts = Counter(outcome.status for outcome in group)
        lines.append(f"{len(group)} models, {title}: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES))
        kinds = Counter(outcome.kind for outcome in group if outcome.status == "refused")
        lines += [f"  {count:4} refused: {kind}" for kind, count in kinds.most_common()]
    lines.append(f"structure: more than {LARGE / 1e6:.0f} M parameters, checked by shapes and keys alone, not run")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore")
    logging.getLogger("subp_dist").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    shard, shards = 0, 1
    if arguments and "/" in arguments[0]:
        shard, shards = map(int, arguments.pop(0).split("/"))
    patterns = arguments or ["*"]
    names = [name for name in timm.list_models() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    found = sweep(names[shard::shards], lambda line: print(line, flush=True))
    return 1 if any(outcome.status == "failed" for outcome in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
