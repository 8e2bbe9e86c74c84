"""Other people's modules through export_model; the modules and timm models themselves are in `module_zoo.py`.

Fast: one of each kind: a decoder, a neck whose sizes follow each other, several inputs, and what is refused.
Slow: all of them, with thirty timm models and the feature maps of seven.
"""

import re

import module_zoo
import pytest


@pytest.mark.parametrize("name", ["atrous", "weighted_maps", "conditioned", "grid", "signals"])
def test_sample(name, tmp_path):
    status, text = module_zoo.check(name, tmp_path / "model.subp")
    assert status == "ok" and text.startswith("sizes free"), text


@pytest.mark.parametrize(
    "name, reason",
    [
        ("noisy", r"no operator randn_like \(node randn_like\)"),
        ("random_dropout", r"native_dropout \(node native_dropout\) drops at random"),
    ],
)
def test_refused_by_name(name, reason, tmp_path):
    status, text = module_zoo.check(name, tmp_path / "model.subp")
    assert status == "refused" and re.search(reason, text), text


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", module_zoo.names([]))
def test_all(name, tmp_path):
    status, text = module_zoo.check(name, tmp_path / "model.subp")
    assert status in ("ok", "refused"), text
    assert status == "ok" or "/" not in name and name not in module_zoo.TIMM, text
