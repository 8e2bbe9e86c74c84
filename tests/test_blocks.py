"""Weights as blocks, against the oracle.

Sizes: up to 3 groups x 70 output channels, 9 input channels, kernels up to 5x5 and linear weights, every block size.
Tolerance: none, blocks and masks only move or zero values, so all comparisons are exact.
Out of scope: scores, gradients (test_parametrization.py), CUDA.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subp_dist.blocks import BLOCK_SIZES, apply_mask, num_block_rows, row_of_channel, to_blocks

KERNELS = ((), (1, 1), (3, 3), (1, 3), (5, 5))


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """(weight shape, block size, groups); about half of them have a narrow last row."""
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    kernel = draw(st.sampled_from(KERNELS))
    groups = draw(st.integers(1, 3)) if kernel else 1
    per_group = draw(st.one_of(st.integers(1, 70), st.sampled_from([block_size, 2 * block_size])))
    return (groups * per_group, draw(st.integers(1, 9)), *kernel), block_size, groups


def random_weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_mask(shape: tuple[int, ...], block_size: int, groups: int, seed: int = 0) -> torch.Tensor:
    rows = len(oracle.block_rows(shape[0], groups, block_size))
    return torch.rand(rows, shape[1], generator=torch.Generator().manual_seed(seed)) < 0.5


def bits(values: torch.Tensor) -> np.ndarray:
    """float32 as integers, so that NaN equals itself and -0 differs from 0."""
    return values.contiguous().view(torch.int32).numpy()


def test_the_block_sizes_are_those_of_the_method():
    assert BLOCK_SIZES == (2, 4, 8, 16, 32, 64)


@settings(max_examples=80, deadline=None)
@given(layers())
@example(((6, 3, 3, 3), 2, 2))  # rows of 2 and 1 in each of two groups
@example(((5, 1), 64, 1))
def test_num_block_rows_equals_the_oracle(layer):
    shape, block_size, groups = layer
    assert num_block_rows(shape[0], block_size, groups) == len(oracle.block_rows(shape[0], groups, block_size))


@settings(max_examples=80, deadline=None)
@given(layers())
@example(((6, 3, 3, 3), 2, 2))
def test_row_of_channel_equals_the_oracle(layer):
    shape, block_size, groups = layer
    expected = torch.empty(shape[0], dtype=torch.int64)
    for row, (first, last) in enumerate(oracle.block_rows(shape[0], groups, block_size)):
        expected[first:last] = row
    found = row_of_channel(shape[0], block_size, groups)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()


@settings(max_examples=80, deadline=None)
@given(layers(), st.booleans())
@example(((6, 3, 3, 3), 2, 2), False)
@example(((7, 3), 4, 1), False)
def test_to_blocks_equals_the_oracle_with_zeros_as_padding(layer, channels_last):
    shape, block_size, groups = layer
    weight = random_weight(shape)
    if channels_last and len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    found = to_blocks(weight, block_size, groups).numpy()
    rows = oracle.blocks(weight.numpy(), block_size, groups)
    assert found.shape == (len(rows), shape[1], block_size * int(np.prod(shape[2:])))
    for row, expected in zip(found, rows, strict=True):
        size = expected.shape[1]
        np.testing.assert_array_equal(row[:, :size], expected)
        assert not row[:, size:].any()


@settings(max_examples=80, deadline=None)
@given(layers(), st.booleans())
@example(((6, 3, 3, 3), 2, 2), False)
@example(((7, 3), 4, 1), False)
def test_apply_mask_equals_the_oracle(layer, channels_last):
    shape, block_size, groups = layer
    weight, mask = random_weight(shape), random_mask(shape, block_size, groups)
    if channels_last and len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    keep = oracle.expand_mask(mask.numpy(), shape, block_size, groups)
    found = apply_mask(weight, mask, block_size, groups)
    assert found.shape == weight.shape
    np.testing.assert_array_equal(bits(found), np.where(keep, bits(weight), 0))


@settings(max_examples=40, deadline=None)
@given(layers(), st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0]))
def test_masked_places_are_plain_zeros_whatever_was_there(layer, value):
    shape, block_size, groups = layer
    mask = random_mask(shape, block_size, groups)
    keep = oracle.expand_mask(mask.numpy(), shape, block_size, groups)
    found = apply_mask(torch.full(shape, value), mask, block_size, groups)
    assert not bits(found)[~keep].any()  # -0 would have its sign bit set


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_kept_places_stay_what_they_are(value):
    weight = torch.full((5, 3, 3, 3), value)
    found = apply_mask(weight, torch.ones(3, 3, dtype=torch.bool), 2)
    np.testing.assert_array_equal(bits(found), bits(weight))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("out_channels", "groups"), [(32, 1), (40, 1), (32, 2), (40, 2)])
def test_apply_mask_keeps_channels_last(out_channels, groups, kernel):
    shape = (out_channels, 6, kernel, kernel)
    weight = random_weight(shape).to(memory_format=torch.channels_last)
    found = apply_mask(weight, random_mask(shape, 16, groups), 16, groups)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride() == weight.stride()


@pytest.mark.parametrize("out_channels", [32, 40])
def test_apply_mask_keeps_the_contiguous_format(out_channels):
    weight = random_weight((out_channels, 6, 3, 3))
    assert apply_mask(weight, random_mask(weight.shape, 16, 1), 16).stride() == weight.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("out_channels", [32, 40])
def test_apply_mask_keeps_the_type(dtype, out_channels):
    weight = random_weight((out_channels, 3, 1, 1)).to(dtype)
    assert apply_mask(weight, random_mask(weight.shape, 16, 1), 16).dtype == dtype


@pytest.mark.parametrize("out_channels", [32, 40])
def test_apply_mask_leaves_its_inputs_alone(out_channels):
    weight = random_weight((out_channels, 3, 1, 1))
    mask = random_mask(weight.shape, 16, 1)
    before = weight.clone(), mask.clone()
    apply_mask(weight, mask, 16)
    assert torch.equal(weight, before[0])
    assert torch.equal(mask, before[1])
