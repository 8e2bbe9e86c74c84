"""The epochs of a run with fake quantization: how they begin, and how they go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..agreement import on_primary
from ..build import create_optimizer, create_scheduler, wrap
from ..checkpoint import position
from ..errors import UsageError
from ..export.calibration_images import calibration_images
from ..export.integers import FakeQuantized
from ..export.network import Network
from ..export.of_run import CALIBRATION_IMAGES
from .start import calibrated, restored, state_of

if TYPE_CHECKING:
    from ..data import Data
    from ..training import Training


@dataclass
class Quantized:
    """What a run trains in these epochs.

    Attributes:
        module: the network with fake quantization.
        fixed: what else a checkpoint holds: the ``report`` of the calibration, ``images`` to check files on, the
            ``epoch`` that these epochs began with, and the ``float32`` metrics of the validation before it.
    """

    module: FakeQuantized
    fixed: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return self.fixed | state_of(self.module)

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Quantized:
        """What ``state`` was of."""
        return cls(restored(state).to(device), {key: state[key] for key in ("report", "images", "epoch", "float32")})


def begin(
    training: Training, data: Data, metadata: dict[str, object], epoch: int, metrics: Mapping[str, float]
) -> Quantized:
    """Calibrate the network as it is, or its moving average, on rank 0, and give all ranks the same.

    Args:
        training: the run; where there is a moving average, the model takes its weights.
        data: whose training pictures are calibrated on.
        metadata: for the exported file.
        epoch: the first with fake quantization.
        metrics: of the last validation.

    Raises:
        UsageError: the trained network cannot be quantized.
    """
    if training.ema is not None:
        training.model.load_state_dict(training.ema.module.state_dict())

    def calibrate() -> dict[str, Any]:
        images, labels = calibration_images(data, CALIBRATION_IMAGES)
        network = Network(training.model, data.input_size, {}, metadata)
        return calibrated(network, images, labels) | {"epoch": epoch, "float32": dict(metrics)}

    return Quantized.of(on_primary(calibrate), training.rank.device)


def said_of(quantized: Quantized) -> str:
    """One line for people."""
    found = quantized.fixed["report"]
    return (
        f"{found['int8_macs_share']:.1%} of the MACs in int8, as calibrated on {found['images']} pictures, with "
        f"float32's prediction on {found['agreement']:.1f} % of them"
    )


def enter(training: Training, quantized: Quantized) -> None:
    """Train this from now on: with an optimizer of its own, in float32, without a moving average."""
    optimization, rank = training.config.optimization, training.rank
    training.quantized, training.ema = quantized, None
    training.optimizer = create_optimizer(optimization, quantized.module)
    training.scheduler = create_scheduler(optimization, training.optimizer, training.updates_per_epoch)
    training.scaler = torch.amp.GradScaler(rank.device.type, enabled=False)
    training.wrapped = wrap(quantized.module, None, rank)


def check_resumable(training: Training, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that has begun these epochs at another one, or has gone past their begin.

    Raises:
        UsageError: the message names the flags that would do.
    """
    optimization = training.config.optimization
    asked, first, (epoch, step) = optimization.qat_epochs, optimization.float_epochs, position(dict(checkpoint))
    flags = f"--qat-epochs {asked} of {optimization.all_epochs} epochs"
    begun = checkpoint.get("quantized")
    if begun is not None and begun["epoch"] != first:
        fitting = optimization.all_epochs - begun["epoch"]
        raise UsageError(
            f"{flags}: the checkpoint trains with fake quantization since epoch {begun['epoch']}; pass --qat-epochs "
            f"{fitting}, or resume from a checkpoint before that"
        )
    if begun is None and asked and (epoch, step) > (first, 0):
        raise UsageError(
            f"{flags}: they begin at epoch {first}, and the checkpoint has gone on to epoch {epoch} without; ask for "
            f"{epoch + bool(step) + asked} epochs or more, or resume from a checkpoint before that"
        )
