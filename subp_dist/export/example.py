"""The inputs that a model is traced and tried with: tensors, nested in arguments as the model takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subp_ext import Graph

from ..errors import UsageError
from ..torch_compat import pytree

# What people may pass: one tensor or array, a tuple or list of arguments, or a dict of them by name.
ExampleInputs = Any


@dataclass(frozen=True)
class Example:
    """A call of a model. Tensors are on the CPU, floating-point ones in float32.

    Attributes:
        arguments: positional.
        keywords: by name.
        batched: of each tensor, in order, whether its first dimension is taken for the batch.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    batched: tuple[bool, ...]

    @classmethod
    def of(cls, inputs: ExampleInputs, model: nn.Module | None = None) -> Example:
        """Reads what was given.

        Args:
            inputs: a tensor or NumPy array; a tuple or list of positional arguments, which may be nested; a dict of
                arguments by the names of ``model.forward``, or a dict of tensors that is its one argument.
            model: to tell the two kinds of dict apart.

        Raises:
            UsageError: there is no tensor in it, or the model takes other arguments.
        """
        keywords: dict[str, Any] = {}
        if isinstance(inputs, Mapping) and model is not None and _are_names(inputs, model):
            arguments, keywords = (), dict(inputs)
        else:
            plural = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
            arguments = tuple(inputs) if plural else (inputs,)
        arguments, keywords = pytree.tree_map(_as_tensor, (arguments, keywords))
        if model is not None:
            arguments, keywords = _in_order(model, arguments, keywords)
        tensors = [leaf for leaf in pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        if not tensors:
            raise UsageError("example_inputs hold no tensor; expected one, or a tuple or dict of arguments with one")
        images = next((len(tensor) for tensor in tensors if tensor.ndim), None)
        return cls(arguments, keywords, tuple(tensor.ndim > 0 and len(tensor) == images for tensor in tensors))

    @classmethod
    def images(cls, input_size: tuple[int, ...], batch: int = 2) -> Example:
        """A batch of images of one size (C, H, W), all zeros."""
        return cls.of(torch.zeros(batch, *input_size))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.arguments, dict(self.keywords))) if isinstance(leaf, Tensor)]

    @property
    def arrays(self) -> list[np.ndarray]:
        """What a session takes, in its order."""
        return [tensor.numpy() for tensor in self.tensors]

    @property
    def batch(self) -> int:
        """Images in it; 1 where no tensor has a dimension."""
        return next((len(tensor) for tensor, batched in zip(self.tensors, self.batched, strict=True) if batched), 1)

    @property
    def described(self) -> str:
        """The sizes, for messages."""
        sizes = [tuple(tensor.shape) for tensor in self.tensors]
        return ("images " if len(sizes) == 1 else "inputs ") + ", ".join("x".join(map(str, size)) for size in sizes)

    @property
    def is_flat(self) -> bool:
        """Whether all of its numbers are the same, as nothing that a model is made for: norms divide by nearly zero."""
        real = [tensor for tensor in self.tensors if tensor.is_floating_point() and tensor.numel()]
        return all(bool((tensor == tensor.flatten()[0]).all()) for tensor in real) and bool(real)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Example:
        """The same call with other tensors."""
        rest = iter(tensors)
        arguments, keywords = pytree.tree_map(
            lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, (self.arguments, dict(self.keywords))
        )
        return Example(arguments, keywords, self.batched)

    def of_batch(self, count: int) -> Example:
        """The same call for another number of images: those given, over and over."""
        pairs = zip(self.tensors, self.batched, strict=True)
        return self.with_tensors(
            [
                tensor[torch.arange(count) % len(tensor)] if batched and len(tensor) else tensor
                for tensor, batched in pairs
            ]
        )

    def fitting(self, graph: Graph) -> Example:
        """The same call for as many images as a graph takes that fixes their number."""
        pairs = zip(graph.inputs, self.batched, strict=True)
        count = next((spec.shape[0] for spec, batched in pairs if batched), None)
        return self if count is None else self.of_batch(count)

    def one(self, number: int) -> Example:
        """The call for one image of them."""
        pairs = zip(self.tensors, self.batched, strict=True)
        return self.with_tensors([tensor[number : number + 1] if batched else tensor for tensor, batched in pairs])

    def random(self, shapes: Sequence[Sequence[int]] | None = None) -> Example:
        """Other values like those given, each image on a scale of its own, so that statistics over all of them show.

        Args:
            shapes: of the tensors; their own by default.
        """
        generator = torch.Generator().manual_seed(0)
        shapes = [tensor.shape for tensor in self.tensors] if shapes is None else shapes
        return self.with_tensors(
            [
                _like(tensor, tuple(shape), batched, generator)
                for tensor, shape, batched in zip(self.tensors, shapes, self.batched, strict=True)
            ]
        )

    def call(self, model: nn.Module) -> Any:
        """What the model returns for it."""
        return model(*self.arguments, **self.keywords)


def _as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        try:
            leaf = torch.from_numpy(np.array(leaf, order="C"))
        except TypeError as error:
            raise UsageError(f"example_inputs hold an array of {leaf.dtype}; expected numbers: {error}") from error
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    # A tensor of its own for each argument: torch tells them apart by identity.
    return (leaf.float() if leaf.is_floating_point() else leaf).clone(memory_format=torch.contiguous_format)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _are_names(inputs: Mapping[Any, Any], model: nn.Module) -> bool:
    parameters = _parameters(model)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return True
    return bool(inputs) and set(inputs) <= {parameter.name for parameter in parameters}


def _in_order(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the order of the model's signature, in which torch.export lists them, too.

    Raises:
        UsageError: they do not fit it.
    """
    try:
        bound = inspect.signature(model.forward).bind(*arguments, **keywords)
    except TypeError as error:
        raise UsageError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}; several inputs are a tuple, "
            "one that is a list or dict is a tuple of one"
        ) from error
    except ValueError:  # of a function without a signature
        return arguments, keywords
    return bound.args, bound.kwargs


def _like(tensor: Tensor, shape: tuple[int, ...], batched: bool, generator: torch.Generator) -> Tensor:
    """A tensor of another shape with values such as this one has; whole numbers are drawn from those that it holds."""
    if not tensor.is_floating_point():
        if not tensor.numel():
            return tensor.new_zeros(shape)
        return tensor.flatten()[torch.randint(tensor.numel(), shape, generator=generator)]
    finite = tensor[tensor.isfinite()]
    spread = float(finite.std()) if finite.numel() > 1 else 0.0
    values = torch.randn(shape, generator=generator)
    if batched and shape[0] > 1:
        values *= torch.linspace(0.4, 2.0, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return values * spread + finite.mean() if spread > 0 else values
