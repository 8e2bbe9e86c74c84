"""What has to hold on a GPU. Each check takes a ``Place``, raises where something is wrong, and returns its figures.

On a CPU, in small, they are run by the ordinary tests, so that the checks themselves work when a GPU is there for some
minutes; what only a GPU can tell is left out there.
"""

from __future__ import annotations

import importlib.util
import math
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from parts import Place, environment, loader_of, make_training, same_state, weights_of
from photographs import write_photographs

from subp_dist import masks
from subp_dist.agreement import gather, on_primary, sum_over_ranks
from subp_dist.checkpoint import load_checkpoint, save_checkpoint
from subp_dist.config import AugmentationConfig
from subp_dist.data.augment import ImageAugment
from subp_dist.data.beton import Beton
from subp_dist.data.ffcv_loader import Crop, FFCVLoader, Output
from subp_dist.data.storage import Storage
from subp_dist.data.write import open_pictures, verify, write
from subp_dist.loop import _backward, _optimizer_step, _to_device, train_epoch
from subp_dist.models import create_model
from subp_dist.options import parse_args
from subp_dist.parametrization import block_mask_of
from subp_dist.process_group import closing_process_group, data_parallel, init_process_group
from subp_dist.pruner import SUBPPruner
from subp_dist.resume import checkpoint_state, restore
from subp_dist.schedule import PruneSchedule
from subp_dist.scores import CRITERIA
from subp_dist.stopping import StopRequest
from subp_dist.train import evaluate, main
from subp_dist.training import Training


def masks_equal_those_of_a_cpu(place: Place) -> dict:
    """From the same scores the same masks; scores are rounded differently, and so may masks be where two are near."""
    generator = torch.Generator().manual_seed(1)
    for rows, channels in ((4, 64), (32, 512), (7, 33)):
        scores = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
        scores[:, ::5] = scores[:, 1::5][:, : scores[:, ::5].shape[1]].mean()  # ties
        for epoch in (0.0, 0.5, 1.0):
            drawn = [
                masks.uniform_mask(
                    scores.to(device), 0.5, 0.5 * epoch, 1.0, masks.draw_generator(3, epoch, f"{rows}")
                ).cpu()
                for device in ("cpu", place.device)
            ]
            assert torch.equal(*drawn), f"masks [{rows}, {channels}] at epoch {epoch} differ between CPU and device"
    figures = {}
    for criterion in CRITERIA:
        figures[criterion] = _updates_beside_a_cpu(place, criterion)
    return figures


def _updates_beside_a_cpu(place: Place, criterion: str) -> dict:
    pruners = []
    for device in ("cpu", place.device):
        torch.manual_seed(0)
        model = create_model(place.model).to(device)
        pruners.append(SUBPPruner(model, PruneSchedule(0.5, 0, 2), criterion=criterion))
    worst, different, blocks = 0.0, 0, 0
    for epoch in range(3):
        updates = [pruner.step(epoch) for pruner in pruners]
        for name in pruners[0].layers:
            own, other = (update.scores[name].cpu() for update in updates)
            worst = max(worst, float((own - other).abs().max() / own.abs().max()))
            different += int((pruners[0].masks[name] != pruners[1].masks[name].cpu()).sum())
            blocks += own.numel()
        for own, other in zip(pruners[0].masks.values(), pruners[1].masks.values(), strict=True):
            other.copy_(own)  # so that the next update starts alike
    assert worst < 1e-4, f"{criterion}: scores differ by {worst} of the largest"
    assert different <= 1e-3 * blocks, f"{criterion}: {different} of {blocks} mask bits differ"
    assert pruners[1].at_target
    return {"largest_difference_of_scores": worst, "different_bits": different, "bits": blocks}


PRECISIONS = {
    "float32": [],
    "bfloat16": ["--amp", "--amp-dtype", "bfloat16"],
    "bfloat16, channels-last": ["--amp", "--amp-dtype", "bfloat16", "--channels-last"],
    "float16": ["--amp", "--amp-dtype", "float16", "--channels-last"],
    "accumulation, average, clipping": ["--amp", "--amp-dtype", "bfloat16", "--grad-accum-steps", "2", "--model-ema",
        "--model-ema-decay", "0.5", "--clip-grad", "1"],
    "mixup, erasing, drop-path": ["--mixup", "0.2", "--cutmix", "1", "--drop-path", "0.1"],
}  # fmt: skip


def trains_in_every_precision(place: Place) -> dict:
    """An epoch of each, with mask updates in it; then validation."""
    figures = {}
    for name, flags in PRECISIONS.items():
        training, data = make_training(place, *flags)
        _calm_scaler(training)
        before = weights_of(training.model)
        metrics = train_epoch(training, loader_of(training, data), 0)
        metrics |= evaluate(training, data.val_loader(training.rank, training.config.model.channels_last))
        assert all(math.isfinite(value) for value in metrics.values()), (name, metrics)
        steps = 6 // training.config.optimization.grad_accum_steps
        assert training.updates == steps, f"{name}: {training.updates} of {steps} steps were made"
        moved = [not torch.equal(a, b) for a, b in zip(before, weights_of(training.model), strict=True)]
        # What comes before a scale that starts at zero hardly does.
        assert sum(moved) > 0.8 * len(moved), f"{name}: {moved.count(False)} of {len(moved)} parameters have not moved"
        _check_masked(training)
        figures[name] = {"loss": metrics["loss"], "top1": metrics["top1"]}
    return figures


def _calm_scaler(training: Training) -> None:
    """A scale that float16 does not overflow with; by default torch finds it in the first steps, which it skips."""
    if training.scaler.is_enabled():
        training.scaler = torch.amp.GradScaler(training.rank.device.type, init_scale=128.0)


def _check_masked(training: Training) -> None:
    """Pruned blocks are zeros in the forward pass and live on as latent weights; layouts are kept, as are averages."""
    pruner = training.pruner
    assert pruner.pruned_share() > 0
    for name, module in pruner.layers.items():
        latent, mask = module.parametrizations.weight.original, pruner.masks[name]
        assert mask.device == latent.device == module.weight.device == training.rank.device
        rows = mask.shape[0]
        kept = (module.weight.detach().reshape(rows, -1, *module.weight.shape[1:]) != 0).flatten(3).any(3).any(1)
        assert torch.equal(kept, mask), f"{name}: zeros and mask differ"
        assert bool((latent.detach() != 0).any(1).all()), f"{name}: latent weights were lost"
        assert module.weight.stride() == latent.stride(), f"{name}: {module.weight.stride()} of {latent.stride()}"
        assert mask.sum(1).unique().numel() == 1, f"{name}: rows keep different counts"
        if training.ema is not None:
            assert torch.equal(block_mask_of(training.ema.module.get_submodule(name)).mask, mask), name


def skips_overflowing_steps(place: Place) -> dict:
    """With a scale that overflows, a step changes nothing, and counts for nothing; masks are updated all the same."""
    training, data = make_training(place, "--amp", "--amp-dtype", "float16", "--model-ema", "--model-ema-decay", "0.5")
    training.scaler = torch.amp.GradScaler(place.device.type, init_scale=2.0**60, growth_interval=1000)
    before, average = weights_of(training.model), weights_of(training.ema.module)
    counts, scales = [], []

    def after_step() -> None:
        counts.append(training.updates)
        scales.append(training.scaler.get_scale())
        if len(counts) == 3:
            assert training.updates == 0
            assert all(torch.equal(a, b) for a, b in zip(before, weights_of(training.model), strict=True))
            assert all(torch.equal(a, b) for a, b in zip(average, weights_of(training.ema.module), strict=True))
            training.scaler.update(128.0)

    train_epoch(training, loader_of(training, data), 0, after_step)
    assert counts == [0, 0, 0, 1, 2, 3], counts
    assert scales[0] < 2.0**60, scales
    _check_masked(training)
    return {"updates_after_each_step": counts, "scales": scales}


@contextmanager
def _counted_waits(place: Place) -> Iterator[list[str]]:
    """Where torch saw the host wait for the GPU in the block; on a CPU there is nothing to see."""
    found: list[str] = []
    if not place.on_gpu:
        yield found
        return
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield found
            torch.cuda.set_sync_debug_mode(mode)
        # Another warning says that the mode is a prototype.
        found += [f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def makes_the_host_wait_for_nothing(place: Place) -> dict:
    """Four steps beside each other; float16's scaler waits once a step; an update waits a few times."""
    figures, problems = {}, []  # all are told, also where the first is wrong already
    for name, flags in list(PRECISIONS.items())[:: 3 if place.tiny else 1]:
        training, data = make_training(place, *flags)
        _calm_scaler(training)
        training.update_masks(0.5, 0)
        batches = [_to_device(*batch, training) for batch in loader_of(training, data)]
        _steps(training, batches[:2])
        with _counted_waits(place) as waits:
            _steps(training, batches[2:])
        allowed = len(batches[2:]) if training.scaler.is_enabled() else 0
        if len(waits) > allowed:
            problems.append(f"{name}: {dict(Counter(waits))}")
        with _counted_waits(place) as update_waits:
            training.update_masks(0.75, 10)
        if len(update_waits) > 6:
            problems.append(f"{name}, mask update: {dict(Counter(update_waits))}")
        figures[name] = {
            "steps": len(batches) - 2,
            "waits_in_steps": len(waits),
            "waits_in_an_update": dict(Counter(update_waits)),
        }
    figures["whole_epoch"] = _waits_of_an_epoch(place)
    assert not problems, f"{'; '.join(problems)}; {figures}"
    return figures


def _steps(training: Training, batches: list) -> None:
    """Steps of one batch as ``train_epoch`` makes them, without its loader."""
    training.wrapped.train()
    for images, targets in batches:
        if training.mixup is not None:
            images, targets = training.mixup(images, targets)
        _backward(training, images, targets, 1, True)
        _optimizer_step(training)


def _waits_of_an_epoch(place: Place) -> dict:
    """From the end of the first step to the end of the last, with the loader and its pinned memory."""
    training, data = make_training(place, "--prune-interval", "0", "--model-ema")
    training.update_masks(0.5, 0)
    counter = _counted_waits(place)
    waits: list[str] = []
    steps = 0

    def after_step() -> None:
        nonlocal waits, steps
        steps += 1
        if steps == 1:
            waits = counter.__enter__()
        elif steps == 6:
            counter.__exit__(None, None, None)

    train_epoch(training, loader_of(training, data), 0, after_step)
    assert waits == [], Counter(waits)
    return {"waits_in_5_steps": len(waits)}


def compiles_once(place: Place) -> dict:
    """torch.compile sees new masks without compiling anew, and computes what the bare model does."""
    backend = "inductor" if place.on_gpu else "eager"
    training, data = make_training(place, "--torchcompile", backend, "--channels-last")
    compiled_after = []

    def after_step() -> None:
        compiled_after.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train_epoch(training, loader_of(training, data), 0, after_step)  # masks change before steps 0, 2 and 4
    assert len(set(compiled_after)) == 1, f"graphs after each step: {compiled_after}"
    _check_masked(training)
    images = data.val.tensors[0].to(place.device)
    training.model.eval()
    with torch.no_grad():
        expected, found = training.model(images), training.wrapped(images)
    difference = float((expected - found).abs().max() / expected.abs().max())
    assert difference < 1e-2, difference  # TensorFloat32 in other kernels
    return {"backend": backend, "graphs": compiled_after[-1], "largest_difference": difference}


class _Interrupted(Exception):
    """Ends an epoch where SIGTERM would."""


def resumes_to_the_bit(place: Place) -> dict:
    """An epoch that is left after three steps and gone on with ends as one that was not, with deterministic kernels."""
    flags = ["--amp", "--amp-dtype", "bfloat16", "--channels-last", "--model-ema", "--drop-path", "0.1"]
    # Max pooling's backward pass has no deterministic kernel; this network has none of it.
    place = replace(place, network="regnetx_002") if place.on_gpu else place
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, data = make_training(place, *flags)
        train_epoch(whole, loader_of(whole, data), 0)
        expected = checkpoint_state(whole, 0, None, None)
        first, _ = make_training(place, *flags)
        path = place.folder / "last.pt"

        def leave() -> None:
            if first.progress.step == 3:
                save_checkpoint(path, checkpoint_state(first, 0, None, None))
                raise _Interrupted

        with suppress(_Interrupted):
            train_epoch(first, loader_of(first, data), 0, leave)
        second, _ = make_training(place, *flags)
        restore(second, load_checkpoint(path))
        train_epoch(second, loader_of(second, data, first_batch=3), 0)
    finally:
        torch.use_deterministic_algorithms(False)
    found = checkpoint_state(second, 0, None, None)
    names = ("model", "ema", "optimizer", "updates")
    different = [text for name in names for text in same_state(found[name], expected[name], name)]
    assert not different, f"{len(different)} differ, such as {different[:3]}"
    return {"steps": 6, "left_after": 3}


def one_rank_of_torchrun(place: Place) -> dict:
    """NCCL with one rank (gloo on a CPU), in DDP: joining, all collectives of a training, an epoch, leaving."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}  # fmt: skip
    with environment(**variables), closing_process_group():
        rank = init_process_group(place.device.type, 2)
        assert rank.device.type == place.device.type
        backend = torch.distributed.get_backend()
        assert sum_over_ranks([1.5, 2], rank.device) == [1.5, 2]
        assert gather({"rank": 0}) == [{"rank": 0}] and on_primary(lambda: "told") == "told"
        training, data = make_training(place, "--amp", "--amp-dtype", "bfloat16", "--grad-accum-steps", "2", rank=rank)
        training.wrapped = data_parallel(training.model, rank)
        with StopRequest(2) as stop:
            polls = []
            train_epoch(training, loader_of(training, data), 0, lambda: polls.append(stop.poll()))
        assert polls == [False] * 3
        _check_masked(training)
    return {"backend": backend}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def trains_from_the_command_line(place: Place) -> dict:
    """A whole run on pictures, from flags to the report; with a GPU in the process group of torchrun, with NCCL."""
    folder = write_photographs(place.folder / "photographs", 12 if place.tiny else 64, 4)
    flags = [place.model, "--data-dir", str(folder), "--loader", "timm", "--img-size", str(place.pixels)]
    flags += ["--epochs", "2", "--batch-size", "8", "--lr", "0.02", "--prune-start", "0", "--prune-end", "1"]
    flags += ["--channels-last", "--model-ema", "--no-export", "--output", str(place.folder / "output")]
    flags += ["--workers", "0"] if place.tiny else ["--workers", "4", "--amp"]
    run = main(parse_args(flags)) if place.tiny else _launch(place, flags)
    names = ("last.pt", "model.safetensors", "report.json", "summary.csv", "resolved.yaml")
    assert not (missing := [name for name in names if not (run / name).is_file()]), missing
    return {"files": sorted(path.name for path in run.iterdir())}


def _launch(place: Place, flags: list[str]) -> Path:
    torchrun = [sys.executable, "-m", "subp_dist.launch", "--standalone", "--nproc-per-node=1", "-m", "subp_dist.train"]
    command = [*torchrun, *flags, "--device", place.device.type]
    with environment(PYTHONPATH=str(Path(__file__).resolve().parents[2])):
        done = subprocess.run(command, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return next((place.folder / "output").iterdir())


def takes_batches_of_ffcv(place: Place) -> dict:
    """Batches from memory that is used again arrive whole, without a wait; with FFCV so do those of a file."""
    figures = _delivers_what_is_in_memory(place)
    if place.tiny or importlib.util.find_spec("ffcv") is None:
        return figures | {"file": "not read: FFCV is not installed"}
    return figures | _delivers_what_is_in_a_file(place)


def _delivers_what_is_in_a_file(place: Place) -> dict:
    """The same batches on the device as on a CPU, up to rounding, in training and in validation."""
    pictures = open_pictures("", str(write_photographs(place.folder / "photographs", 40, 2)), "train")
    storage = Storage(0, 0.5, 90)
    indices, largest = verify(pictures, storage, 2, skip=False)
    path = place.folder / "train.beton"
    write(path, pictures, indices, storage, 2, largest)
    beton, difference = Beton.open(path), 0.0
    for crop in (Crop(True), Crop(False)):
        loaders = []
        for device in (torch.device("cpu"), place.device):
            output = Output((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), device, channels_last=True)
            loaders.append(FFCVLoader(beton, 8, 64, crop, output, workers=2))
        for (expected, labels), (found, found_labels) in zip(*loaders, strict=True):
            difference = max(difference, float((expected - found.cpu()).abs().max()))
            assert torch.equal(labels, found_labels.cpu())
    assert difference < 0.03, difference  # on a CPU no byte is rounded in between: half a level of 255, divided by std
    return {"file": "as on a CPU", "largest_difference": difference}


def _delivers_what_is_in_memory(place: Place) -> dict:
    augmentation = AugmentationConfig(reprob=1.0, remode="const")
    augment = ImageAugment.for_images(augmentation, 64) if place.on_gpu else None
    output = Output((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), place.device, channels_last=True, augment=augment)
    loader = FFCVLoader.__new__(FFCVLoader)
    loader.output, loader.seed, loader.beton = output, 0, SimpleNamespace(labels=np.arange(1000), path="memory")
    mean, std = (torch.tensor(v, device=place.device).view(-1, 1, 1) for v in (output.mean, output.std))
    loader._mean, loader._std = 255 * mean, 255 * std
    count = 4 if place.tiny else 256
    pixels = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
    slot = SimpleNamespace(planar=False, normalized=False, copied=None)
    slot.images = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=place.on_gpu)
    delivered = []
    with _counted_waits(place) as waits:
        for number in range(6):
            if slot.copied is not None:
                slot.copied.synchronize()  # as the thread that fills does
            slot.images.copy_(pixels.flip(0) if number % 2 else pixels)
            delivered.append(loader._deliver(slot, np.arange(count), number))
    for number, (images, labels) in enumerate(delivered):
        expected = (pixels.flip(0) if number % 2 else pixels).permute(0, 3, 1, 2).float()
        expected = (expected / 255 - torch.tensor(output.mean).view(-1, 1, 1)) / torch.tensor(output.std).view(-1, 1, 1)
        found = images.cpu()
        untouched = (found - expected).abs() < 1e-4
        assert bool((untouched | (found == 0)).all()), f"batch {number} is another"
        assert images.device.type == labels.device.type == place.device.type
        assert torch.equal(labels.cpu(), torch.arange(count))
    assert not waits, Counter(waits)
    return {"waits_in_6_batches": len(waits)}
