"""``report.json``: what a run achieved, layer by layer, in MACs, accuracy and time."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import timm
import torch

from . import __version__
from .checkpoint import write_atomically
from .layer_report import total_macs
from .training import Training


def run_report(training: Training, folder: Path, checkpoint: dict, int8: dict | None = None) -> dict:
    """Put the report of a finished run together and write it to its folder.

    Args:
        training: the run; its model holds the weights that were exported.
        folder: where the exported files lie and the report goes.
        checkpoint: the checkpoint that was exported.
        int8: what became of each layer in int8, where that was exported.

    Returns:
        ``accuracy`` (percent; of the integers where they were trained, and of ``float32`` before that), ``layers``
        (``LayerReport.as_row``), ``macs`` and ``parameters`` (dense and kept), ``files`` (bytes), ``int8``, ``timings``
        and ``versions``.
    """
    pruner, config = training.pruner, training.config
    layers = pruner.report(training.macs)
    dense, kept = total_macs(layers)
    total = sum(parameter.numel() for parameter in training.model.parameters())
    pruned = sum(layer.pruned_parameters for layer in layers)
    rates, data_shares = sorted(training.image_rates), sorted(training.data_shares)
    names = ("model.safetensors", "model.subp", "model-bfloat16.subp", "model-int8.subp")
    exported = [path for name in names if (path := folder / name).exists()]
    val = checkpoint["val"]
    accuracy = {"top1": val["top1"], "top5": val["top5"], "epoch": checkpoint["epoch"]}
    if quantized := checkpoint.get("quantized"):
        before = {key: quantized["float32"].get(key) for key in ("top1", "top5")}
        accuracy["float32"] = before | {"epoch": quantized["epoch"] - 1}
    report = {
        "model": config.model.name,
        "accuracy": accuracy,
        "prune_rate": {"asked": config.pruning.prune_rate, "achieved": pruner.pruned_share()},
        "macs": {"dense": dense, "kept": kept},
        "parameters": {"dense": total, "kept": total - pruned},
        "layers": [layer.as_row() for layer in layers],
        "files": {path.name: path.stat().st_size for path in exported},
        "int8": int8,
        "timings": {
            "images_per_s": rates[len(rates) // 2] if rates else None,
            "data_share": data_shares[len(data_shares) // 2] if data_shares else None,
            "loader": config.data.loader,
            "mask_update_s": training.mask_seconds / max(1, training.mask_updates),
            "ranks": training.rank.world_size,
            "device": str(training.rank.device),
        },
        "versions": {
            "subp_dist": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }
    write_report(folder, report)
    return report


def write_report(folder: Path, report: dict) -> None:
    """Write ``report.json``."""
    text = json.dumps(report, indent=1)
    write_atomically(folder / "report.json", lambda path: path.write_text(text + "\n"))


def read_report(folder: Path) -> dict:
    """Read ``report.json`` of a finished run."""
    return json.loads((folder / "report.json").read_text())
