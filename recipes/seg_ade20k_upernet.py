"""UPerNet with a Swin-T on ADE20K, 150 classes, or with a ConvNeXt or a vision transformer.

Source: Liu et al., Swin Transformer, ICCV 2021, as mmsegmentation trains it
(upernet_swin_tiny_patch4_window7_512x512_160k): AdamW 6e-5 for 16 images, decay 0.01, linear to 0
over 160,000 steps (127 epochs) after 1,500 of warm-up, drop path 0.3, auxiliary loss 0.4, crop 512;
sizes as in seg_ade20k_segformer. Takes timm: pip install ".[timm]".

Launch: trainkit seg_ade20k_upernet --data /path/to/ADEChallengeData2016

ConvNeXt-T (Liu et al., A ConvNet for the 2020s, CVPR 2022): --backbone timm:convnext_tiny.fb_in1k
--lr 1e-4 --weight-decay 0.05 --stochastic-depth 0.4 --layer-decay 0.97 --eval-window 512 341;
the authors decay the rate by 0.9 from group to group, to 0.73 in the last stage and 0.48 in the
first layers; here it is from block to block, 0.94 and 0.56.
DINOv3 with BEiT's pyramid: --backbone timm:vit_base_patch16_dinov3 --no-map-norms --layer-decay
0.8 --stochastic-depth 0.1 --eval-window 512 341, for which no figure is published.

On several processes: accelerate launch -m trainkit seg_ade20k_upernet ...

As published, norms do not decay, and each of the four maps has a norm of its own; biases do not
decay here either, as in ConvNeXt's settings. Another crop than 224 shifts windows in all stages.

Hardware and time: not yet measured; the authors used eight GPUs.

Expected: not yet measured with this code; whole images at one scale the authors of Swin publish
mIoU 44.5 % for Swin-T, those of ConvNeXt, in windows, 46.0 % for ConvNeXt-T.
"""

from typing import Any

from seg_ade20k import SAMPLE as ADE20K_SAMPLE
from seg_ade20k_segformer import recipe as segformer

from trainkit import Recipe
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {**ADE20K_SAMPLE, "lr": 1e-3, "warmup_epochs": 0.5, "stochastic_depth": None,
          "map_norms": False}  # fmt: skip


@variant(
    segformer,
    model="upernet",
    backbone="timm:swin_tiny_patch4_window7_224",
    aux_weight=0.4,
    head_lr_mult=1.0,
    stochastic_depth=0.3,
    map_norms=True,
)
def recipe(**settings: Any) -> Recipe:
    """UPerNet with a Swin-T on ADE20K, or with another backbone.

    Args:
        lr: learning rate of all, for 16 images a batch
    """
    return segformer(**settings)
