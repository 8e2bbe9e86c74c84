"""The layers of a model as a table: what is pruned, what is kept, and why the rest stays dense."""

from __future__ import annotations

from collections.abc import Sequence

from .layer_report import LayerReport, total_macs


def format_table(layers: Sequence[LayerReport]) -> str:
    """One line per layer, in the order of the model, and the sums."""
    lines = [("layer", "weight", "block rows", "blocks kept", "MACs, M", "kept, M", "")]
    for layer in layers:
        lines.append(
            (
                layer.name,
                "x".join(map(str, layer.shape or ())) + (f" /{layer.groups}" if layer.groups > 1 else ""),
                str(layer.block_rows) if layer.is_pruned else "",
                f"{layer.kept:g} of {layer.blocks_per_row}" if layer.is_pruned else "",
                f"{layer.macs / 1e6:.2f}",
                f"{layer.kept_macs / 1e6:.2f}",
                "" if layer.is_pruned else f"dense: {layer.reason}",
            )
        )
    dense, kept = total_macs(layers)
    prunable = sum(layer.macs for layer in layers if layer.is_pruned)
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
    pruned = sum(layer.is_pruned for layer in layers)
    texts.append(
        f"{pruned} of {len(layers)} layers pruned, {100 * prunable / total:.1f} % of the MACs; of {dense / 1e6:.1f} M "
        f"MACs {kept / 1e6:.1f} M are kept ({100 * kept / total:.1f} %)"
    )
    return "\n".join(line.rstrip() for line in texts)
