"""Matrix products, attention and softmax."""

from __future__ import annotations

import numpy as np

from subp_ext.reference.activations import activate
from subp_ext.reference.registry import cast, like_torch, register
from subp_ext.sparse import UniformBlockSparse


@register("linear")
def linear(
    input: np.ndarray,
    weight: np.ndarray | UniformBlockSparse,
    bias: np.ndarray | None = None,
    activation: str | None = None,
) -> np.ndarray:
    if isinstance(weight, UniformBlockSparse):
        weight = weight.to_dense()[:, :, 0, 0]
    result = np.asarray(input @ weight.T)
    return activate(result if bias is None else result + bias, activation)


@register("matmul")
def matmul(self: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(self @ other)


@register("mm", "bmm")
def mm(self: np.ndarray, mat2: np.ndarray) -> np.ndarray:
    return self @ mat2


@register("addmm")
def addmm(self: np.ndarray, mat1: np.ndarray, mat2: np.ndarray, beta: float = 1, alpha: float = 1) -> np.ndarray:
    return like_torch(beta * self + alpha * (mat1 @ mat2), self)


@register("baddbmm")
def baddbmm(self: np.ndarray, batch1: np.ndarray, batch2: np.ndarray, beta: float = 1, alpha: float = 1) -> np.ndarray:
    return like_torch(beta * self + alpha * (batch1 @ batch2), self)


@register("einsum")
def einsum(equation: str, tensors: list[np.ndarray], path: list[int] | None = None) -> np.ndarray:
    return np.asarray(np.einsum(equation, *tensors, optimize=True))


@register("softmax", "_softmax")
def softmax(self: np.ndarray, dim: int, dtype: str | None = None, half_to_float: bool = False) -> np.ndarray:
    x = cast(self, dtype)
    e = np.exp(x - x.max(axis=dim, keepdims=True))
    return e / e.sum(axis=dim, keepdims=True)


@register("log_softmax", "_log_softmax")
def log_softmax(self: np.ndarray, dim: int, dtype: str | None = None, half_to_float: bool = False) -> np.ndarray:
    x = cast(self, dtype)
    x = x - x.max(axis=dim, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=dim, keepdims=True))


@register("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> np.ndarray:
    """`[..., L, E]`, `[..., S, E]`, `[..., S, Ev]` to `[..., L, Ev]`; dropout is that of inference: none."""
    if enable_gqa:
        key, value = (np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, scores.dtype.type(-np.inf))
    if attn_mask is not None:
        bias = np.where(attn_mask, 0.0, -np.inf) if attn_mask.dtype == bool else attn_mask
        scores = scores + bias.astype(scores.dtype)
    return softmax(scores, -1) @ value
