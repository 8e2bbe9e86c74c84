"""What a mask update and a pruned step cost on a GPU, beside the dense step; the limits are told, not asserted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import timm
import torch
from parts import Place, peak_bytes, wait
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from subp_dist.models import to_channels_last
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

MASK_UPDATE_MS, STEP_OVERHEAD = 100, 0.03


@torch.no_grad()
def mask_update(place: Place) -> dict:
    """Time of updates of resnet50, with blocks that grow back, without, with an average; memory beyond the model's."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet" if place.tiny else "resnet50").to(place.device)
    pruner = SUBPPruner(model, PruneSchedule(0.516, 0, 100))
    pruner.step(1)
    average = ModelEmaV3(model, 0.99)
    figures = {}
    for name, epoch in {"regrowing": 50.0, "at the target": 100.0}.items():
        figures[name] = _best_ms(place, lambda epoch=epoch: pruner.step(epoch), 2 if place.tiny else 7)

    def with_average() -> None:
        average.update(model, step=1)
        wait(place)
        pruner.step(50.0)
        pruner.copy_masks_to(average.module)
        pruner.report({})

    figures["with an average and a report"] = _best_ms(place, with_average, 2 if place.tiny else 7)
    figures["scores alone"] = _best_ms(place, pruner._scores, 2 if place.tiny else 7)
    memory = peak_bytes(place, lambda: pruner.step(50.0))
    slowest = max(entry["best_ms"] for entry in figures.values())
    return {
        "ms": figures,
        "peak_bytes": memory,
        "limits": {"update_ms": [slowest, MASK_UPDATE_MS, slowest <= MASK_UPDATE_MS]},
    }


def _best_ms(place: Place, work: Callable[[], object], times: int) -> dict:
    seconds = []
    for _ in range(times):
        wait(place)
        start = time.perf_counter()
        work()
        wait(place)
        seconds.append(time.perf_counter() - start)
    return {"best_ms": 1e3 * min(seconds), "median_ms": 1e3 * statistics.median(seconds)}


class _Side:
    """A network with its optimizer, dense or pruned, as a training of bfloat16 in channels-last steps it."""

    def __init__(self, place: Place, name: str, pruned: bool, amp: bool) -> None:
        torch.manual_seed(0)
        self.place, self.amp = place, amp
        self.model = to_channels_last(timm.create_model(name).to(place.device)).train()
        self.pruner = SUBPPruner(self.model, PruneSchedule(0.516, 0, 1)) if pruned else None
        if self.pruner is not None:
            self.pruner.step(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        self.rates: list[float] = []
        self.host_ms: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.amp):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        if self.pruner is not None:
            self.pruner.decay_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def turn(self, steps: int, images: Tensor, labels: Tensor) -> None:
        """Some steps, and what they took, as images a second; the host's share is until the last one is queued."""
        wait(self.place)
        start = time.perf_counter()
        for _ in range(steps):
            self.step(images, labels)
        queued = time.perf_counter()
        wait(self.place)
        self.rates.append(steps * len(images) / (time.perf_counter() - start))
        self.host_ms.append(1e3 * (queued - start) / steps)


def step_overhead(place: Place) -> dict:
    """Images a second of resnet50 at batch 256, dense and pruned, in turns; bfloat16, then TensorFloat32."""
    figures, limits = {}, {}
    name, batch, pixels = ("test_resnet", 4, 32) if place.tiny else ("resnet50", 256, 224)
    images = torch.randn(batch, 3, pixels, pixels, device=place.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=place.device)
    for precision, amp, turns in (("bfloat16", True, 10), ("tensorfloat32", False, 4)):
        sides = {kind: _Side(place, name, kind == "pruned", amp) for kind in ("dense", "pruned")}
        for side in sides.values():
            side.turn(1 if place.tiny else 5, images, labels)  # kernels are chosen, memory is taken
            side.rates.clear(), side.host_ms.clear()
        for turn in range(2 if place.tiny else turns):
            for side in list(sides.values())[:: 1 if turn % 2 else -1]:
                side.turn(1 if place.tiny else 8, images, labels)
        figures[precision] = {kind: _figures(side) for kind, side in sides.items()}
        for kind, side in sides.items():
            figures[precision][kind]["peak_bytes"] = peak_bytes(place, lambda side=side: side.step(images, labels))
        ratio = statistics.median(d / p for d, p in zip(sides["dense"].rates, sides["pruned"].rates, strict=True))
        figures[precision]["overhead"] = ratio - 1
        if amp:
            limits["overhead"] = [ratio - 1, STEP_OVERHEAD, ratio - 1 <= STEP_OVERHEAD]
        del sides
    return {"batch": batch, "steps": figures, "limits": limits}


def _figures(side: _Side) -> dict:
    return {
        "img_per_s": statistics.median(side.rates),
        "best_img_per_s": max(side.rates),
        "host_ms_per_step": statistics.median(side.host_ms),
    }
