"""Distillation: the mixed loss against one written in NumPy, and what a teacher has to fit.

Sizes: 5 images, 7 classes, float64 oracle, tolerance 1e-5. Out of scope: whether a teacher helps.
"""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from subp_dist.config import DistillationConfig, ResolvedData
from subp_dist.distillation import Distillation, create_distillation
from subp_dist.errors import UsageError


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 7))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.25, 4.0), (1.0, 2.0), (0.0, 1.0)])
def test_the_loss_is_the_mixture_of_the_oracle(weight, temperature):
    model = teacher()
    distillation = Distillation(model, weight, temperature, scale=[2.0, 0.5, 1.0], shift=[0.1, 0.0, -1.0])
    images, logits = torch.randn(5, 3, 2, 2), torch.randn(5, 7, requires_grad=True)
    found = distillation(torch.tensor(3.0), logits, images)
    seen = images * torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1) + torch.tensor([0.1, 0.0, -1.0]).view(3, 1, 1)
    p = softmax(model.eval()(seen).detach().double().numpy() / temperature)
    q = softmax(logits.detach().double().numpy() / temperature)
    divergence = (p * np.log(p / q)).sum() / 5 * temperature**2
    assert found.item() == pytest.approx((1 - weight) * 3 + weight * divergence, rel=1e-5)


def test_the_teacher_neither_learns_nor_changes():
    model = teacher().train()
    distillation = Distillation(model, 0.5, 1.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = torch.randn(5, 7, requires_grad=True)
    distillation(torch.tensor(1.0), logits, torch.randn(5, 3, 2, 2)).backward()
    assert logits.grad.any() and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


DIGITS = ResolvedData(num_classes=10, in_chans=1, mean=(0.5,), std=(0.2,))


def create(sizes: list[tuple[int, int, int]], **flags) -> Distillation | None:
    return create_distillation(DistillationConfig(**{"kd_model": "test_resnet"} | flags), DIGITS, sizes)


def test_a_checkpoint_of_timm_teaches(tmp_path):
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    distillation = create([(1, 28, 28)], kd_checkpoint=str(tmp_path / "teacher.safetensors"))
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(distillation.teacher(images), model(images))


def test_no_teacher_by_default():
    assert create([(1, 28, 28)], kd_model="") is None


def test_bad_teachers_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for changes, message in (
        ({"kd_model": "resnet51"}, "--kd-model resnet51: .* has no such model"),
        ({"kd_checkpoint": "nowhere"}, "--kd-checkpoint nowhere: no such file"),
        ({"kd_checkpoint": str(tmp_path / "other.safetensors")}, "cannot teach this run"),
    ):
        with pytest.raises(UsageError, match=message):
            create([(1, 28, 28)], **changes)


def test_a_teacher_must_take_every_size_of_the_images(tmp_path):
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    given = {"kd_model": "vit_tiny_patch16_224", "kd_checkpoint": str(tmp_path / "teacher.safetensors")}
    assert create([(1, 224, 224)], **given)
    with pytest.raises(UsageError, match="cannot teach this run: .*160"):
        create([(1, 224, 224), (1, 160, 160)], **given)
