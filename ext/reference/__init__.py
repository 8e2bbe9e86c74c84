"""Every operator in NumPy: the oracle of the tests and the fallback where no kernel exists.

`REFERENCE[op](**args)` runs one, with arguments named as in the ATen schema and references already resolved.
"""

from subp_ext.reference import (  # noqa: F401  (each registers its operators)
    activations,
    arithmetic,
    convolutions,
    creation,
    linear,
    normalisation,
    pooling,
    reductions,
    resampling,
    shapes,
)
from subp_ext.reference.registry import REFERENCE

__all__ = ["REFERENCE"]
