"""Block masks as parametrizations: forward, gradient, copies, state dicts, compilation.

Sizes: convolutions of at most 40 x 12 channels; resnet18 and mobilenetv3_small_050 on 2 x 3 x 32 x 32 images.
Tolerances: weights and gradients of weights are exact; outputs of networks with the same weights are bit-identical on
the CPU, as the same kernels run. Out of scope: how masks are chosen (test_masks.py), CUDA, AMP.
"""

from __future__ import annotations

import copy

import numpy as np
import oracle
import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils import parametrize

from subp_dist.parametrization import BlockMask, block_mask_of, mask_weight, plain_copy, plain_state_dict
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

# (module, block size): whole rows, a narrow last row, groups, groups with narrow last rows, linear.
LAYERS = {
    "whole": (lambda: nn.Conv2d(12, 32, 3, padding=1), 16),
    "tail": (lambda: nn.Conv2d(12, 40, 3, padding=1), 16),
    "grouped": (lambda: nn.Conv2d(12, 32, 3, padding=1, groups=2, bias=False), 8),
    "grouped-tail": (lambda: nn.Conv2d(12, 30, 1, groups=2), 4),
    "linear": (lambda: nn.Linear(12, 20), 8),
}


def random_bool(shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def masked_layer(kind: str) -> tuple[nn.Module, BlockMask, torch.Tensor, np.ndarray]:
    """(module with a random mask, its mask, latent weight as it was, oracle's elementwise mask)."""
    torch.manual_seed(0)
    build, block_size = LAYERS[kind]
    module = build()
    latent = module.weight.detach().clone()
    block_mask = mask_weight(module, block_size)
    block_mask.mask.copy_(random_bool(block_mask.mask.shape))
    keep = oracle.expand_mask(block_mask.mask.numpy(), tuple(latent.shape), block_size, getattr(module, "groups", 1))
    return module, block_mask, latent, keep


def images_for(module: nn.Module, seed: int = 1) -> torch.Tensor:
    shape = (4, 12) if isinstance(module, nn.Linear) else (2, 12, 5, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pruned_network(name: str = "resnet18", rate: float = 0.5) -> nn.Module:
    """A timm network in evaluation mode, pruned to its full rate, with batch-norm statistics that are not the first."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train()
    SUBPPruner(model, PruneSchedule(rate, 0, 0), criterion="l1").step(0)
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Shared by tests that do not change it."""
    return pruned_network()


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_is_the_latent_one_through_the_mask(kind):
    module, _, latent, keep = masked_layer(kind)
    np.testing.assert_array_equal(module.weight.detach().numpy(), np.where(keep, latent.numpy(), 0))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_is_that_of_the_masked_weight(kind):
    module, _, latent, keep = masked_layer(kind)
    plain = LAYERS[kind][0]()
    with torch.no_grad():
        plain.weight.copy_(latent * torch.from_numpy(keep))
        if plain.bias is not None:
            plain.bias.copy_(module.bias)
    assert torch.equal(module(images_for(module)), plain(images_for(module)))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_new_mask_keeps_everything(kind):
    module = LAYERS[kind][0]()
    before = module.weight.detach().clone()
    assert mask_weight(module, LAYERS[kind][1]).mask.all()
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_latent_gradient_is_that_of_the_masked_weight_in_every_block(kind):
    module, _, latent, keep = masked_layer(kind)
    plain = LAYERS[kind][0]()
    with torch.no_grad():
        plain.weight.copy_(latent * torch.from_numpy(keep))
        if plain.bias is not None:
            plain.bias.copy_(module.bias)
    for layer in (module, plain):
        layer(images_for(layer)).square().sum().backward()
    grad = module.parametrizations.weight.original.grad
    assert torch.equal(grad, plain.weight.grad)
    assert grad.numpy()[~keep].all()  # masked blocks learn too


def test_pruned_blocks_hold_no_nan_of_their_latent_weights():
    module, block_mask, _, keep = masked_layer("tail")
    with torch.no_grad():
        module.parametrizations.weight.original[torch.from_numpy(~keep)] = float("nan")
    assert module(images_for(module)).isfinite().all()


@pytest.mark.parametrize("kind", LAYERS)
def test_add_pruned_part_adds_the_rest_of_the_latent_weight(kind):
    module, block_mask, latent, keep = masked_layer(kind)
    for target in (torch.zeros_like(latent), torch.randn(latent.shape)):
        expected = np.where(keep, target.numpy(), target.numpy() + np.float32(0.25) * latent.numpy())
        block_mask.add_pruned_part(target, latent, 0.25)
        np.testing.assert_array_equal(target.numpy(), expected)


def test_the_parameter_object_survives():
    module = nn.Conv2d(12, 32, 3)
    parameter = module.weight
    mask_weight(module, 16)
    assert module.parametrizations.weight.original is parameter
    assert [p for p in module.parameters() if p is parameter]


def test_an_optimizer_built_before_trains_the_latent_weight():
    module = nn.Conv2d(12, 32, 3, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    mask_weight(module, 16).mask[0, 3] = False
    before = module.parametrizations.weight.original.detach().clone()
    module(images_for(module)).square().sum().backward()
    optimizer.step()
    moved = module.parametrizations.weight.original != before
    assert moved[:, 0].any()
    assert moved[:16, 3].any()


def test_a_mask_is_a_bool_buffer_of_one_bit_per_block():
    _, block_mask, latent, _ = masked_layer("tail")
    assert dict(block_mask.named_buffers()).keys() == {"mask"}
    assert (block_mask.mask.dtype, tuple(block_mask.mask.shape)) == (torch.bool, (3, 12))
    assert not list(block_mask.parameters())


def test_casting_a_model_leaves_masks_bool():
    module, block_mask, *_ = masked_layer("tail")
    module.half()
    assert block_mask.mask.dtype == torch.bool
    assert module.weight.dtype == torch.float16


def test_block_mask_of_finds_only_block_masks():
    module, block_mask, *_ = masked_layer("whole")
    other = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    assert block_mask_of(module) is block_mask
    assert block_mask_of(nn.Conv2d(3, 4, 1)) is None
    assert block_mask_of(other) is None
    assert block_mask_of(nn.ReLU()) is None


def test_the_module_stays_an_instance_of_its_class():
    module = nn.Conv2d(12, 32, 3)
    mask_weight(module, 16)
    assert isinstance(module, nn.Conv2d)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_plain_state_dict_loads_strictly_into_a_fresh_model_with_the_same_output(name):
    model = pruned_network(name)
    plain = timm.create_model(name, num_classes=10).eval()
    plain.load_state_dict(plain_state_dict(model), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), model(IMAGES))


def test_plain_state_dict_has_zeros_where_blocks_are_pruned(network):
    plain = plain_state_dict(network)
    for name, module in network.named_modules():
        if (block_mask := block_mask_of(module)) is not None:
            weight = plain[f"{name}.weight"]
            keep = oracle.expand_mask(block_mask.mask.numpy(), tuple(weight.shape), 16, 1)
            assert not weight.numpy()[~keep].any()
            assert not block_mask.mask.all()


def test_plain_state_dict_needs_no_gradient(network):
    assert not any(value.requires_grad for value in plain_state_dict(network).values())


def test_a_masked_state_dict_does_not_load_into_a_plain_model(network):
    plain = timm.create_model("resnet18", num_classes=10)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*layer1.0.conv1.weight.*Unexpected key.*mask"):
        plain.load_state_dict(network.state_dict())


def test_a_plain_state_dict_does_not_load_into_a_masked_model(network):
    plain = timm.create_model("resnet18", num_classes=10)
    with pytest.raises(RuntimeError, match="Missing key"):
        copy.deepcopy(network).load_state_dict(plain.state_dict())


def test_a_masked_state_dict_restores_masks_and_latent_weights(network):
    other = timm.create_model("resnet18", num_classes=10).eval()
    SUBPPruner(other, PruneSchedule(0.5, 0, 0))
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other(IMAGES), network(IMAGES))
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_plain_copy_has_the_same_output_and_no_masks(network):
    plain = plain_copy(network)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), network(IMAGES))


def test_plain_copy_gives_the_modules_their_first_class_back(network):
    fresh = timm.create_model("resnet18", num_classes=10)
    plain = plain_copy(network)
    assert [type(module) for module in plain.modules()] == [type(module) for module in fresh.modules()]
    assert plain.state_dict().keys() == fresh.state_dict().keys()


def test_plain_copy_leaves_the_original_working():
    # torch's remove_parametrizations edits a class that deep copies share: the original would lose its weight.
    model = pruned_network()
    with torch.no_grad():
        before = model(IMAGES)
        plain_copy(model)
        assert torch.equal(model(IMAGES), before)
    model.layer1[0].conv1.parametrizations.weight[0].mask.fill_(False)
    assert not model.layer1[0].conv1.weight.any()
    model(IMAGES).sum().backward()
    assert model.layer1[0].conv1.parametrizations.weight.original.grad is not None


def test_plain_copy_can_be_made_twice_and_of_a_copy():
    model = pruned_network()
    with torch.no_grad():
        expected = model(IMAGES)
        for plain in (plain_copy(model), plain_copy(model), plain_copy(copy.deepcopy(model))):
            assert torch.equal(plain(IMAGES), expected)


def test_plain_copy_can_be_trained_alone():
    model = pruned_network()
    plain = plain_copy(model)
    plain(IMAGES).sum().backward()
    assert plain.layer1[0].conv1.weight.grad is not None
    with torch.no_grad():
        plain.layer1[0].conv1.weight.fill_(1)
    assert not (model.layer1[0].conv1.weight == 1).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_deep_copy_is_independent(kind):
    module, block_mask, latent, _ = masked_layer(kind)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.parametrizations.weight.original.add_(1)
    block_mask_of(other).mask.logical_not_()
    assert torch.equal(module.parametrizations.weight.original, latent)
    np.testing.assert_array_equal(block_mask.mask.numpy(), ~block_mask_of(other).mask.numpy())
    assert not torch.equal(module.weight, other.weight)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["whole", "grouped-tail"])
def test_compiled_code_sees_masks_change_in_place(kind, backend):
    torch.compiler.reset()
    module, block_mask, *_ = masked_layer(kind)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    images = images_for(module)
    outputs = []
    for seed in (1, 2):
        block_mask.mask.copy_(random_bool(block_mask.mask.shape, seed))
        outputs.append(compiled(images))
        assert torch.equal(outputs[-1], module(images))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_passes_the_gradient_straight_through(backend):
    torch.compiler.reset()
    module, _, _, keep = masked_layer("tail")
    images = images_for(module)
    grads = []
    for call in (module, torch.compile(module, backend=backend, fullgraph=True)):
        module.zero_grad()
        call(images).square().sum().backward()
        grads.append(module.parametrizations.weight.original.grad.clone())
    assert torch.equal(*grads)
    assert grads[1].numpy()[~keep].all()


def test_a_changed_mask_does_not_compile_again():
    torch.compiler.reset()
    module, block_mask, *_ = masked_layer("whole")
    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=backend)
    for seed in range(3):
        block_mask.mask.copy_(random_bool(block_mask.mask.shape, seed))
        compiled(images_for(module))
    assert len(compilations) == 1


# Convolutions that standardise their weight

STANDARDISED = {
    "std": lambda: StdConv2d(12, 40, 3),
    "std-same": lambda: StdConv2dSame(12, 40, 3, stride=2),
    "scaled": lambda: ScaledStdConv2d(12, 40, 3, gamma=1.7),
    "scaled-same": lambda: ScaledStdConv2dSame(12, 32, 3, stride=2, gamma=1.7),
    "scaled-grouped": lambda: ScaledStdConv2d(12, 32, 3, groups=2),
}


def standardised_layer(kind: str, keep_all: bool = False) -> tuple[nn.Module, nn.Module, np.ndarray]:
    """(masked, the same without a mask, elementwise mask); the gain is not one."""
    torch.manual_seed(0)
    plain = STANDARDISED[kind]()
    if hasattr(plain, "gain"):
        nn.init.uniform_(plain.gain, 0.5, 2)
    module = copy.deepcopy(plain)
    block_mask = mask_weight(module, 16)
    mask = random_bool(block_mask.mask.shape) | torch.tensor(keep_all)
    mask[:, 0] = True
    block_mask.mask.copy_(mask)
    return module, plain, oracle.expand_mask(mask.numpy(), tuple(plain.weight.shape), 16, plain.groups)


def standardised(weight: np.ndarray, keep: np.ndarray, module: nn.Module) -> np.ndarray:
    """Each filter centred over what it keeps, then to variance 1 over all of it; in float64."""
    found = np.zeros(weight.shape)
    for channel, (values, kept) in enumerate(zip(weight.astype(np.float64), keep, strict=True)):
        centred = np.where(kept, values - values[kept].mean(), 0)
        gain = module.gain[channel].item() * module.scale if hasattr(module, "gain") else 1.0
        found[channel] = gain * centred / np.sqrt((centred**2).mean() + module.eps)
    return found


@pytest.mark.parametrize("kind", STANDARDISED)
def test_a_standardised_weight_is_masked_with_exact_zeros(kind):
    module, plain, keep = standardised_layer(kind)
    weight = module.weight.detach().numpy()
    assert not weight[~keep].any()
    np.testing.assert_allclose(weight, standardised(plain.weight.detach().numpy(), keep, plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", STANDARDISED)
def test_outputs_do_not_depend_on_pruned_inputs_of_a_standardised_convolution(kind):
    module, _, _ = standardised_layer(kind)
    block_mask_of(module).mask[:, 3] = False
    with torch.no_grad():
        images = images_for(module) if module.groups == 1 else torch.randn(2, 12, 5, 5)
        before = module(images)
        images[:, 3 :: 12 // module.groups] += 1e3
        assert torch.equal(module(images), before)
        # ... nor on the latent weights of what is pruned.
        module.parametrizations.weight.original[:, 3] += 1
        assert torch.equal(module(images), before)


@pytest.mark.parametrize("kind", STANDARDISED)
def test_without_zeros_a_standardised_convolution_computes_and_learns_as_before(kind):
    module, plain, _ = standardised_layer(kind, keep_all=True)
    images = torch.randn(2, 12, 5, 5)
    outputs = [layer(images) for layer in (module, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(
        module.parametrizations.weight.original.grad,
        plain.weight.grad,
        rtol=1e-4,
        atol=1e-4 * plain.weight.grad.abs().max(),
    )
    if hasattr(plain, "gain"):
        torch.testing.assert_close(block_mask_of(module).gain.grad, plain.gain.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", STANDARDISED)
def test_pruned_blocks_of_a_standardised_convolution_learn(kind):
    module, _, keep = standardised_layer(kind)
    module(torch.randn(2, 12, 5, 5)).square().sum().backward()
    assert module.parametrizations.weight.original.grad.numpy()[~keep].all()


@pytest.mark.parametrize("kind", STANDARDISED)
def test_timms_own_standardisation_of_the_plain_weight_gives_the_masked_one(kind):
    module, plain, keep = standardised_layer(kind)
    exported = plain_state_dict(nn.Sequential(module))
    assert not exported["0.weight"].numpy()[~keep].any()
    nn.Sequential(plain).load_state_dict(exported, strict=True)
    images = torch.randn(2, 12, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", STANDARDISED)
def test_a_plain_copy_of_a_standardised_convolution_is_an_ordinary_one_with_zeros(kind):
    module, plain, keep = standardised_layer(kind)
    images = torch.randn(2, 12, 5, 5)
    for layer in (module, plain):
        found = plain_copy(nn.Sequential(layer))[0]
        assert type(found) is (Conv2dSame if getattr(plain, "same_pad", False) else nn.Conv2d)
        assert not list(found.buffers())
        with torch.no_grad():
            torch.testing.assert_close(found(images), layer(images), rtol=1e-5, atol=1e-5)
        if layer is module:
            assert not found.weight.detach().numpy()[~keep].any()


def test_a_model_of_standardised_convolutions_is_restored_from_its_state_dict():
    models = [nn.Sequential(standardised_layer("scaled")[0]) for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.add_(1)
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    assert torch.equal(models[1][0].weight, models[0][0].weight)
    assert "0.parametrizations.weight.0.gain" in models[0].state_dict()


# Weights of the network without masks


def plain_and_masked(kind: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A network, and the same with a mask and with weights that are all others."""
    plain = LAYERS[kind][0]() if kind in LAYERS else STANDARDISED[kind]()
    masked = masked_layer(kind)[0] if kind in LAYERS else standardised_layer(kind)[0]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1)
    return nn.Sequential(plain), nn.Sequential(masked)


@pytest.mark.parametrize("kind", ["whole", "scaled"])
def test_plain_weights_become_the_latent_ones_and_masks_stay(kind):
    plain, masked = plain_and_masked(kind)
    mask = block_mask_of(masked[0]).mask.clone()
    state = plain.state_dict()
    found = masked.load_state_dict(state, strict=False)
    assert found.missing_keys == ["0.parametrizations.weight.0.mask"] and found.unexpected_keys == []
    assert torch.equal(masked[0].parametrizations.weight.original, plain[0].weight)
    assert torch.equal(block_mask_of(masked[0]).mask, mask)
    if kind == "scaled":
        assert torch.equal(block_mask_of(masked[0]).gain, plain[0].gain)
    assert "0.weight" in state, "the caller's dict stays as it is"
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.parametrizations\.weight\.0\.mask"):
        masked.load_state_dict(state)
    if kind == "whole":
        plain_copy(masked).load_state_dict(state)  # which has no mask any more
