"""The files that engines load, all of one random network: written once, and used again where they are there."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

import subp_ext

from ..checkpoint import write_atomically
from ..export import Network, build_graph
from ..export.formats import write_onnx
from ..parametrization import plain_copy

# Engine of the worker -> end of its file's name. The peers get the same weights, zeros in place.
SUFFIX = {"subp": "subp", "subp_dense": "dense.subp", "onnxruntime": "onnx", "openvino": "onnx", "torch": "pt"}


@dataclass(frozen=True)
class NetworkFiles:
    """A random network as files in a folder, for each engine its own; nothing is computed before it is asked for.

    Attributes:
        folder: where the files are kept.
        model: timm model name.
        rate, block_size, skip, image_size, seed: as ``random_network`` takes them.
    """

    folder: Path
    model: str
    rate: float
    block_size: int
    skip: tuple[str, ...] = ()
    image_size: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Of all files, but for their ends: the same parameters give the same name."""
        others = repr((sorted(self.skip), self.image_size, self.seed))
        digest = hashlib.blake2b(others.encode(), digest_size=4).hexdigest()
        return f"{self.model}-{self.rate:g}-1x{self.block_size if self.rate else 0}-{digest}"

    @cached_property
    def network(self) -> Network:
        """The network itself.

        Raises:
            UsageError: as ``random_network``.
        """
        return Network.random(
            self.model, self.rate, self.block_size, skip=self.skip, image_size=self.image_size, seed=self.seed
        )

    def path(self, engine: str) -> Path:
        """The file of an engine of ``SUFFIX``; written if it is not there.

        Raises:
            UsageError: the network cannot be exported.
        """
        path = self.folder / f"{self.name}.{SUFFIX[engine]}"
        if not path.exists():
            write_atomically(path, lambda temporary: self._write(engine, temporary))
        return path

    def _write(self, engine: str, path: Path) -> None:
        network = self.network
        if engine == "subp":
            subp_ext.save(path, build_graph(network.model, network.input_size))
            return
        plain = plain_copy(network.model).eval().requires_grad_(False)
        if engine == "subp_dense":
            subp_ext.save(path, build_graph(plain, network.input_size))
        elif engine == "torch":
            torch.save(plain, path)
        else:
            write_onnx(plain, network.input_size, path)

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


def engines_of(against: Sequence[str]) -> list[str]:
    """Engines of ``compete`` for the peers asked for: torch counts with the faster of its memory formats."""
    return [engine for peer in against for engine in ((peer, f"{peer}_channels_last") if peer == "torch" else (peer,))]
