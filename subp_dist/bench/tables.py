"""What was measured, as ratios and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def accuracy(found: np.ndarray, expected: np.ndarray) -> dict[str, float | None]:
    """How near logits are to those of torch in float64.

    Returns:
        ``max_abs_diff``, the largest difference, and ``sqnr_db``: the power of what is expected over that of the
        difference, in decibels; None where there is no difference.
    """
    difference = found.astype(np.float64) - expected
    noise, signal = float(np.square(difference).sum()), float(np.square(expected.astype(np.float64)).sum())
    ratio = 10 * math.log10(signal / noise) if noise and signal else None
    return {"max_abs_diff": float(np.abs(difference).max()), "sqnr_db": ratio}


def speedups(engines: Mapping[str, dict], ours: Mapping[str, str], rivals: Sequence[str]) -> dict | None:
    """Engines of ours over the rival with the best time.

    Args:
        engines: by name, with ``best_ms`` and ``median_ms``.
        ours: label -> name, such as ``{"sparse": "subp"}``.
        rivals: names.

    Returns:
        ``over``, the fastest rival; by label the ratio of best times, and as ``LABEL_median`` that of medians. None
        without rivals.
    """
    if not rivals:
        return None
    ratios: dict = {"over": min(rivals, key=lambda name: engines[name]["best_ms"])}
    for label, name in ours.items():
        for key in ("best_ms", "median_ms"):
            rival = min(engines[peer][key] for peer in rivals)
            ratios[label if key == "best_ms" else f"{label}_median"] = rival / engines[name][key]
    return ratios


def as_table(document: dict) -> str:
    """The document of a measurement as text, the ratios first."""
    lower = document["dtype"] != "float32"
    lines = _lower_ratios(document) if lower else _ratios(document["speedup"], "the fastest dense peer, ")
    if "speedup_narrower" in document:
        lines.append(_narrower(document))
    lines.append(
        f"{document['model']}, {document['prune_rate']:.1%} pruned in 1x{document['block_size']} blocks, batch "
        f"{document['batch_size']}, {document['threads']} thread{'s' * (document['threads'] > 1)}, "
        f"{document['kernel_set']} kernels, {document['cpu']}"
    )
    last = "SQNR dB" if lower else "max diff"
    lines += ["", f"{'engine':17}{'best ms':>9}{'median ms':>11}{'load ms':>10}{'peak MB':>10}{last:>10}  layers"]
    lines += [_row(name, engine, lower) for name, engine in document["engines"].items()]
    return "\n".join([*lines, "", _about_accuracy(document, lower)])


def _ratios(ratios: dict | None, whom: str) -> list[str]:
    if ratios is None:
        return []
    line = f"{ratios['sparse']:.2f}x as fast as {whom}{ratios['over']} (median {ratios['sparse_median']:.2f}x)"
    if "dense" in ratios:
        line += f"; dense on this engine {ratios['dense']:.2f}x (median {ratios['dense_median']:.2f}x)"
    return [line]


def _lower_ratios(document: dict) -> list[str]:
    return [
        *_ratios(document["speedup"], f"the fastest dense {document['dtype']} peer, "),
        *_ratios(document["speedup_any"], "the fastest dense peer of any precision, "),
        *_ratios(document["speedup_float32"], "this engine in float32, "),
    ]


def _narrower(document: dict) -> str:
    ratios, macs = document["speedup_narrower"], document["macs"]
    return (
        f"{ratios['sparse']:.2f}x as fast as the narrower dense network (median {ratios['sparse_median']:.2f}x), "
        f"{' '.join(document['narrower'])}: {macs['sparse'] / 1e6:.0f} M MACs against {macs['narrower'] / 1e6:.0f} M"
    )


def _row(name: str, engine: dict, lower: bool) -> str:
    sqnr = engine["sqnr_db"]
    error = f"{math.inf if sqnr is None else sqnr:10.1f}" if lower else f"{engine['max_abs_diff']:10.1e}"
    layers = ", ".join(f"{count} {precision}" for precision, count in engine["layers"].items())
    return (
        f"{name:17}{engine['best_ms']:9.2f}{engine['median_ms']:11.2f}{engine['load_ms']:10.0f}"
        f"{engine['memory_mb']:10.0f}{error}  {layers}; {engine['version']} {engine.get('memory_format', '')}".rstrip()
    )


def _about_accuracy(document: dict, lower: bool) -> str:
    layers = "layers: convolutions and matrix products by the precision they ran in"
    if lower:
        return f"SQNR: of the logits, against torch in float64; {layers}"
    return f"max diff: from torch in float64; the logits' range is {document['logits_range']:.2f}; {layers}"


def as_curves(document: dict) -> str:
    """The speed-ups of a sweep as text: a line per rate, a column per block size."""
    table = {(point["prune_rate"], point["block_size"]): point["speedup"] for point in document["points"]}
    rates, sizes = (sorted({key[axis] for key in table}) for axis in (0, 1))
    peers = ", ".join(f"{name} {engine['best_ms']:.2f} ms" for name, engine in document["engines"].items())
    lines = [f"{document['model']}: speed-up over the fastest dense peer; {peers}"]
    lines.append("pruned" + "".join(f"1x{size}".rjust(8) for size in sizes))
    lines += [f"{rate:6.1%}" + "".join(f"{table[rate, size]:7.2f}x" for size in sizes) for rate in rates]
    return "\n".join(lines)
