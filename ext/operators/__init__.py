"""Operators: one record each, with its reference in NumPy, its shape rule and its lowering onto kernels.

`OPERATORS[name].reference(**args)` runs one, with arguments named as in the ATen schema and references resolved.
"""

from subp_ext.operators import (  # noqa: F401  (each records its operators; the order is that of fused activations)
    activations,
    adaptive_pooling,
    convolutions,
    creation,
    elementwise,
    indexing,
    linear,
    norms,
    padding,
    pooling,
    quantization,
    reductions,
    resampling,
    sampling,
    shaping,
    transposed,
    views,
)
from subp_ext.operators.arguments import arrays_in
from subp_ext.operators.conversions import converted
from subp_ext.operators.lowering import lower, pack, value_types
from subp_ext.operators.record import (
    ELEMENTWISE,
    NUMBER,
    OPERATORS,
    VIEW,
    Lowered,
    Operator,
    Rule,
    Unsupported,
    check_arguments,
    fused_activation,
)
from subp_ext.operators.record import activations as fused_activations
from subp_ext.operators.shape_inference import check_pieces, infer

__all__ = [
    "ELEMENTWISE",
    "NUMBER",
    "OPERATORS",
    "VIEW",
    "Lowered",
    "Operator",
    "Rule",
    "Unsupported",
    "arrays_in",
    "check_arguments",
    "check_pieces",
    "converted",
    "fused_activation",
    "fused_activations",
    "infer",
    "lower",
    "pack",
    "supported_ops",
    "value_types",
]


def supported_ops() -> tuple[str, ...]:
    """Returns the names of all operators a graph may use, sorted."""
    return tuple(sorted(OPERATORS))
