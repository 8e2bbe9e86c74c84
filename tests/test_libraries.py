"""Pruned models in the loops of other libraries, the real ones: Lightning, accelerate, transformers' Trainer.

`test_resnet` on eight random images, three epochs. Each must learn, keep its masks at the target, and give plain
weights with their zeros. Libraries that are not installed (``pip install 'subp-dist[loops]'``) are skipped by name.
"""

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from subp_dist import PruneSchedule, SUBPPruner
from subp_dist.parametrization import plain_state_dict

EPOCHS = 3
SCHEDULE = PruneSchedule(0.5, 0, 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=4)


def images() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)


def assert_trained_and_sparse(model: nn.Module, pruner: SUBPPruner) -> None:
    start, plain = network(), network()
    plain.load_state_dict(plain_state_dict(model))
    assert pruner.at_target
    for name, mask in pruner.masks.items():
        own = name.removeprefix("net.").removeprefix("module.")
        weight, before = plain.get_submodule(own).weight.detach(), start.get_submodule(own).weight
        kept = weight.unflatten(0, (mask.shape[0], -1)).abs().sum((1, 3, 4)) > 0
        assert torch.equal(kept, mask) and not torch.equal(weight[weight != 0], before.detach()[weight != 0])


def lightning_module(pl):
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.pruner = SUBPPruner(self, SCHEDULE)

        def on_train_epoch_start(self) -> None:
            self.pruner.step(self.current_epoch)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_before_optimizer_step(self, _) -> None:
            self.pruner.decay_gradients()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    return Module()


def fit(pl, module, folder, callbacks=()) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, default_root_dir=folder, enable_checkpointing=False,
        callbacks=list(callbacks), **quiet,
    )  # fmt: skip
    trainer.fit(module, DataLoader(images(), 4))


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    module = lightning_module(pl)
    fit(pl, module, tmp_path)
    assert_trained_and_sparse(module.net, module.pruner)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_average_of_buffers_is_refused(tmp_path):
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this lightning has no EMAWeightAveraging")
    with pytest.raises(ValueError, match="an average of buffers has mixed masks"):
        fit(pl, lightning_module(pl), tmp_path, [callbacks.EMAWeightAveraging(decay=0.9)])


@pytest.mark.filterwarnings("ignore")
def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator, model = accelerate.Accelerator(cpu=True), network()
    pruner = SUBPPruner(model, SCHEDULE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(images(), 4))
    for epoch in range(EPOCHS):
        pruner.step(epoch)
        for pixels, labels in loader:
            accelerator.backward(nn.functional.cross_entropy(prepared(pixels), labels))
            pruner.decay_gradients()
            optimizer.step()
            optimizer.zero_grad()
    assert_trained_and_sparse(accelerator.unwrap_model(prepared), pruner)


class Items(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels, label = images()[index]
        return {"pixel_values": pixels, "labels": label}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.filterwarnings("ignore")
def test_trainer_of_transformers(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = Classifier()
    pruner = SUBPPruner(model, SCHEDULE)

    class Pruning(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_) -> None:
            pruner.step(round(state.epoch))

        def on_pre_optimizer_step(self, args, state, control, **_) -> None:
            pruner.decay_gradients()

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=4, learning_rate=0.01,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=Items(), callbacks=[Pruning()]).train()
    assert_trained_and_sparse(model.net, pruner)
