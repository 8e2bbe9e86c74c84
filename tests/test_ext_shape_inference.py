"""What operators will return, against what the reference returns on every case that the reference is tested with."""

from __future__ import annotations

import numpy as np
import pytest
from test_ext_reference import CASES

from subp_ext import operators
from subp_ext.operators import NUMBER, OPERATORS, VIEW

KNOWN = [
    case
    for case in CASES
    if OPERATORS[case[0]].shape not in (VIEW, NUMBER)
    and not any(array.dtype.kind == "b" for array in operators.arrays_in(case[1].get("indices")))
]


def form(result):
    return [form(part) for part in result] if isinstance(result, (list, tuple)) else (result.shape, result.dtype)


@pytest.mark.parametrize("number", range(len(KNOWN)))
def test_shapes_and_dtypes_are_those_of_the_reference(number):
    op, args, _ = KNOWN[number]
    want = OPERATORS[op].reference(**args)
    if isinstance(want, (np.ndarray, list, tuple)):
        assert operators.infer(op, args) == form(want)


@pytest.mark.parametrize("op, args", [("arange", {"end": 3}), ("zeros", {"size": [2]}), ("relu", {"self": np.ones(2)})])
def test_where_a_framework_stores_a_tensor_means_nothing(op, args):
    where = {"device": "cpu", "layout": "torch.strided", "pin_memory": False}
    assert (
        operators.infer(op, args | where) == operators.infer(op, args) == form(OPERATORS[op].reference(**args | where))
    )


def test_nothing_is_computed():
    """Sizes that no machine has: only what is not allocated can be that large."""
    huge = np.broadcast_to(np.zeros((), np.float32), (1, 4, 1 << 20, 1 << 20))
    row = huge[0, 0, :1]
    assert operators.infer("add", {"self": huge, "other": 1.0})[0] == huge.shape
    assert operators.infer("cat", {"tensors": [huge, huge], "dim": 1})[0] == (1, 8, 1 << 20, 1 << 20)
    assert operators.infer("matmul", {"self": row.T, "other": row})[0] == (1 << 20, 1 << 20)
    assert operators.infer("repeat", {"self": row, "repeats": [1 << 30, 1]})[0] == (1 << 30, 1 << 20)
    assert operators.infer("zeros", {"size": [1 << 40]}) == ((1 << 40,), np.float32)
    with pytest.raises(ValueError, match="pieces"):
        operators.check_pieces("split", {"self": row, "split_size": 1, "dim": 1})


@pytest.mark.parametrize(
    "op, args",
    [
        ("max_pool2d", {"self": np.zeros((1, 1, 4, 4)), "kernel_size": 10**9, "padding": 5 * 10**8}),
        ("conv2d", {"input": np.zeros((1, 1, 4, 4)), "weight": np.zeros((1, 1, 3, 3)), "padding": 10**6}),
        ("conv2d", {"input": np.zeros((1, 1, 4, 4)), "weight": np.zeros((1, 1, 3, 3)), "dilation": 3}),
        ("conv2d", {"input": np.zeros((1, 1, 8, 8)), "weight": np.zeros((1, 1, 3, 3)), "stride": 2**63 - 1,
                    "padding": 2}),
        ("max_pool2d", {"self": np.zeros((1, 1, 8, 8)), "kernel_size": 5, "stride": 2**63 - 1, "padding": 2}),
        ("max_pool2d", {"self": np.zeros((1, 1, 1, 1)), "kernel_size": 3, "stride": 9, "padding": 1, "dilation": 5,
                        "ceil_mode": True}),
        ("max_pool2d", {"self": np.zeros((1, 1, 1, 1)), "kernel_size": 4, "stride": 2, "ceil_mode": True}),
        ("conv2d", {"input": np.zeros((1, 2, 4, 4)), "weight": np.zeros((1, 1, 3, 3))}),
        ("adaptive_avg_pool2d", {"self": np.zeros((1, 1, 4, 4)), "output_size": [10**6, 1]}),
        ("matmul", {"self": np.zeros((2, 3)), "other": np.zeros((2, 3))}),
        ("cat", {"tensors": [np.zeros((2, 3)), np.zeros((3, 2))], "dim": 0}),
        ("select", {"self": np.zeros((2, 3)), "dim": 0, "index": 2}),
        ("zeros", {"size": [-1]}),
        ("einsum", {"equation": "...i,ij->...j", "tensors": [np.zeros((2, 3)), np.zeros((3, 2))]}),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(op, args):
    with pytest.raises(ValueError):
        operators.infer(op, args)
