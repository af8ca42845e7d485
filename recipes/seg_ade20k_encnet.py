"""EncNet on ADE20K, 150 classes.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding's
train_dist.py trains it at commit c1d9ec6: SGD 0.01 for 16 images, head x10, poly 0.9, 120 epochs,
auxiliary and semantic-encoding loss 0.2 each. An earlier version (56391e3) has 180 epochs at 0.004.

Launch: trainkit seg_ade20k_encnet --data /path/to/data

On several processes: accelerate launch -m trainkit seg_ade20k_encnet ...

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes pixAcc 80.1 %, mIoU 41.5 % for
a ResNet-50 with a deep stem, evaluated at scales 0.5 to 1.75, flipped too (`--backbone
timm:resnet50d` is the nearest).
"""

from typing import Any

from seg_ade20k import ade20k, segmentation

from trainkit import Recipe
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.02, "batch_size": 8,
          "long_side": 112, "crop": 88, "head_lr_mult": 1.0, "head_channels": 64,
          "sync_batch_norm": False}  # fmt: skip


@variant(segmentation, model="encnet")
def recipe(**settings: Any) -> Recipe:
    """EncNet on ADE20K, 150 classes."""
    return segmentation(ade20k, **settings, lateral=False)
