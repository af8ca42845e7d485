"""A linear head on a frozen DINOv3 ViT-L on ADE20K, 150 classes.

Source: Siméoni et al., DINOv3, 2025, as the authors' dinov3/eval/segmentation/config.py trains it:
batch norm and a linear layer on the last map, normalised, of a frozen network; AdamW 1e-3 for 16
images, weight decay 0.01, a cosine over 40,000 steps (32 epochs; their WarmupOneCycleLR has no
rising phase but its warm-up, whose length is in a configuration that was not read: none here),
clipping at 35, photometric distortion, at most 75 % of a crop of one class, evaluated in windows of
512 every 341 pixels; crops of 512 are DINOv2's. There the head has a dropout of 0.1, and sizes are
by the short side, 512; here long_side is 683, which is that of 3:4. Takes timm: pip install
".[timm]".

Launch: trainkit seg_ade20k_dinov3 --data /path/to/ADEChallengeData2016

With --out-indices -4 -3 -2 -1 on the last four blocks, concatenated, as DINOv2 has it too.

On several processes: accelerate launch -m trainkit seg_ade20k_dinov3 ...

Hardware and time: not yet measured; a ViT-L, forwards alone, is for a GPU.

Expected: not yet measured with this code; the authors' model card has mIoU 54.9 % for ViT-L.
"""

from typing import Any

from seg_ade20k import ade20k, segmentation

from trainkit import Recipe
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "timm:test_vit", "pretrained": False, "epochs": 5, "lr": 3e-3, "freeze": (),
          "batch_size": 8, "clip_norm": 1.0, "eval_window": (96, 64),
          "long_side": 128, "crop": 96, "sync_batch_norm": False}  # fmt: skip


@variant(
    segmentation,
    model="linear",
    backbone="timm:vit_large_patch16_dinov3",
    freeze=("backbone",),
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.01,
    head_lr_mult=1.0,
    clip_norm=35.0,
    schedule="cos",
    epochs=32,
    long_side=683,
    crop=512,
    photometric=True,
    cat_max_ratio=0.75,
    eval_window=(512, 341),
)
def recipe(**settings: Any) -> Recipe:
    """A linear head on a frozen DINOv3 ViT-L on ADE20K.

    Args:
        lr: highest learning rate, for 16 images a batch
    """
    return segmentation(ade20k, **settings, lateral=False)
