"""What training loops other than ours do to a pruned model: average, copy, wrap, compile, shard, initialise, load.

`test_resnet` and one ResNet with a 1x1 convolution as classifier; masks are compared with those of the bare model. Out
of scope: DDP, which is in test_pruner.py.
"""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import subp_ext
from subp_dist import PruneSchedule, SUBPPruner
from subp_dist.parametrization import block_mask_of, plain_state_dict
from subp_dist.plan import plan_layers

SCHEDULE = PruneSchedule.for_run(rate=0.5, epochs=8)


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def network(name: str = "test_resnet", **more) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 10} | more)


def train(model: nn.Module, pruner: SUBPPruner, epochs: range, after_step=lambda: None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for epoch in epochs:
        pruner.step(epoch)
        model(torch.ones(2, 3, 32, 32)).square().mean().backward()
        pruner.decay_gradients()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


WRAPPERS = {
    "lightning": Wrapper,
    "sequential": nn.Sequential,
    "twice": lambda model: Wrapper(nn.Sequential(model)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled within": lambda model: Wrapper(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_changes_neither_plan_nor_masks(wrap):
    alone, inner = network(), network()
    pruner, wrapped = SUBPPruner(alone, SCHEDULE, skip=["layer4*"]), SUBPPruner(wrap(inner), SCHEDULE, skip=["layer4*"])
    for epoch in (0, 2, 5):
        pruner.step(epoch)
        wrapped.step(epoch)
    expected = {name: block_mask_of(module) for name, module in alone.named_modules()}
    found = {name: block_mask_of(module) for name, module in inner.named_modules()}
    assert {name for name, mask in expected.items() if mask} == {name for name, mask in found.items() if mask}
    masks = {name: mask.mask for name, mask in expected.items() if mask}
    assert masks and not all(mask.all() for mask in masks.values())
    assert all(torch.equal(mask, found[name].mask) for name, mask in masks.items())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_classifier_that_is_a_convolution_stays_dense_in_a_wrapper(wrap):
    plans = plan_layers(wrap(network("resnetv2_50x1_bit", num_classes=1000)))
    assert [plan.name.rpartition("head")[1:] for plan in plans if plan.reason == "classifier"] == [("head", ".fc")]
    assert sum(plan.reason is None for plan in plans) == 52


def test_names_in_a_wrapper_are_those_of_the_wrapper():
    model = Wrapper(network())
    pruner = SUBPPruner(model, SCHEDULE, only=["net.layer4*"], layer_rates={"layer4.0.conv1": 0.75})
    assert set(pruner.masks) and all(block_mask_of(model.get_submodule(name)) for name in pruner.masks)
    assert all(name.startswith("net.layer4") for name in pruner.masks)
    assert pruner.schedules["net.layer4.0.conv1"].rate == 0.75


def test_layers_of_its_own_keep_a_wrapper_in_sight():
    model = nn.Sequential(network(num_classes=0), nn.Linear(96, 5))
    plans = plan_layers(model, prune_linear=True)
    assert {plan.name: plan.reason for plan in plans}["1"] == "classifier"


def test_a_second_pruner_is_refused():
    model = network()
    SUBPPruner(model, SCHEDULE)
    with pytest.raises(ValueError, match="Wrapper has block masks already: one SUBPPruner per model"):
        SUBPPruner(Wrapper(model), SCHEDULE)


@pytest.mark.parametrize(
    "write", [nn.init.kaiming_normal_, lambda weight: weight.detach().mul_(2)], ids=["init", "detached"]
)
@pytest.mark.parametrize("then", ["step", "forward"])
def test_a_write_into_a_masked_weight_is_refused(write, then):
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    train(model, pruner, range(2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            write(module.weight)
    if then == "step":
        with pytest.raises(ValueError, match=r"pruned layer .*is lost: .*before SUBPPruner, or with model.apply"):
            pruner.step(2)
    elif write is nn.init.kaiming_normal_:
        with pytest.raises(ValueError, match=r"the weight \[.*\] of a pruned layer .*is lost"):
            model(torch.ones(2, 3, 32, 32))


def test_a_write_through_data_is_told(caplog):
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    train(model, pruner, range(2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight.data)
    pruner.step(2)
    assert "not what it was" in caplog.text and "is lost: initialise before" in caplog.text


@pytest.mark.parametrize("change", ["data", "vector", "dtype"])
def test_what_old_optimizers_and_casts_do_to_latent_weights_stops_no_training(change):
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    train(model, pruner, range(2))
    if change == "data":
        for parameter in model.parameters():
            parameter.data.add_(0.1)
    elif change == "vector":
        nn.utils.vector_to_parameters(1.1 * nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    else:
        model.double()
    pruner.step(2)


def test_writes_into_what_is_trained_are_no_lost_ones():
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    pruner.step(4)
    for module in model.modules():
        if block_mask_of(module) is not None:
            module.weight.mean()
            nn.init.normal_(module.parametrizations.weight.original)
    model(torch.ones(2, 3, 32, 32))
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    copied = copy.deepcopy(model).half()
    assert copied.get_submodule(next(iter(pruner.layers))).weight.dtype == torch.float16
    with torch.inference_mode():
        model(torch.ones(2, 3, 32, 32))
    torch.func.functional_call(model, dict(model.named_parameters()), torch.ones(2, 3, 32, 32))
    pruner.step(5)


def test_an_average_of_buffers_is_refused_in_the_next_training_step():
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    pruner.step(5)
    average.update_parameters(model)
    with pytest.raises(ValueError, match="an average of buffers has mixed masks"):
        pruner.decay_gradients()


@pytest.mark.parametrize("first_average", [0, 1])
def test_an_average_of_buffers_is_refused_at_the_next_update(first_average):
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    train(model, pruner, range(first_average))
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    with pytest.raises(ValueError, match=r"an average of buffers has mixed masks.*use_buffers=False.*ModelEmaV3"):
        train(model, pruner, range(first_average, 8), lambda: average.update_parameters(model))


def masks_of(model: nn.Module) -> list[torch.Tensor]:
    return [block_mask_of(module).mask for module in model.modules() if block_mask_of(module)]


def assert_same_masks(a: nn.Module, b: nn.Module) -> None:
    assert all(map(torch.equal, masks_of(a), masks_of(b))) and len(masks_of(a)) == len(masks_of(b)) > 0


def test_averages_of_parameters_get_the_masks():
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    average, ema = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9)), ModelEmaV3(model, 0.9)

    def update() -> None:
        average.update_parameters(model)
        pruner.copy_masks_to(average)
        ema.update(model)

    train(model, pruner, range(8), update)
    assert_same_masks(average.module, model)
    assert_same_masks(ema.module, model)


def test_what_is_no_copy_gets_no_masks():
    pruner = SUBPPruner(network(), SCHEDULE)
    with pytest.raises(ValueError, match="ResNet is no copy of the pruned model: it has no mask of layer1.0.conv1"):
        pruner.copy_masks_to(network())


def test_copies_and_what_they_are_given_disturb_no_update():
    """The best model so far, kept as a copy and given the state of a later one, or of an earlier one."""
    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    train(model, pruner, range(2))
    best = copy.deepcopy(model)
    states = [copy.deepcopy(model.state_dict())]
    train(model, pruner, range(2, 4), lambda: states.append(copy.deepcopy(model.state_dict())))
    best.load_state_dict(model.state_dict())
    train(model, pruner, range(4, 5))
    best.load_state_dict(states[1])
    train(model, pruner, range(5, 7))
    assert not masks_of(best)[0].all()


def test_a_pickled_model_is_refused_by_torch():
    model = network()
    SUBPPruner(model, SCHEDULE)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)


def test_apply_initialises_the_latent_weights():
    def fill(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.5)
            module.weight.data.mul_(3)

    def replace(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(torch.full_like(module.weight, 2.0))

    model = network()
    parameters = dict(model.named_parameters())
    pruner = SUBPPruner(model, SCHEDULE)
    pruner.step(5)
    for function, value in ((fill, 1.5), (replace, 2.0)):
        assert Wrapper(model).apply(function) is not None
        for name in pruner.layers:
            module = model.get_submodule(name)
            assert (module.parametrizations.weight.original == value).all()
            assert set(module.weight.unique().tolist()) == {0.0, value}  # masked as before
        if function is fill:
            latents = {name: model.get_submodule(name).parametrizations.weight.original for name in pruner.layers}
            assert all(latent is parameters[f"{name}.weight"] for name, latent in latents.items())
    assert all(value == 2 or value == 0 for value in plain_state_dict(model)["layer1.0.conv1.weight"].unique().tolist())


def test_a_function_that_fails_leaves_the_layer_whole():
    def fail(module: nn.Module) -> None:
        raise ArithmeticError(type(module).__name__)

    model = network()
    pruner = SUBPPruner(model, SCHEDULE)
    module = model.get_submodule(next(iter(pruner.masks)))
    with pytest.raises(ArithmeticError, match="^Conv2d$"):
        module.apply(fail)
    assert block_mask_of(module) is not None and module.weight.shape == module.parametrizations.weight.original.shape


def test_plain_weights_load_into_the_latent_ones():
    model, weights = network(), {key: value + 1 for key, value in network().state_dict().items()}
    pruner = SUBPPruner(model, SCHEDULE)
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and all(key.endswith(".mask") for key in result.missing_keys)
    for name in pruner.layers:
        assert torch.equal(model.get_submodule(name).parametrizations.weight.original, weights[f"{name}.weight"])


@pytest.fixture
def alone():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("pruner_first", [True, False])
def test_shards_of_fsdp2_are_refused_by_name(alone, pruner_first):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh, model = dist.init_device_mesh("cpu", (1,)), network()
    with pytest.raises(ValueError, match=r"DTensors, shards of FSDP2 \(fully_shard\).*DistributedDataParallel"):
        if pruner_first:
            pruner = SUBPPruner(model, SCHEDULE)
            fsdp.fully_shard(model, mesh=mesh)
            pruner.step(0)
        else:
            fsdp.fully_shard(model, mesh=mesh)
            SUBPPruner(model, SCHEDULE)


def test_the_loop_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    (code,) = [part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "SUBPPruner" in part]
    for large, small in (("250", "2"), ("224, 224", "32, 32"), ("0.9998", "0.5")):
        assert large in code
        code = code.replace(large, small)
    model, shares = network(), []

    def evaluate(average: nn.Module) -> None:
        shares.append(sum(int((mask == 0).sum()) for mask in masks_of(average)))
        assert average(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    names = {
        "model": model, "ddp_model": model, "loader": [(torch.ones(2, 3, 32, 32), torch.tensor([1, 2]))] * 2,
        "loss": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD(model.parameters(), 0.01), "evaluate": evaluate,
    }  # fmt: skip
    exec(code, names)
    assert_same_masks(names["average"].module, model)
    assert names["pruner"].at_target and shares[-1] == sum(int((~mask).sum()) for mask in masks_of(model)) > 0
    plain = network()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = plain.eval()(images).numpy()
    assert np.abs(subp_ext.Session(tmp_path / "model.subp").run(images.numpy()) - expected).max() < 1e-4
