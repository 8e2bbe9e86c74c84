"""The files that engines load, all of one random network: written once, and used again where they are there."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

import subp_ext
from subp_ext.bfloat16 import convert

from ..checkpoint import write_atomically
from ..export import Network, build_graph
from ..export.formats import write_onnx
from ..export.int8 import random_images
from ..export.quantize import quantize_graph
from ..flag_values import parse_kwargs
from ..parametrization import plain_copy
from . import unet  # noqa: F401  (registers its networks with timm)
from .quantized import quantize_for_onnxruntime, quantize_for_openvino

# Contender -> end of its file's name. The peers get the same weights, zeros in place.
SUFFIX = {
    "subp": "subp",
    "subp_dense": "dense.subp",
    "subp_bf16": "bf16.subp",
    "subp_bf16_dense": "dense.bf16.subp",
    "subp_int8": "int8.subp",
    "subp_int8_dense": "dense.int8.subp",
    "onnxruntime": "onnx",
    "onnxruntime_int8": "int8.onnx",
    "openvino": "onnx",
    "openvino_bf16": "onnx",
    "openvino_int8": "int8.xml",
    "torch": "pt",
    "torch_bf16": "pt",
    "torch_channels_last": "pt",
}

# Random images that ranges are taken from, by this engine and by the peers alike.
CALIBRATION_IMAGES = 32


@dataclass(frozen=True)
class NetworkFiles:
    """A random network as files in a folder, for each engine its own; nothing is computed before it is asked for.

    Attributes:
        folder: where the files are kept.
        model: timm model name.
        rate, block_size, skip, image_size, seed: as ``random_network`` takes them.
        model_kwargs: more arguments for timm, as ``parse_kwargs`` takes them.
    """

    folder: Path
    model: str
    rate: float
    block_size: int
    skip: tuple[str, ...] = ()
    image_size: int | None = None
    seed: int = 0
    model_kwargs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of all files, but for their ends: the same parameters give the same name."""
        others = repr((sorted(self.skip), self.image_size, self.seed, *self.model_kwargs))
        digest = hashlib.blake2b(others.encode(), digest_size=4).hexdigest()
        return f"{self.model}-{self.rate:g}-1x{self.block_size if self.rate else 0}-{digest}"

    @cached_property
    def network(self) -> Network:
        """The network itself.

        Raises:
            UsageError: as ``random_network``.
        """
        settings = {"skip": self.skip, "image_size": self.image_size, "seed": self.seed}
        return Network.random(self.model, self.rate, self.block_size, **settings, **parse_kwargs(self.model_kwargs))

    @cached_property
    def calibration(self) -> np.ndarray:
        """Random images ``[n, C, H, W]`` that int8 networks are calibrated on; others than those that are run."""
        return random_images(self.network.input_size, CALIBRATION_IMAGES, self.seed + 1)

    def path(self, contender: str) -> Path:
        """The file of a contender of ``SUFFIX``; written if it is not there.

        Raises:
            UsageError: the network cannot be exported, or not be quantized.
        """
        path = self.folder / f"{self.name}.{SUFFIX[contender]}"
        if not path.exists():
            write_atomically(path, lambda temporary: self._write(contender, temporary))
        return path

    def macs(self, contender: str) -> int:
        """Multiply-accumulates of an image on this engine, in blocks that are kept."""
        return subp_ext.Session(self.path(contender)).report().to_dict()["macs"]

    def _write(self, contender: str, path: Path) -> None:
        if contender.startswith("subp"):
            self._write_subp(contender, path)
        elif contender == "onnxruntime_int8":
            quantize_for_onnxruntime(self.path("onnxruntime"), self.calibration, path)
        elif contender == "openvino_int8":
            weights = self.folder / f"{self.name}.{SUFFIX[contender]}"
            quantize_for_openvino(self.path("openvino"), self.calibration, path, weights.with_suffix(".bin"))
        elif contender.startswith("torch"):
            torch.save(self._plain(), path)
        else:
            write_onnx(self._plain(), self.network.input_size, path)

    def _write_subp(self, contender: str, path: Path) -> None:
        graph = build_graph(self.network.model, self.network.input_size, dense=contender.endswith("dense"))
        if "int8" in contender:
            graph, _ = quantize_graph(graph, self.calibration)
        subp_ext.save(path, convert(graph) if "bf16" in contender else graph)

    def _plain(self) -> nn.Module:
        return plain_copy(self.network.model).eval().requires_grad_(False)

    def images(self, batch_size: int) -> tuple[Path, np.ndarray]:
        """A file of random images ``[B, C, H, W]``, and the logits that torch computes for them in float64."""
        path, expected = (self.folder / f"{self.name}-b{batch_size}.{part}.npy" for part in ("images", "expected"))
        if not (path.exists() and expected.exists()):
            generator = torch.Generator().manual_seed(self.seed)
            images = torch.randn(batch_size, *self.network.input_size, generator=generator)
            logits = in_float64(self.network.model, images)
            write_atomically(path, lambda temporary: _save_array(temporary, images.numpy()))
            write_atomically(expected, lambda temporary: _save_array(temporary, logits))
        return path, np.load(expected)


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add its own suffix to it
        np.save(file, array)


@torch.inference_mode()
def in_float64(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Logits of a model computed in float64: what every engine rounds to."""
    return copy.deepcopy(model).double().eval()(images.double()).numpy()
