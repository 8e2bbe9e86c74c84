"""timm's architectures through the export and this package's engine; the check itself is `export_zoo.py`.

Fast: small members of families that nothing else covers, with an operator of their own each. Slow: everything
convolutional in timm, some hours; better in parts with `python tests/export_zoo.py --results FILE --part I/N`.
"""

import export_zoo
import pytest

# Group norms and gelu; slice_scatter; channels-last MLPs; dense concatenation; weight standardisation; dilated blocks.
SAMPLE = ["test_convnext", "ghostnet_050", "test_mambaout", "test_nfnet", "test_coatnet", "starnet_s050"]


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    row = export_zoo.check(name)
    assert row["status"] == "ok" and row["independent"], row


def test_summary_counts_and_names():
    rows = [
        {"name": "a", "status": "ok", "difference": 1e-6},
        {"name": "b", "status": "wrong", "difference": 0.5},
        {"name": "c", "status": "refused", "reason": "no operator sort (node sort)"},
    ]
    text = export_zoo.summary(rows).splitlines()
    assert text[0] == "wrong    b: 0.5" and text[1] == "refused  c: no operator sort (node sort)"
    assert text[2].startswith("3 architectures: 33.3% ok") and text[2].endswith("1.0e-06")


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_all_convolutional_architectures(tmp_path):
    results = tmp_path / "results.jsonl"
    export_zoo.main(["--results", str(results)])
    rows = export_zoo.read(results)
    statuses = [row["status"] for row in rows]
    assert statuses.count("ok") >= 0.95 * len(rows), export_zoo.summary(rows)
    assert set(statuses) <= {"ok", "refused"}, export_zoo.summary(rows)
