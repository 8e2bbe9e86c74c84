"""The layers of a model as a table: what is pruned, what is kept, and why the rest stays dense."""

from __future__ import annotations

from collections.abc import Sequence

from . import masks
from .blocks import num_block_rows
from .plan import LayerPlan


def planned_rows(plan: Sequence[LayerPlan], macs: dict[str, int], rate: float, block_size: int) -> list[dict]:
    """What ``SUBPPruner.report`` will say at the end of the schedule; nothing is masked for it.

    Layers of the plan that the count of MACs has not seen, as the model never calls them, come last with 0 MACs.
    """
    layers = {layer.name: layer for layer in plan}
    return [
        _row(name, macs.get(name, 0), layers.get(name), rate, block_size)
        for name in [*macs, *(name for name in layers if name not in macs)]
    ]


def _row(name: str, macs: int, layer: LayerPlan | None, rate: float, block_size: int) -> dict:
    row = {"name": name, "macs": macs, "kept_macs": macs, "reason": layer.reason if layer else "linear layer"}
    if layer is not None and getattr(layer.module, "weight", None) is not None:
        row["shape"] = list(layer.module.weight.shape)
    if layer is None or layer.reason is not None:
        return row
    shape, groups = row["shape"], getattr(layer.module, "groups", 1)
    own_rate = rate if layer.rate is None else layer.rate
    kept = shape[1] - masks.num_candidates(own_rate, shape[1])
    return row | {
        "groups": groups,
        "block_rows": num_block_rows(shape[0], block_size, groups),
        "blocks_per_row": shape[1],
        "kept_asked": (1 - own_rate) * shape[1],
        "kept": kept,
        "kept_macs": macs * kept // shape[1],
    }


def format_table(rows: Sequence[dict]) -> str:
    """One line per layer, in the order of the model, and the sums."""
    lines = [("layer", "weight", "block rows", "blocks kept", "MACs, M", "kept, M", "")]
    for row in rows:
        sparse = row["reason"] is None
        lines.append(
            (
                row["name"],
                "x".join(map(str, row.get("shape", ()))) + (f" /{row['groups']}" if row.get("groups", 1) > 1 else ""),
                str(row["block_rows"]) if sparse else "",
                f"{row['kept']:g} of {row['blocks_per_row']}" if sparse else "",
                f"{row['macs'] / 1e6:.2f}",
                f"{row['kept_macs'] / 1e6:.2f}",
                "" if sparse else f"dense: {row['reason']}",
            )
        )
    dense, kept = (sum(row[key] for row in rows) for key in ("macs", "kept_macs"))
    prunable = sum(row["macs"] for row in rows if row["reason"] is None)
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    texts = [
        "  ".join(
            cell.ljust(w) if column < 2 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(line, widths, strict=False))
        )
        + (f"  {line[6]}" if line[6] else "")
        for line in lines
    ]
    total = max(dense, 1)
    pruned = sum(row["reason"] is None for row in rows)
    texts.append(
        f"{pruned} of {len(rows)} layers pruned, {100 * prunable / total:.1f} % of the MACs; of {dense / 1e6:.1f} M "
        f"MACs {kept / 1e6:.1f} M are kept ({100 * kept / total:.1f} %)"
    )
    return "\n".join(line.rstrip() for line in texts)
