"""Matrix products, attention and softmax; linear layers have kernels, see `packed`."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import MAX_PAIRS, astype, like_torch, refuse_training
from subp_ext.operators.packed import lower_linear, pack_linear
from subp_ext.operators.record import MetaTensor, Spec, activate, operator
from subp_ext.sparse import UniformBlockSparse


def _linear_spec(input: MetaTensor, weight: MetaTensor, **rest: Any) -> Spec:
    # A sparse weight has the shape of a 1x1 convolution's.
    return _matmul_spec(input, (weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight).T)


@operator("linear", shape=_linear_spec, lower=lower_linear, pack=pack_linear)
def linear(
    input: Array,
    weight: Array | UniformBlockSparse,
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    if isinstance(weight, UniformBlockSparse):
        weight = weight.to_dense()[:, :, 0, 0]
    result = np.asarray(input @ weight.T)
    return activate(result if bias is None else result + bias, activation)


def _matmul_spec(self: MetaTensor, other: Any = None, mat2: Any = None) -> Spec:
    b = mat2 if other is None else other
    rows, columns = self.shape[-2:-1], b.shape[-1:] if b.ndim > 1 else ()
    if self.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
        raise ValueError(f"matrices {list(self.shape)} and {list(b.shape)} do not fit")
    return (*np.broadcast_shapes(self.shape[:-2], b.shape[:-2]), *rows, *columns), np.result_type(self, b)


@operator("matmul", shape=_matmul_spec)
def matmul(self: Array, other: Array) -> Array:
    return np.asarray(self @ other)


@operator("mm", "bmm", shape=_matmul_spec)
def mm(self: Array, mat2: Array) -> Array:
    return self @ mat2


def _addmm_spec(self: MetaTensor, mat1: MetaTensor, mat2: MetaTensor, **rest: Any) -> Spec:
    return np.broadcast_shapes(self.shape, _matmul_spec(mat1, mat2)[0]), np.result_type(self, mat1)


@operator("addmm", shape=_addmm_spec)
def addmm(self: Array, mat1: Array, mat2: Array, beta: float = 1, alpha: float = 1) -> Array:
    return like_torch(beta * self + alpha * (mat1 @ mat2), self)


def _baddbmm_spec(self: MetaTensor, batch1: MetaTensor, batch2: MetaTensor, **rest: Any) -> Spec:
    return _addmm_spec(self, batch1, batch2)


@operator("baddbmm", shape=_baddbmm_spec)
def baddbmm(self: Array, batch1: Array, batch2: Array, beta: float = 1, alpha: float = 1) -> Array:
    return like_torch(beta * self + alpha * (batch1 @ batch2), self)


def _einsum_spec(equation: str, tensors: Sequence[MetaTensor], **rest: Any) -> Spec:
    equation = equation.replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if "." in equation or not arrow or len(terms.split(",")) != len(tensors):
        raise ValueError(f"einsum equation {equation!r} is not supported: it needs '->' and no '...'")
    sizes: dict[str, int] = {}
    for letters, tensor in zip(terms.split(","), tensors, strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"einsum {equation!r}: {letter!r} is both {sizes[letter]} and {size}")
    if math.prod(sizes.values()) > MAX_PAIRS:
        raise ValueError(f"einsum {equation!r} with sizes {sizes} may need {math.prod(sizes.values())} numbers")
    return tuple(sizes[letter] for letter in result), np.result_type(*tensors)


@operator("einsum", shape=_einsum_spec)
def einsum(equation: str, tensors: Sequence[Array], path: Sequence[int] | None = None) -> Array:
    return np.asarray(np.einsum(equation, *tensors, optimize=True))


def _softmax_spec(self: MetaTensor, dtype: str | None = None, **rest: Any) -> Spec:
    return self.shape, np.dtype(dtype or self.dtype)


@operator("softmax", "_softmax", shape=_softmax_spec)
def softmax(self: Array, dim: int, dtype: str | None = None, half_to_float: bool = False) -> Array:
    x = astype(self, dtype)
    e = np.exp(x - x.max(axis=dim, keepdims=True))
    return e / e.sum(axis=dim, keepdims=True)


@operator("log_softmax", "_log_softmax", shape=_softmax_spec)
def log_softmax(self: Array, dim: int, dtype: str | None = None, half_to_float: bool = False) -> Array:
    x = astype(self, dtype)
    x = x - x.max(axis=dim, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=dim, keepdims=True))


def _attention_spec(
    query: MetaTensor, key: MetaTensor, value: MetaTensor, enable_gqa: bool = False, dropout_p: float = 0.0, **rest: Any
) -> Spec:
    refuse_training("dropout_p", dropout_p)
    lead = query.shape[:-2] if enable_gqa else np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if math.prod(lead) * query.shape[-2] * key.shape[-2] > MAX_PAIRS:
        raise ValueError(f"{math.prod(lead)} heads of {query.shape[-2]} queries and {key.shape[-2]} keys are too many")
    return (*lead, query.shape[-2], value.shape[-1]), query.dtype


@operator("scaled_dot_product_attention", shape=_attention_spec)
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """`[..., L, E]`, `[..., S, E]`, `[..., S, Ev]` to `[..., L, Ev]`."""
    refuse_training("dropout_p", dropout_p)
    if enable_gqa:
        key, value = (np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, scores.dtype.type(-np.inf))
    if attn_mask is not None:
        bias = np.where(attn_mask, 0.0, -np.inf) if attn_mask.dtype == bool else attn_mask
        scores = scores + bias.astype(scores.dtype)
    return softmax(scores, -1) @ value
