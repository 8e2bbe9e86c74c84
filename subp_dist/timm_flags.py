"""What timm's training script knows and this one does not, so that files of its flags can be read.

A flag of timm that is not here has no meaning in this training, or would change it. One without a meaning is passed
over whatever it says; one that would change it is passed over at timm's default, and refused at any other value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Foreign:
    """A flag of timm's script that this package does not have.

    Attributes:
        why: there is none, or what is there instead.
        default: timm's, at which it asks for nothing.
        idle: it changes nothing that is learned, whatever it says.
    """

    why: str
    default: Any = None
    idle: bool = False

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether a training without the flag is what was asked for."""
        return self.idle or value == self.default or is_off(value)


def _idle(why: str) -> Foreign:
    return Foreign(why, idle=True)


_NO_NAFLEX, _NO_TIMM_KD = "NaFlex models are transformers", "--kd-model, --kd-weight and --kd-temperature distil"
_NO_LR_NOISE, _NO_CYCLES = "there is no noise on the learning rate", "schedules have one cycle"
_NO_WANDB = "TensorBoard has the curves"

FOREIGN: dict[str, Foreign] = {
    # data
    "class_map": Foreign("classes are named by their folders"),
    "dataset_download": _idle("data is never fetched"),
    "dataset_trust_remote_code": _idle("data is never fetched"),
    "epoch_repeats": Foreign("an epoch sees each image once; set --epochs", 0.0),
    "input_img_mode": Foreign("--in-chans 1 reads grey pictures, 3 colour"),
    "input_key": Foreign("folders and torchvision's data sets have one image an item"),
    "target_key": Foreign("folders and torchvision's data sets have one label an item"),
    "no_prefetcher": _idle("there is no prefetcher"),
    "train_num_samples": _idle("for streams, which are not read"),
    "val_num_samples": _idle("for streams, which are not read"),
    "use_multi_epochs_loader": _idle("loaders are cheap to start"),
    "worker_seeding": _idle("images are drawn by seed, epoch and image"),
    # model
    "bn_eps": Foreign("pass --model-kwargs bn_eps=VALUE"),
    "bn_momentum": Foreign("pass --model-kwargs bn_momentum=VALUE"),
    "drop_block": Foreign("pass --model-kwargs drop_block_rate=VALUE"),
    "drop_connect": Foreign("timm's old name of --drop-path"),
    "fast_norm": Foreign("norms are computed in full precision", False),
    "fuser": _idle("--torchcompile compiles"),
    "gp": Foreign("pass --model-kwargs global_pool=NAME"),
    "head_init_bias": Foreign("the head starts as the model says"),
    "head_init_scale": Foreign("the head starts as the model says"),
    "model_dtype": Foreign("weights are float32; --amp computes in half precision", "float32"),
    "pretrained_path": Foreign("pass --initial-checkpoint FILE"),
    "torchcompile_mode": _idle("--torchcompile takes a backend"),
    "torchscript": _idle("--torchcompile compiles"),
    # ranks and devices
    "amp_impl": Foreign("there is torch's own, without Apex", "native"),
    "device_modules": Foreign("CPUs and CUDA are known"),
    "local_rank": _idle("torchrun says it in the environment"),
    "no_ddp_bb": _idle("buffers are never broadcast: masks are equal, statistics averaged by --dist-bn"),
    "split_bn": Foreign("there are no augmentation splits", False),
    "synchronize_step": _idle("for measurements"),
    # optimizer and schedule
    "layer_decay": Foreign("all layers have one learning rate"),
    "layer_decay_min_scale": _idle("for --layer-decay"),
    "layer_decay_no_opt_scale": _idle("for --layer-decay"),
    "lr_cycle_decay": _idle(_NO_CYCLES),
    "lr_cycle_limit": Foreign(_NO_CYCLES, 1),
    "lr_cycle_mul": _idle(_NO_CYCLES),
    "lr_k_decay": Foreign("cosine and poly are timm's plain ones", 1.0),
    "lr_noise": Foreign(_NO_LR_NOISE),
    "lr_noise_pct": _idle(_NO_LR_NOISE),
    "lr_noise_std": _idle(_NO_LR_NOISE),
    "opt_kwargs": Foreign("--opt-eps, --opt-betas and --momentum are there"),
    "patience_epochs": Foreign("a plateau is 10 epochs", 10),
    "start_epoch": Foreign("--resume goes on where the run was"),
    "no_resume_opt": Foreign("--resume restores all; --initial-checkpoint the weights alone", False),
    "warmup_prefix": Foreign("the warm-up is a part of --epochs", False),
    # augmentation and loss
    "aug_repeats": Foreign("an epoch sees each image once", 0),
    "aug_splits": Foreign("there are no augmentation splits", 0),
    "bce_pos_weight": Foreign("--bce-loss is the plain one"),
    "bce_sum": Foreign("--bce-loss is the mean over classes", False),
    "bce_target_thresh": Foreign("--bce-loss is the plain one"),
    "color_jitter_prob": Foreign("--color-jitter is applied to all images"),
    "cutmix_minmax": Foreign("--cutmix takes its alpha"),
    "gaussian_blur_prob": Foreign("--aa has policies"),
    "grayscale_prob": Foreign("--aa has policies"),
    "jsd_loss": Foreign("there are no augmentation splits", False),
    "mixup_mode": Foreign("a batch is mixed as a whole", "batch"),
    "mixup_off_epoch": Foreign("batches are mixed to the end", 0),
    "mixup_prob": Foreign("every batch is mixed", 1.0),
    "mixup_switch_prob": Foreign("mixup and cutmix take turns by chance, one to one", 0.5),
    "resplit": Foreign("there are no augmentation splits", False),
    "train_crop_mode": Foreign("crops are random resized ones", "rrc"),
    # moving average, distillation
    "model_ema_force_cpu": Foreign("the moving average lies where the model does", False),
    "kd_model_name": Foreign(_NO_TIMM_KD),
    "kd_distill_type": _idle(_NO_TIMM_KD),
    "kd_loss_type": _idle(_NO_TIMM_KD),
    "kd_student_feature_dim": _idle(_NO_TIMM_KD),
    "kd_teacher_feature_dim": _idle(_NO_TIMM_KD),
    "kd_token_distill_type": _idle(_NO_TIMM_KD),
    "distill_loss_weight": _idle(_NO_TIMM_KD),
    "task_loss_weight": _idle(_NO_TIMM_KD),
    # the run
    "eval_metric": Foreign("the best epoch is that of the best top-1", "top1"),
    "log_wandb": _idle(_NO_WANDB),
    "wandb_project": _idle(_NO_WANDB),
    "wandb_resume_id": _idle(_NO_WANDB),
    "wandb_tags": _idle(_NO_WANDB),
    "save_images": _idle(_NO_WANDB),
    "tta": Foreign("each validation image counts once", 0),
    "val_interval": Foreign("every epoch is validated", 1),
    "naflex_loader": Foreign(_NO_NAFLEX, False),
    "naflex_loss_scale": _idle(_NO_NAFLEX),
    "naflex_max_seq_len": _idle(_NO_NAFLEX),
    "naflex_patch_size_probs": _idle(_NO_NAFLEX),
    "naflex_patch_sizes": _idle(_NO_NAFLEX),
    "naflex_train_seq_lens": _idle(_NO_NAFLEX),
}  # fmt: skip


def is_off(value: Any) -> bool:
    """Whether a value is how timm says that nothing is asked for."""
    return value is None or value is False or value in ("", [], {})


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """A file of flags with what timm says in other words said in ours; a file without a flag of timm's own as it is.

    timm's empty texts stand for defaults; its learning rate grows with the root of the batch for adaptive optimizers;
    ``device: cuda`` is its default, not a wish.
    """
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if not values.keys() & {*FOREIGN, "data"}:
        return values
    if isinstance(values.get("model_kwargs"), dict):
        values["model_kwargs"] = [f"{key}={value}" for key, value in values["model_kwargs"].items()]
    if values.get("data") and not values.get("data_dir"):
        values["data_dir"] = values["data"]
    values.pop("data", None)
    if values.get("lr_base_scale") == "":
        adaptive = any(part in str(values.get("opt", "sgd")).lower() for part in ("ada", "lamb"))
        values["lr_base_scale"] = "sqrt" if adaptive else "linear"
    if values.get("device") == "cuda":
        values["device"] = "auto"
    if "color_jitter" in values and values["color_jitter"] is None:
        values["color_jitter"] = 0.0
    for name in ("output", "experiment", "resume", "clip_mode", "dataset"):
        if values.get(name) == "":
            del values[name]
    return values
