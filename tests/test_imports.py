"""Imports go one way: the method knows nothing of training, and the runtime nothing of torch or subp_dist.

Read from the source, so that an import inside a function counts too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each module of subp_dist may import from the package; a package stands for all that is in it.
ALLOWED = {
    "blocks": set(),
    "cores": set(),
    "flag_values": {"errors"},
    "config": {"errors", "flag_values"},
    "errors": set(),
    "schedule": set(),
    "seeds": set(),
    "torch_compat": set(),
    "flops": {"torch_compat"},
    "process_group": {"errors", "torch_compat"},
    "agreement": {"errors", "process_group"},
    "stopping": {"errors"},
    "ranges": {"errors"},
    "timm_flags": set(),
    "folder_lock": {"errors"},
    "run_folder": {"agreement", "checkpoint", "config", "errors", "folder_lock"},
    "scores": {"blocks"},
    "masks": {"blocks"},
    "regroup": set(),
    "mask_update": set(),
    "lost_writes": {"torch_compat", "transfers"},
    "parametrization": {"blocks", "lost_writes", "torch_compat"},
    "plan": {"flag_values", "masks", "parametrization", "torch_compat"},
    "pruner": {
        "agreement",
        "blocks",
        "layer_report",
        "lost_writes",
        "mask_update",
        "masks",
        "parametrization",
        "plan",
        "process_group",
        "regroup",
        "schedule",
        "scores",
        "transfers",
        "torch_compat",
    },
    "transfers": set(),
    "layer_report": {"blocks", "masks", "plan"},
    "layer_table": {"layer_report"},
    "mask_picture": {"layer_report"},
    "distillation": {"config", "errors"},
    "checkpoint": {"config", "errors"},
    "data": {
        "agreement",
        "checkpoint",
        "config",
        "cores",
        "errors",
        "flag_values",
        "process_group",
        "seeds",
        "stopping",
        "torch_compat",
    },
    "export": {
        "blocks",
        "checkpoint",
        "config",
        "data",
        "errors",
        "flag_values",
        "masks",
        "models",
        "parametrization",
        "plan",
        "process_group",
        "pruner",
        "schedule",
        "scores",
        "torch_compat",
    },
    "models": {"config", "errors", "flag_values"},
    "bench": {
        "agreement",
        "blocks",
        "checkpoint",
        "data",
        "errors",
        "export",
        "flag_values",
        "memory",
        "parametrization",
        "pruner",
        "schedule",
        "scores",
    },
    "qat": {"agreement", "build", "checkpoint", "data", "errors", "export", "parametrization", "training"},
    "monitor": {"checkpoint", "layer_report", "mask_picture", "mask_update"},
    "flags": {"blocks", "config", "errors", "flag_values", "masks", "ranges", "schedule", "scores"},
    "options": {"config", "errors", "flag_values", "flags", "ranges", "timm_flags"},
    "resolve": {"config", "data", "flag_values", "flops", "plan", "ranges", "schedule"},
    "launch": {"errors", "stopping", "torch_compat"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Absolute dotted names that a file imports, its own package written out."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def own_parts(path: Path) -> set[str]:
    """Modules of subp_dist that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("subp_dist.")} - {"__version__"}


@pytest.mark.parametrize("path", modules("subp_dist"), ids=lambda path: str(path.relative_to(ROOT)))
def test_subp_dist_imports_go_one_way(path):
    part = path.relative_to(ROOT / "subp_dist").parts[0].removesuffix(".py")
    used = own_parts(path) - {part}
    assert "train" not in used, "nothing imports the entry"
    if part in ALLOWED:
        assert used <= ALLOWED[part]


@pytest.mark.parametrize("path", modules("ext"), ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_needs_numpy_alone(path):
    # A benchmark may import its peers, but only once it is asked to.
    roots = {name.split(".")[0] for name in imports(path, inside_functions=path.parent.name != "bench")}
    assert not roots & {"torch", "timm", "subp_dist", "torchvision", "safetensors"}
