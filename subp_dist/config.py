"""The configuration of a training in typed, frozen values by subject.

``TrainConfig`` is what was given: values that follow from the model, the data or the ranks are None in it unless they
were asked for. ``Resolved`` (made by ``subp_dist.resolve``) has them all. Names are those of the flags, and so unique
over all subjects; the defaults are the published recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from .errors import UsageError
from .flag_values import parse_layer_rates

if TYPE_CHECKING:
    from typing_extensions import Self


# Schedules of timm that come to an end, after which there may be a cool-down.
ENDING_SCHEDULES = ("cosine", "tanh", "poly", "wsd", "rsqrt")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are read; see the flags of the group "data"."""

    data_dir: str | None = None
    loader: str = "auto"
    dataset: str = ""
    train_split: str = "train"
    val_split: str = "validation"
    num_classes: int | None = None
    in_chans: int | None = None
    img_size: int | None = None
    res_schedule: tuple[str, ...] = ()
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    train_interpolation: str | None = None
    batch_size: int = 128
    validation_batch_size: int | None = None
    workers: int = 4
    broken: str = "error"


@dataclass(frozen=True)
class PruningConfig:
    """Which blocks are pruned, and when."""

    prune_rate: float = 0.5
    target_macs: str | None = None
    block_size: int = 16
    criterion: str = "bpar"
    pattern: str = "uniform"
    alpha: float = 1.0
    tau: float = 1.0
    score_latent: bool = False
    prune_start: float | None = None
    prune_end: float | None = None
    prune_schedule: str = "cubic"
    prune_interval: int = 0
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    layer_rates: tuple[str, ...] = ()
    prune_linear: bool = False
    regroup: bool = False
    sr_ste_decay: float = 2e-4

    @property
    def layers(self) -> dict[str, Any]:
        """What decides which layers are pruned, as ``plan_layers`` takes it."""
        rates = parse_layer_rates(self.layer_rates)
        return {"skip": self.skip, "only": self.only, "layer_rates": rates, "prune_linear": self.prune_linear}

    @property
    def scoring(self) -> dict[str, Any]:
        """How blocks are chosen, as ``SUBPPruner`` takes it."""
        keys = ("block_size", "criterion", "pattern", "alpha", "tau", "score_latent", "sr_ste_decay", "regroup")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how it computes."""

    name: str = field(default="", metadata={"flag": "model"})
    pretrained: bool = False
    initial_checkpoint: str = ""
    model_kwargs: tuple[str, ...] = ()
    drop: float | None = None
    drop_path: float | None = None
    sync_bn: bool = False
    dist_bn: str = "reduce"
    channels_last: bool = False
    grad_checkpointing: bool = False
    torchcompile: str | None = None
    amp: bool = False
    amp_dtype: str | None = None
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False


@dataclass(frozen=True)
class OptimizationConfig:
    """The optimizer and its learning rate over time; timm's factories read their arguments from it by name."""

    epochs: int = 250
    qat_epochs: int = 0
    opt: str = "momentum"
    lr: float | None = None
    lr_base: float = 0.1
    lr_base_size: int = 256
    lr_base_scale: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    opt_eps: float | None = None
    opt_betas: tuple[float, ...] | None = None
    sched: str = "cosine"
    sched_on_updates: bool = False
    min_lr: float = 0.0
    warmup_lr: float = 1e-5
    warmup_epochs: int = 0
    cooldown_epochs: int = 0
    decay_milestones: tuple[int, ...] = (90, 180, 270)
    decay_epochs: float = 90
    decay_rate: float = 0.1
    grad_accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"

    @property
    def all_epochs(self) -> int:
        """Epochs of the run: those of the schedule, and those that stay at its last rate if it comes to an end."""
        return self.epochs + (self.cooldown_epochs if self.sched in ENDING_SCHEDULES else 0)

    @property
    def float_epochs(self) -> int:
        """Epochs before those with fake quantization."""
        return self.all_epochs - self.qat_epochs


@dataclass(frozen=True)
class AugmentationConfig:
    """How training images are varied, and the loss that goes with it."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    no_aug: bool = False
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    aa: str | None = None
    reprob: float = 0.0
    remode: str = "const"
    recount: int = 1
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    bce_loss: bool = False

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, and with them their labels."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class DistillationConfig:
    """The teacher, if any."""

    kd_model: str = ""
    kd_checkpoint: str = ""
    kd_weight: float = 0.5
    kd_temperature: float = 1.0


@dataclass(frozen=True)
class RunConfig:
    """Where the run goes, and what is seen of it."""

    output: str = "output"
    experiment: str = ""
    resume: str | None = None
    recovery_interval: int = 0
    checkpoint_hist: int = 0
    timeout: float = 10
    seed: int = 42
    device: str = "auto"
    log_interval: int = 50
    image_interval: int = 10
    no_export: bool = False
    export_dtype: str = "float32"


@dataclass(frozen=True)
class TrainConfig:
    """All of a training, as given."""

    data: DataConfig = field(default_factory=DataConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> Self:
        """From values by flag, as ``flags`` gives them; what is missing gets its default, what is unknown is ignored.

        Flags come and go from version to version; this is how runs of older ones are read.
        """
        return cls.from_dict(
            {
                subject: {f.name: flags[flag_of(f)] for f in fields(kind) if flag_of(f) in flags}
                for subject, kind in cls.subjects().items()
            }
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """From values by subject, as ``to_dict`` gives them; missing and unknown ones as in ``from_flags``.

        Raises:
            UsageError: a subject has no values by name.
        """
        subjects = {}
        for subject, kind in cls.subjects().items():
            found = values.get(subject, {})
            if not isinstance(found, Mapping):
                raise UsageError(f"configuration, {subject}: expected values by name, found {found!r}")
            subjects[subject] = kind(**{f.name: _frozen(found[f.name]) for f in fields(kind) if f.name in found})
        return cls(**subjects)

    @classmethod
    def subjects(cls) -> dict[str, type]:
        """The class of each subject by its name."""
        return get_type_hints(cls)

    def flags(self) -> dict[str, Any]:
        """Values by flag, plain enough for YAML."""
        return {
            flag_of(f): _plain(getattr(getattr(self, subject), f.name))
            for subject, kind in self.subjects().items()
            for f in fields(kind)
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Values by subject, plain enough for YAML and for checkpoints."""
        return {subject: {k: _plain(v) for k, v in values.items()} for subject, values in asdict(self).items()}

    def replace(self, **flags: Any) -> Self:
        """The same with other values of some flags."""
        return self.from_flags(self.flags() | flags)


@dataclass(frozen=True, kw_only=True)
class ResolvedData(DataConfig):
    """With what the model and the data decide; the crop and the filter stay open where nothing is resized."""

    num_classes: int
    in_chans: int
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ResolvedPruning(PruningConfig):
    """With the rate that reaches ``--target-macs``, and the epochs of the schedule."""

    prune_start: float
    prune_end: float


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """With the precision that suits the device."""

    amp_dtype: str


@dataclass(frozen=True, kw_only=True)
class ResolvedOptimization(OptimizationConfig):
    """With the learning rate of the global batch."""

    lr: float


@dataclass(frozen=True, kw_only=True)
class Resolved(TrainConfig):
    """All of a training, with all that follows from what was given."""

    data: ResolvedData
    pruning: ResolvedPruning
    model: ResolvedModel
    optimization: ResolvedOptimization


def flag_of(field_: Field[Any]) -> str:
    """The flag that a field belongs to, as argparse spells it."""
    return str(field_.metadata.get("flag", field_.name))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
