"""Views, joins, cuts, indexing and padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from subp_ext.reference.registry import axes, cast, register


@register("view", "_unsafe_view")
def view(self: np.ndarray, size: list[int]) -> np.ndarray:
    return self.reshape(size)


@register("reshape")
def reshape(self: np.ndarray, shape: list[int]) -> np.ndarray:
    return self.reshape(shape)


@register("flatten")
def flatten(self: np.ndarray, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    start, end = axes([start_dim, end_dim], self.ndim)
    return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])


@register("unflatten")
def unflatten(self: np.ndarray, dim: int, sizes: list[int]) -> np.ndarray:
    (dim,) = axes(dim, self.ndim)
    return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])


@register("squeeze")
def squeeze(self: np.ndarray, dim: Any = None) -> np.ndarray:
    """Without `dim` drops every dimension of size 1; those named that are larger stay."""
    return self.squeeze(axis=tuple(d for d in axes(dim, self.ndim) if self.shape[d] == 1))


@register("unsqueeze")
def unsqueeze(self: np.ndarray, dim: int) -> np.ndarray:
    return np.expand_dims(self, dim)


@register("expand")
def expand(self: np.ndarray, size: list[int]) -> np.ndarray:
    own = (1,) * (len(size) - self.ndim) + self.shape
    return np.broadcast_to(self, [o if s == -1 else s for o, s in zip(own, size, strict=True)])


@register("expand_as")
def expand_as(self: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.broadcast_to(self, other.shape)


@register("repeat")
def repeat(self: np.ndarray, repeats: list[int]) -> np.ndarray:
    return np.tile(self, repeats)


@register("repeat_interleave")
def repeat_interleave(self: np.ndarray, repeats: Any, dim: int | None = None, output_size: Any = None) -> np.ndarray:
    return np.repeat(self, repeats, axis=dim)


@register("permute")
def permute(self: np.ndarray, dims: list[int]) -> np.ndarray:
    return self.transpose(dims)


@register("transpose")
def transpose(self: np.ndarray, dim0: int, dim1: int) -> np.ndarray:
    return self.swapaxes(dim0, dim1)


@register("t", "numpy_T")
def t(self: np.ndarray) -> np.ndarray:
    return self.T


@register("contiguous", "clone", "alias", "detach", "detach_copy", "lift_fresh_copy", "lift_fresh")
def identity(self: np.ndarray) -> np.ndarray:
    return self


@register("dropout", "feature_dropout", "alpha_dropout")
def dropout(input: np.ndarray, p: float = 0.5, train: bool = False) -> np.ndarray:
    return input


@register("native_dropout")
def native_dropout(input: np.ndarray, p: float = 0.5, train: bool | None = False) -> tuple[np.ndarray, np.ndarray]:
    return input, np.ones(input.shape, bool)


@register("_to_copy", "to")
def to_copy(self: np.ndarray, dtype: str | None = None, copy: bool = False) -> np.ndarray:
    return cast(self, dtype)


@register("type_as")
def type_as(self: np.ndarray, other: np.ndarray) -> np.ndarray:
    return self.astype(other.dtype)


@register("cat", "concat")
def cat(tensors: list[np.ndarray], dim: int = 0) -> np.ndarray:
    # ATen lets an empty 1-d tensor join anything.
    return np.concatenate([x for x in tensors if x.shape != (0,)] or tensors, axis=dim)


@register("stack")
def stack(tensors: list[np.ndarray], dim: int = 0) -> np.ndarray:
    return np.stack(tensors, axis=dim)


@register("split")
def split(self: np.ndarray, split_size: int | list[int], dim: int = 0) -> list[np.ndarray]:
    if isinstance(split_size, (list, tuple)):
        return split_with_sizes(self, split_size, dim)
    return np.split(self, range(split_size, self.shape[dim], split_size), axis=dim)


@register("split_with_sizes")
def split_with_sizes(self: np.ndarray, split_sizes: list[int], dim: int = 0) -> list[np.ndarray]:
    return np.split(self, np.cumsum(split_sizes)[:-1], axis=dim)


@register("chunk")
def chunk(self: np.ndarray, chunks: int, dim: int = 0) -> list[np.ndarray]:
    return split(self, max(1, -(-self.shape[dim] // chunks)), dim)


@register("unbind")
def unbind(self: np.ndarray, dim: int = 0) -> list[np.ndarray]:
    return list(np.moveaxis(self, dim, 0))


@register("getitem")
def getitem(self: Any, index: int) -> Any:
    return self[index]


@register("slice")
def slice_(self: np.ndarray, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    cut: list[Any] = [slice(None)] * self.ndim
    cut[dim] = slice(start, end, step)
    return self[tuple(cut)]


@register("slice_scatter")
def slice_scatter(
    self: np.ndarray, src: np.ndarray, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> np.ndarray:
    """A copy with `src` in the place of the slice."""
    result = self.copy()
    slice_(result, dim, start, end, step)[...] = src
    return result


@register("select_scatter")
def select_scatter(self: np.ndarray, src: np.ndarray, dim: int, index: int) -> np.ndarray:
    """A copy with `src` in the place of what `select` returns."""
    return slice_scatter(self, np.expand_dims(src, dim), dim, index, index + 1 or None)


@register("select")
def select(self: np.ndarray, dim: int, index: int) -> np.ndarray:
    return np.asarray(self.take(index, axis=dim))


@register("narrow")
def narrow(self: np.ndarray, dim: int, start: int, length: int) -> np.ndarray:
    (start,) = axes(start, self.shape[dim])
    return slice_(self, dim, start, start + length)


@register("index_select")
def index_select(self: np.ndarray, dim: int, index: np.ndarray) -> np.ndarray:
    return self.take(index.reshape(-1), axis=dim)


@register("index")
def index(self: np.ndarray, indices: list[np.ndarray | None]) -> np.ndarray:
    """Indexes with arrays, bool or integer; None keeps a whole dimension."""
    return np.asarray(self[tuple(slice(None) if i is None else i for i in indices)])


@register("gather")
def gather(self: np.ndarray, dim: int, index: np.ndarray, sparse_grad: bool = False) -> np.ndarray:
    inner = tuple(slice(size) if axis != dim % self.ndim else slice(None) for axis, size in enumerate(index.shape))
    return np.take_along_axis(self[inner], index, axis=dim)


@register("embedding")
def embedding(weight: np.ndarray, indices: np.ndarray, padding_idx: int = -1, **training: bool) -> np.ndarray:
    return weight[indices]


@register("unfold")
def unfold(self: np.ndarray, dimension: int, size: int, step: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(self, size, axis=dimension)
    return slice_(windows, dimension % self.ndim, step=step)


@register("pad")
def pad(self: np.ndarray, pad: list[int], mode: str = "constant", value: float | None = None) -> np.ndarray:
    """Pads from the last dimension backwards, (before, after) each; a negative number cuts."""
    pairs = [(0, 0)] * self.ndim
    for i in range(len(pad) // 2):
        pairs[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    keep = tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, self.shape, strict=True))
    grow = [(max(b, 0), max(a, 0)) for b, a in pairs]
    if mode == "constant":
        return np.pad(self[keep], grow, constant_values=value or 0)
    return np.pad(self[keep], grow, mode={"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])


@register("constant_pad_nd")
def constant_pad_nd(self: np.ndarray, pad: list[int], value: float = 0) -> np.ndarray:
    return _pad(self, pad, "constant", value)


@register("reflection_pad1d", "reflection_pad2d")
def reflection_pad(self: np.ndarray, padding: list[int]) -> np.ndarray:
    return _pad(self, padding, "reflect")


@register("replication_pad1d", "replication_pad2d")
def replication_pad(self: np.ndarray, padding: list[int]) -> np.ndarray:
    return _pad(self, padding, "replicate")


_pad = pad  # the functions above have an argument of that name


@register("roll")
def roll(self: np.ndarray, shifts: Any, dims: Any = ()) -> np.ndarray:
    axis = None if dims is None or dims == [] or dims == () else dims
    return np.roll(self, shifts, axis=tuple(axis) if isinstance(axis, list) else axis)


@register("flip")
def flip(self: np.ndarray, dims: list[int]) -> np.ndarray:
    return np.flip(self, dims)


@register("tril")
def tril(self: np.ndarray, diagonal: int = 0) -> np.ndarray:
    return np.tril(self, diagonal)


@register("triu")
def triu(self: np.ndarray, diagonal: int = 0) -> np.ndarray:
    return np.triu(self, diagonal)


@register("meshgrid")
def meshgrid(tensors: list[np.ndarray], indexing: str = "ij") -> list[np.ndarray]:
    return list(np.meshgrid(*tensors, indexing=indexing))


@register("sym_size")
def sym_size(self: np.ndarray, dim: int) -> int:
    return self.shape[dim]


@register("sym_numel", "numel")
def sym_numel(self: np.ndarray) -> int:
    return self.size


@register("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
def no_effect(**args: Any) -> None:
    """Checks of the exporting framework, already true for the graph it wrote."""
