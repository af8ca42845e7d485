"""DeepLabV3 or another network on Cityscapes, 19 classes.

Source: PyTorch-Encoding's train_dist.py at commit c1d9ec6: SGD 0.01 for 16 images, head x10, poly
0.9, 240 epochs, auxiliary loss 0.2; long side 2048 and crops of 768 are the usual ones for images
of 2048 x 1024.

Launch: trainkit seg_cityscapes --data /path/to/data

SegFormer (Xie et al., NeurIPS 2021) as mmsegmentation trains it, in windows of 1024 (its published
B0: mIoU 76.2 %): --model hf:segformer_b0 --optimizer adamw --lr 6e-5 --weight-decay 0.01
--no-decay-vectors --schedule poly:power=1.0 --epochs 430 --warmup-epochs 4 --batch-size 8
--photometric --cat-max-ratio 0.75 --crop 1024 --eval-window 1024 768

Crops and windows of 1024 x 512, as mmsegmentation's deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024
has the crops: --crop 512 --crop-width 1024 --eval-window 512 341 --eval-window-width 1024.

On several processes: accelerate launch -m trainkit seg_cityscapes ...

Hardware and time: not yet measured; crops of 768 in batches of 16 are for four GPUs and more.

Expected: not yet measured; no figure is published with these settings.
"""

from pathlib import Path
from typing import Any, Literal

from seg_ade20k import opener, segmentation
from seg_ade20k_encnet import SAMPLE as SAMPLE

from trainkit import Recipe
from trainkit.data.datasets.cityscapes import Cityscapes
from trainkit.settings.variants import variant


@variant(
    segmentation,
    data=Path("data/cityscapes"),
    model="deeplabv3",
    backbone="resnet101",
    epochs=240,
    long_side=2048,
    crop=768,
)
def recipe(
    labels: Literal["fine", "coarse"] = "fine",
    split: Literal["train", "train_extra"] = "train",
    **settings: Any,
) -> Recipe:
    """DeepLabV3 or another network on Cityscapes, 19 classes.

    Args:
        data: folder with leftImg8bit/ and gtFine/ or gtCoarse/
        labels: which polygons to train on; evaluated are the fine ones
        split: to train on; train_extra has coarse labels alone
    """
    open_data = opener(Cityscapes, "Cityscapes", split=split, labels=labels)
    return segmentation(open_data, **settings, lateral=False)
