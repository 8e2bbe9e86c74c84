"""Modules that are no classifiers, as people write them: heads of segmentation, necks and heads of detectors, several
inputs, dicts of results. Each entry of `MODULES` makes a module, and its inputs for a batch and a size.

`python tests/module_zoo.py [PATTERN ...]` exports them, and the timm models below, and compares each with torch.
"""

from __future__ import annotations

import fnmatch
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

import subp_ext
from subp_dist import export_model
from subp_dist.errors import UsageError
from subp_dist.export.verify import describe_difference, flatten_outputs

# Not in other tests: a member of thirty families, at an image size that it takes and a CPU runs in a moment.
TIMM = {
    "resnet26t": 96, "resnetv2_18": 96, "seresnet18": 96, "ecaresnet26t": 96, "skresnet18": 96, "wide_resnet50_2": 64,
    "densenet121": 64, "dpn48b": 64, "inception_v4": 128, "xception41": 96, "vgg11_bn": 64, "vovnet39a": 64,
    "ese_vovnet19b_dw": 64, "dla34": 64, "hrnet_w18_small": 64, "cspresnet50": 64, "darknet17": 64,
    "res2net50_26w_4s": 64, "rexnet_100": 64, "mnasnet_050": 64, "fbnetc_100": 64, "mobilenetv2_035": 64,
    "lcnet_035": 64, "tinynet_e": 96, "repghostnet_050": 64, "repvgg_a0": 64, "mobileone_s0": 64, "fastvit_t8": 128,
    "convnextv2_atto": 64, "edgenext_xx_small": 128,
}  # fmt: skip
FEATURES = ["resnet26t", "vgg11_bn", "dla34", "hrnet_w18_small", "mobilenetv2_035", "densenet121", "convnextv2_atto"]


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, **more) -> nn.Sequential:
    padding = more.pop("padding", size // 2)
    layer = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Transposed convolutions, and skips that are cut where sizes are odd."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 16, stride=2), conv(16, 32, stride=2)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.join = nn.ModuleList([conv(32, 16), conv(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[1::-1], strict=True):
            x = join(torch.cat([up(x)[..., : skip.shape[-2], : skip.shape[-1]], skip], 1))
        return self.head(x)


class Pyramid(nn.Module):
    """PSPNet's pooling to given grids."""

    def __init__(self):
        super().__init__()
        self.body = conv(3, 16, stride=4)
        self.levels = nn.ModuleList(conv(16, 4, 1) for _ in range(3))
        self.head = nn.Conv2d(28, 5, 1)

    def forward(self, x):
        y = self.body(x)
        grids = [F.adaptive_avg_pool2d(y, size) for size in (1, 2, 3)]
        pooled = [
            F.interpolate(level(grid), size=y.shape[2:], mode="bilinear")
            for level, grid in zip(self.levels, grids, strict=True)
        ]
        y = self.head(torch.cat([y, *pooled], 1))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)


class Atrous(nn.Module):
    """DeepLab's head: dilated convolutions and the mean of the image; classes in the end."""

    def __init__(self):
        super().__init__()
        self.body = conv(3, 16, stride=4)
        self.rates = nn.ModuleList(conv(16, 8, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.mean, self.head = conv(16, 8, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x):
        y = self.body(x)
        mean = self.mean(y.mean((2, 3), keepdim=True)).expand(-1, -1, *y.shape[2:])
        y = F.interpolate(self.head(torch.cat([rate(y) for rate in self.rates] + [mean], 1)), x.shape[2:])
        return {"logits": y, "classes": y.argmax(1)}


class Neck(nn.Module):
    """Feature pyramid of a timm backbone, top down by sizes."""

    def __init__(self, top_down=lambda high, low: F.interpolate(high, size=low.shape[2:])):
        super().__init__()
        self.body = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3))
        self.lateral = nn.ModuleList(nn.Conv2d(n, 16, 1) for n in self.body.feature_info.channels())
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in self.lateral)
        self.top_down = top_down

    def forward(self, x):
        maps = [layer(level) for layer, level in zip(self.lateral, self.body(x), strict=True)]
        for at in (1, 0):
            maps[at] = maps[at] + self.top_down(maps[at + 1], maps[at])
        return {f"p{at}": layer(level) for at, (layer, level) in enumerate(zip(self.smooth, maps, strict=True))}


class Weighted(nn.Module):
    """BiFPN's weighted sums of three maps given as a list."""

    def __init__(self):
        super().__init__()
        self.weights, self.layer = nn.Parameter(torch.rand(3)), conv(8, 8, groups=8)

    def forward(self, maps):
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        maps = [maps[0], F.interpolate(maps[1], scale_factor=2), F.interpolate(maps[2], scale_factor=4)]
        return self.layer(sum(weight * level for weight, level in zip(weights, maps, strict=True)))


class Boxes(nn.Module):
    """RetinaNet's head: anchors of two maps as one list, [B, anchors, numbers]."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(3, 16, stride=4), conv(16, 16, stride=2)
        self.classes, self.boxes = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        maps = [y := self.one(x), self.two(y)]

        def rows(layer, numbers):
            return torch.cat([layer(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers) for y in maps], 1)

        return {"scores": rows(self.classes, 3).sigmoid(), "boxes": rows(self.boxes, 4).exp()}


class Grid(nn.Module):
    """YOLO's decoding: offsets of cells from a grid that follows the size."""

    def __init__(self):
        super().__init__()
        self.body, self.head = conv(3, 16, stride=8), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        y = self.head(self.body(x))
        rows, columns = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
        centres = (y[:, :2].sigmoid() + torch.stack([columns, rows])) * 8
        return torch.cat([centres, y[:, 2:].exp()], 1).flatten(2).transpose(1, 2)


class Peaks(nn.Module):
    """CenterNet's: what is no maximum of its surroundings is dropped."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, stride=4), nn.Conv2d(16, 3, 1))

    def forward(self, x):
        heat = self.body(x).sigmoid()
        return heat * (F.max_pool2d(heat, 3, 1, 1) == heat)


class Expected(nn.Module):
    """Key points as expected positions of heat maps."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, stride=4), nn.Conv2d(16, 5, 1))

    def forward(self, x):
        heat = self.body(x)
        _, _, h, w = heat.shape
        share = heat.flatten(2).softmax(2).unflatten(2, (h, w))
        return torch.stack([share.sum(2) @ torch.arange(w).float() / w, share.sum(3) @ torch.arange(h).float() / h], 2)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, stride=4), conv(16, 32, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, a, b):
        a, b = (F.normalize(self.body(x), dim=1) for x in (a, b))
        return (a * b).sum(1)


class Conditioned(nn.Module):
    """FiLM: a vector scales and shifts channels."""

    def __init__(self):
        super().__init__()
        self.body, self.film, self.head = conv(3, 16), nn.Linear(7, 32), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image, condition):
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        return self.head((self.body(image) * scale + shift).relu())


class Tokens(nn.Module):
    """Attention over text, masked."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


class Noisy(nn.Module):
    """A variational autoencoder draws also after eval()."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        mean, spread = self.body(x).chunk(2, 1)
        return mean + torch.randn_like(mean) * spread.exp()


class Warped(nn.Module):
    """A spatial transformer."""

    def __init__(self):
        super().__init__()
        self.body, self.head = conv(3, 8, stride=4), nn.Linear(8, 6)

    def forward(self, x):
        theta = self.head(self.body(x).mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


class Attended(nn.Module):
    """CBAM: channels, then places."""

    def __init__(self):
        super().__init__()
        self.body, self.channels = (
            conv(3, 16, stride=2),
            nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1)),
        )
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        y = self.body(x)
        pooled = (F.adaptive_avg_pool2d(y, 1), F.adaptive_max_pool2d(y, 1))
        y = y * sum(map(self.channels, pooled)).sigmoid()
        return y * self.places(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid()


def image(batch, size):
    return (torch.randn(batch, 3, size, size + 32),)


def pyramid(batch, size):
    return ([torch.randn(batch, 8, size // scale, size // scale) for scale in (1, 2, 4)],)


MODULES = {
    "unet": (UNet, image),
    "pyramid_pooling": (Pyramid, image),
    "atrous": (Atrous, image),
    "neck_by_size": (Neck, image),
    "neck_by_factor": (lambda: Neck(lambda high, low: F.interpolate(high, scale_factor=2.0, mode="bilinear")), image),
    "weighted_maps": (Weighted, pyramid),
    "boxes": (Boxes, image),
    "grid": (Grid, image),
    "peaks": (Peaks, image),
    "key_points": (Expected, image),
    "siamese": (Siamese, lambda batch, size: image(batch, size) * 2),
    "conditioned": (Conditioned, lambda batch, size: (*image(batch, size), torch.randn(batch, 7))),
    "tokens": (Tokens, lambda batch, size: (torch.randint(0, 50, (batch, size)),)),
    "recurrent": (Recurrent, lambda batch, size: (torch.randn(batch, size, 8),)),
    "noisy": (Noisy, image),
    "warped": (Warped, image),
    "attended": (Attended, image),
    "super_resolution": (lambda: nn.Sequential(conv(3, 16), conv(16, 12), nn.PixelShuffle(2)), image),
    "autoencoder": (
        lambda: nn.Sequential(conv(3, 16, stride=2), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid()),
        image,
    ),
    "signals": (
        lambda: nn.Sequential(nn.Conv1d(2, 16, 9, 2, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 4, 3)),
        lambda batch, size: (torch.randn(batch, 2, size),),
    ),
    "volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1)),
        lambda batch, size: (torch.randn(batch, 1, 8, size // 4, size // 4),),
    ),
    "random_dropout": (lambda: Function(lambda y: F.dropout(y, 0.5, training=True)), image),
}  # fmt: skip


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body, self.function = conv(3, 8), function

    def forward(self, x):
        return self.function(self.body(x))


def alive(model: nn.Module, inputs) -> nn.Module:
    """Gives batch norms the statistics of data, and the constants that training starts from other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(*inputs)
    return model.eval()


def check(name: str, path: Path) -> tuple[str, str]:
    """`ok`, `refused` with the reason, `wrong` or `error`; and whether sizes are free."""
    torch.manual_seed(0)
    try:
        model, inputs, size = _case(name)
        model = alive(model, inputs(4, size))
        summary = export_model(model, inputs(1, size), path)
        free = all(None in spec.shape[1:] for spec in summary.inputs if len(spec.shape) > 2)
        session = subp_ext.Session(path, threads=1)
        for batch, other in ((2, size), (3, size + 32 if free else size)):
            given = inputs(batch, other)
            leaves = torch.utils._pytree.tree_leaves(given)
            found = session.run([leaf.numpy() for leaf in leaves])
            with torch.inference_mode():
                expected = flatten_outputs(model(*given))
            names = [spec.name for spec in session.outputs]
            found = list(found) if isinstance(found, tuple) else [found]
            if difference := describe_difference(names, found, expected):
                return "wrong", f"batch {batch}, size {other}: {difference}"
    except UsageError as error:
        return "refused", str(error)
    except Exception as error:
        return "error", f"{type(error).__name__}: {str(error)[:300]}"
    return "ok", "; ".join([f"sizes {'free' if free else 'fixed'}", *summary.notes])


def _case(name: str):
    if name in MODULES:
        make, inputs = MODULES[name]
        return make(), inputs, 64
    timm_name, _, kind = name.partition("/")
    arguments = {"features_only": True} if kind else {"num_classes": 10}
    size = TIMM[timm_name]
    return timm.create_model(timm_name, **arguments), lambda batch, n: (torch.randn(batch, 3, n, n),), size


def names(patterns: list[str]) -> list[str]:
    every = [*MODULES, *(f"{name}/features" for name in FEATURES), *TIMM]
    return [name for name in every if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ["*"])]


def main(patterns: list[str]) -> int:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names(patterns):
            start = time.perf_counter()
            status, text = check(name, Path(folder) / "model.subp")
            failed += status in ("wrong", "error")
            print(f"{status:8} {name:26} {time.perf_counter() - start:6.1f} s  {text}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
