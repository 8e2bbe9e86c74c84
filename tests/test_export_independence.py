"""subp_dist.export.independence: which networks may run a batch in parts, and that no other one does.

Networks: one operation between two convolutions, 4 channels of 8x8, batches of 3; one with a batch that runs in parts.
Oracle: torch on the batch against torch on each image alone. Out of scope: the zoo (test_export_zoo.py).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export import build_graph, export_subp
from subp_dist.export.example import Example
from subp_dist.export.verify import verified

SIZE = (3, 8, 8)


class Around(nn.Module):
    """An operation on `[B, 4, 8, 8]` between convolutions, and a module of its own, if it needs one."""

    def __init__(self, operation, module=None):
        super().__init__()
        self.first, self.operation, self.module = nn.Conv2d(3, 4, 3, padding=1), operation, module

    def forward(self, x):
        x = self.first(x)
        return self.operation(x) if self.module is None else self.operation(x, self.module)


def model_of(operation) -> Around:
    torch.manual_seed(0)
    return Around(*operation).eval() if isinstance(operation, tuple) else Around(operation).eval()


def windows(x):
    """Swin's: windows of 4x4 as items of the batch, attention in each, and back."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = (x @ x.transpose(-2, -1)).softmax(-1) @ x
    return x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def heads(x):
    b, c = x.shape[:2]
    x = x.flatten(2).reshape(b * 2, c // 2, -1)
    return torch.bmm(x, x.transpose(1, 2)).reshape(b, 2, c // 2, c // 2)


def class_token(x, token):
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([token.expand(x.shape[0], -1, -1), tokens], 1)[:, 0]


def attention(x, module):
    x = x.flatten(2).transpose(1, 2)
    return module(x, x, x)[0]


def written(x):
    """As assignments to slices are traced: over every dimension, the images' whole one too."""
    return torch.slice_scatter(x, torch.slice_scatter(x, x[:, 2:], 1, 0, 2), 0)


def grouped_norm(x):
    """Instance norm as some networks write it: batch statistics with images among the channels."""
    return F.batch_norm(x.reshape(1, -1, 8, 8), None, None, training=True).reshape(x.shape)


APART = {
    "convolution": lambda x: x.relu() + 1,
    "windows": windows,
    "heads": heads,
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x, x.flip(1)),
    "attention": (
        lambda x, m: m(*[x.flatten(2).transpose(1, 2)] * 3)[0],
        nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "class_token": (class_token, nn.Parameter(torch.randn(1, 1, 4))),
    "grouped_norm": grouped_norm,
    "instance_norm": F.instance_norm,
    "group_norm": lambda x: F.group_norm(x, 2),
    "layer_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)),
    "batch_norm": (lambda x, m: m(x), nn.BatchNorm2d(4)),
    "softmax": lambda x: x.softmax(1).mean((2, 3)),
    "last_first": lambda x: x.permute(1, 2, 3, 0).softmax(0).permute(3, 0, 1, 2),
    "shuffle": lambda x: F.pixel_unshuffle(F.channel_shuffle(x, 2), 2),
    "resize": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 2, 3, 4)),
    "chunks": lambda x: torch.cat([part * 2 for part in x.chunk(2, 1)], 1),
    "parts": lambda x: torch.stack([*x.unbind(1), x[:, 0], x.amax(1), x.max(1)[0]], 1),
    "sums": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "vector": (lambda x, vector: x @ vector, nn.Buffer(torch.tensor([1.0, -2, 0.5, 3, 0, 1, 1, 2]))),
    "repeats": lambda x: x.repeat_interleave(2, 0).reshape(x.shape[0], 2, -1).mean(1),
    "zeros": lambda x: x + x.new_zeros(x.shape[0], 1, 1, 1),
    "rolled": lambda x: x.roll((1, 2), (2, 3)).flip(1)[..., ::2],
    "indexed": (lambda x, index: x[:, :, index[:, None], index], nn.Buffer(torch.tensor([1, 5, 2]))),
    "argmax": lambda x: x.argmax(1),
    "written": written,
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
}

MIXED = {
    "batch_statistics": (lambda x, m: m(x), nn.BatchNorm2d(4, track_running_stats=False)),
    "functional_statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "attention_over_images": lambda x: F.scaled_dot_product_attention(*[x.flatten(1)] * 3),
    "attention_over_images_by_hand": lambda x: (x.flatten(1) @ x.flatten(1).T).softmax(1) @ x.flatten(1),
    "attention_of_another_order": (attention, nn.MultiheadAttention(4, 2)),
    "roll": lambda x: x.roll(1, 0),
    "roll_all": lambda x: x.roll(1),
    "flip": lambda x: x.flip(0),
    "mean": lambda x: x - x.mean(0),
    "mean_of_all": lambda x: x - x.mean(),
    "largest": lambda x: x / x.abs().amax(),
    "softmax": lambda x: x.softmax(0),
    "cumsum": lambda x: x.cumsum(0),
    "folded": lambda x: x.permute(1, 0, 2, 3).reshape(x.shape),
    "cut_elsewhere": lambda x: x.reshape(4, -1, 8, 8).softmax(1).reshape(x.shape),
    "joined": lambda x: torch.cat([x, x.flip(1)]).reshape(x.shape[0], -1),
    "joined_and_halved": lambda x: torch.cat([x, x * 2]).reshape(2, *x.shape).mean(0),
    "first_image": lambda x: x + x[:1],
    "selected_image": lambda x: x * x[0],
    "count": lambda x: x / x.shape[0],
    "positions": lambda x: x * torch.arange(x.shape[0], dtype=torch.float32)[:, None, None, None],
    "vector_of_images": lambda x: x.permute(1, 2, 3, 0) @ torch.ones(x.shape[0]),
    "products": lambda x: torch.einsum("bchw,dchw->bd", x, x),
    "tiled": lambda x: x.repeat(2, 1, 1, 1) + x.repeat_interleave(2, 0),
    "transposed": lambda x: x.mean((2, 3)).T,
    "padded": lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)),
    "compared": lambda x: (x.mean((1, 2, 3))[:, None] > x.mean((1, 2, 3))[None]).float(),
    "without_one": lambda x: x.mean((1, 2, 3), keepdim=True).squeeze(),
    "windows_of_images": lambda x: x.unfold(0, 1, 1).sum(-1).flip(0),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_images_that_are_computed_alone_are_found(name):
    model = model_of(APART[name])
    graph = build_graph(model, SIZE)
    assert graph.metadata["independent_images"] is True, graph.metadata["notes"]
    assert verified(graph, model, Example.images(SIZE)) is graph


@pytest.mark.parametrize("name", MIXED)
def test_images_that_are_mixed_are_found(name):
    graph = build_graph(model_of(MIXED[name]), SIZE)
    assert graph.metadata["independent_images"] is False
    (note,) = graph.metadata["notes"]
    assert note.startswith("images of a batch run together: node '") or "one entry per image" in note


def test_a_batch_of_images_that_depend_on_each_other_is_not_run_in_parts(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.BatchNorm2d(64, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
    ).eval()
    images = torch.randn(32, 3, 96, 96) * torch.linspace(0.1, 3, 32)[:, None, None, None]
    with torch.inference_mode():
        expected = model(images).numpy()
    export_subp(model, tmp_path / "model.subp", (3, 96, 96), {})
    found = subp_ext.Session(tmp_path / "model.subp", threads=1).run(images.numpy())
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_what_has_no_rule_is_not_split():
    graph = build_graph(model_of(lambda x: x[torch.tensor([[0]]), :, torch.tensor([1, 2])]), SIZE)
    assert graph.metadata["independent_images"] is False


def test_what_the_rules_miss_shows_in_numbers():
    """The proof on images has the last word."""
    model = model_of(lambda x: x - x.mean(0))
    graph = build_graph(model, SIZE)
    graph.metadata.update(independent_images=True, notes=[])
    checked = verified(graph, model, Example.images(SIZE))
    assert checked.metadata["independent_images"] is False
    assert "images of a batch run together: alone, the result differs by" in checked.metadata["notes"][0]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.reshape(1, 4, 8, 8).mean((2, 3)),
        lambda x: x * 2 if x.shape[0] > 16 else x * 3,
    ],
    ids=["fixed", "bounded"],
)
def test_code_that_depends_on_the_batch_size_is_exported_for_single_images(operation):
    model = model_of(operation)
    graph = build_graph(model, SIZE)
    assert graph.inputs[0].shape[0] == 1 and graph.metadata["independent_images"] is False
    assert "the batch size of input 'x' is fixed" in graph.metadata["notes"][0]
    assert verified(graph, model, Example.images(SIZE)) is graph


def test_a_branch_on_the_batch_size_that_the_trace_misses_is_refused(tmp_path):
    model = model_of(lambda x: x * 2 if x.shape[0] % 2 else x * 3)
    with pytest.raises(UsageError, match="on images 3x3x8x8 the result differs by"):
        export_subp(model, tmp_path / "model.subp", SIZE, {})
