"""EoMT with a DINOv2 ViT-L, or Mask2Former, on ADE20K, 150 classes, by mask classification.

Source: Kerssies et al., Your ViT is Secretly an Image Segmentation Model, CVPR 2025, as its
authors' configs/dinov2/ade20k/semantic/eomt_large_512.yaml trains it: AdamW 1e-4 for 16 images,
layer-wise decay 0.8, weight decay 0.05, poly 0.9, 31 epochs, the new layers warmed up over 500
steps and then the encoder over 1000, clipping at 0.01, crops of 512, colours distorted, fp16. Its
windows are spread evenly along the long side; here they begin every 342 pixels.

Launch: trainkit seg_ade20k_eomt --data /path/to/ADEChallengeData2016 --mixed-precision bf16

On several processes: accelerate launch -m trainkit seg_ade20k_eomt ...

Hardware and time: not yet measured; a ViT-L in batches of 16 is for GPUs.

Expected: not yet measured with this code; the authors publish mIoU 58.4 % with DINOv2's ViT-L at
512 x 512.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seg_ade20k import Opened, ade20k, segmentation
from torch import nn

from trainkit import Recipe
from trainkit.data.transforms.segmentation import eval_transform
from trainkit.models.mask_networks import MaskedAttention
from trainkit.schedules import delayed
from trainkit.settings import ScheduleSettings
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 3e-3, "batch_size": 8,
          "long_side": 96, "crop": 96, "eval_window": (96, 64), "warmup_steps": (1, 1),
          "clip_norm": 1.0, "layer_decay": 1.0, "sync_batch_norm": False,
          "model_args": ("hidden_size=64", "num_hidden_layers=4", "num_attention_heads=4",
                         "num_blocks=2", "num_queries=24", "num_register_tokens=0",
                         "patch_size=8", "num_upscale_blocks=1",
                         "train_num_points=512")}  # fmt: skip


@variant(
    segmentation,
    model="hf:eomt",
    backbone="timm:vit_large_patch14_reg4_dinov2",
    optimizer="adamw",
    lr=1e-4,
    weight_decay=0.05,
    head_lr_mult=1.0,
    layer_decay=0.8,
    clip_norm=0.01,
    epochs=31,
    long_side=512,
    crop=512,
    photometric=True,
    eval_window=(512, 342),
)
def recipe(warmup_steps: tuple[int, int] = (500, 1000), **settings: Any) -> Recipe:
    """EoMT with a DINOv2 ViT-L, or Mask2Former, on ADE20K.

    Args:
        warmup_steps: of the new layers, and after these of EoMT's encoder, which is not trained
            before; warmup_epochs above 0 takes the place of both
        long_side: long side of an image before the random scale
        crop: side of the training crop and of EoMT's images, and the short side in evaluation
        sample: train a small network on generated scenes, in under a minute
    """
    model, crop, given = settings["model"], settings["crop"], settings["model_args"]
    if model in ("hf:eomt", "hf:eomt_dinov3") and not any(
        text.startswith("image_size") for text in given
    ):
        settings["model_args"] = (*given, f"image_size={crop}")

    def open_data(data: Path, sample: bool, train: Callable, evaluation: Callable) -> Opened:
        whole = evaluation if settings["eval_crop"] else eval_transform(None, short_side=crop)
        return ade20k(data, sample, train, whole)

    made = segmentation(open_data, **settings, lateral=False)
    groups = made.optimizer.param_groups
    return replace(
        made, schedule=_schedules(settings["schedule"], warmup_steps, made.model, groups)
    )


def _schedules(
    schedule: ScheduleSettings, warmup_steps: tuple[int, int], network: nn.Module, groups: Any
) -> Any:
    """The encoder of EoMT waits for the new layers; Mask2Former is warmed up as a whole."""
    if schedule.warmup_epochs:
        return schedule.build()["schedule"]
    first, second = warmup_steps
    new = schedule.build(warmup_steps=first)["schedule"]
    if not isinstance(network, MaskedAttention):
        return new
    encoder = delayed(schedule.build(warmup_steps=second)["schedule"], first)
    in_encoder = {id(parameter) for parameter in network.encoder_parameters()}
    return [encoder if id(group["params"][0]) in in_encoder else new for group in groups]
