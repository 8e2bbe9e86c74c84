"""Learning from a teacher's outputs besides the labels (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DistillationConfig, ResolvedData
from .errors import UsageError


class Distillation(nn.Module):
    """Mixes a loss with the divergence of the student's outputs from those of a teacher for the same images.

    Args:
        teacher: model with the student's classes; it is put into evaluation mode and never trained.
        weight: share of the divergence in the mixture, in [0, 1].
        temperature: softmax temperature of both.
        scale, shift: per channel, what turns the student's images into the teacher's where they are normalised
            differently.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float,
        temperature: float,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.weight, self.temperature = weight, temperature
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float32).view(-1, 1, 1))
        self.eval()

    def forward(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The mixture for the student's loss and ``logits`` ``[B, classes]`` on ``images`` ``[B, C, H, W]``."""
        with torch.no_grad():
            taught = self.teacher(images * self.scale + self.shift)
        target, found = (F.log_softmax(x.float() / self.temperature, 1) for x in (taught, logits))
        # Soft targets' gradients shrink with the square of the temperature; the factor gives it back.
        divergence = F.kl_div(found, target, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * loss + self.weight * divergence


def create_distillation(
    config: DistillationConfig, data: ResolvedData, sizes: Sequence[tuple[int, int, int]]
) -> Distillation | None:
    """The teacher of ``--kd-model`` for a run's classes and all ``sizes`` (C, H, W) of its images, or None.

    timm's pretrained weights see images normalised as they were trained; a ``--kd-checkpoint`` sees this run's own.

    Raises:
        UsageError: no such teacher or weights, or they do not fit the run.
    """
    if not config.kd_model:
        return None
    if not timm.is_model(config.kd_model):
        raise UsageError(f"--kd-model {config.kd_model}: timm {timm.__version__} has no such model")
    if config.kd_checkpoint and not Path(config.kd_checkpoint).is_file():
        raise UsageError(f"--kd-checkpoint {config.kd_checkpoint}: no such file")
    pretrained = not config.kd_checkpoint
    try:
        teacher = timm.create_model(
            config.kd_model,
            pretrained=pretrained,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            checkpoint_path=config.kd_checkpoint,
        ).eval()
        with torch.no_grad():
            for size in sizes:
                teacher(torch.zeros(1, *size))
    except Exception as error:  # a client of a model hub raises its own types
        raise UsageError(f"--kd-model {config.kd_model} cannot teach this run: {error}") from error
    if pretrained and (classes := teacher.pretrained_cfg.get("num_classes")) != data.num_classes:
        raise UsageError(
            f"--kd-model {config.kd_model}: its pretrained weights know {classes} classes, this run has "
            f"{data.num_classes}: train the teacher on this data and give its weights with --kd-checkpoint"
        )
    scale, shift = 1.0, 0.0
    if pretrained and len(data.mean) == len(teacher.pretrained_cfg["mean"]):
        mean, std = (torch.tensor(teacher.pretrained_cfg[key]) for key in ("mean", "std"))
        scale, shift = torch.tensor(data.std) / std, (torch.tensor(data.mean) - mean) / std
    return Distillation(teacher, config.kd_weight, config.kd_temperature, scale, shift)
