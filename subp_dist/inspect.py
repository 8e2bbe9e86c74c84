"""What would be pruned in a model, layer by layer, before any training: ``python -m subp_dist.inspect MODEL``.

Takes the flags of the training (``--prune-rate``, ``--target-macs``, ``--skip``, ``--preset``, ``--config``, ...), so
that the same command line shows first what it will do; flags that do not concern the layers are not looked at. No data
and no weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from torch import nn

from .build import check_plan
from .checkpoint import write_json
from .config import ModelConfig, TrainConfig
from .errors import UsageError, report_usage_errors
from .flag_values import as_path
from .flags import build_parser
from .flops import count_macs
from .layer_report import LayerReport, planned_layers
from .layer_table import format_table
from .models import check_model_name, create_model, model_arguments, wrong_images
from .options import parse_flags
from .plan import plan_layers, reparametrised
from .resolve import ModelShape, shape_without_data, uniform_rate


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = build_parser("subp-inspect", __doc__.split("\n\n")[0])
    parser.add_argument("--json", type=as_path, metavar="FILE", help="write the rows of the table to a file, too")
    flags = parse_flags(parser)
    found = inspect_model(TrainConfig.from_flags(vars(flags)))
    block_size, rate, size = flags.block_size, found.rate, found.shape.img_size
    if flags.json:
        rows = [layer.as_row(all_shapes=True) for layer in found.layers]
        write_json(flags.json, rows)
    print(f"{flags.model}: 1x{block_size} blocks, {100 * rate:.2f} % to prune, image {size}")
    print(format_table(found.layers))
    print("".join(f"\n{note}" for note in found.notes), end="\n" if found.notes else "")


@dataclass(frozen=True)
class Inspection:
    """What a training would do to the layers of a model.

    Attributes:
        shape: of the network.
        rate: the uniform one.
        layers: all that could be pruned, and why some stay dense.
        notes: remarks on the model.
    """

    shape: ModelShape
    rate: float
    layers: list[LayerReport]
    notes: list[str]


def inspect_model(given: TrainConfig) -> Inspection:
    """Look at the layers of a model as the training's flags would have them.

    Raises:
        UsageError: no such model, or the flags do not fit it.
    """
    name, pruning = given.model.name, given.pruning
    check_model_name(name)
    shape = shape_without_data(given.data, timm.get_pretrained_cfg(name).to_dict())
    model, macs = _counted_model(given.model, shape)
    try:
        plan = plan_layers(model, **pruning.layers)
        rate = uniform_rate(pruning, plan, macs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    notes = []
    try:
        check_plan(pruning, plan, macs, name)
    except ValueError as error:
        notes.append(f"a training refuses this: {error}")
    if fusing := reparametrised(plan, model):
        notes.append(f"{', '.join(fusing)} can be fused after the training: the sum of branches is denser than each")
    return Inspection(shape, rate, planned_layers(plan, macs, rate, pruning.block_size), notes)


def _counted_model(config: ModelConfig, shape: ModelShape) -> tuple[nn.Module, dict[str, int]]:
    """A model and its MACs by layer."""
    input_size = (shape.in_chans, shape.img_size, shape.img_size)
    # Shapes are all that counts; the meta device has them without memory or time. Some models compute with values.
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = create_model(config.name, **model_arguments(config, shape.num_classes, shape.in_chans))
        try:
            return model, count_macs(model, input_size)
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
            failure = error
    raise wrong_images(config.name, input_size, failure) from failure


if __name__ == "__main__":
    cli()
