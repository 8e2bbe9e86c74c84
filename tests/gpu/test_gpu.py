"""The checks of this folder on a GPU, each in a process of its own; `launch/test.sh --gpu` runs them.

Figures of speed are printed, and bound nothing here: prove.py tells them beside their limits.
"""

import pytest
import torch
from prove import CHECKS, run_apart

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]


@pytest.mark.parametrize(("module", "check", "seconds"), CHECKS, ids=[check for _, check, _ in CHECKS])
def test_on_a_gpu(module, check, seconds):
    result = run_apart(module, check, "cuda", tiny=False, limit=2 * seconds)
    assert result["status"] == "passed", f"{result['error']}\n{result['traceback']}"
    print(result["figures"])
