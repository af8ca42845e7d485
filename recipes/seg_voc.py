r"""EncNet on Pascal VOC 2012, 21 classes, through COCO and VOC-aug.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding
trains it: COCO first (seg_coco), then VOC-aug at 0.001 for 80 epochs, then VOC at 0.0001
for 50, each from the one before.

    trainkit seg_coco --data /path/to/coco --backbone resnet101
    trainkit seg_voc --init-from runs/seg_coco --out runs/voc_aug \
        --backbone resnet101
    trainkit seg_voc --init-from runs/voc_aug --no-augmented \
        --split trainval --lr 0.0001 --epochs 50 --backbone resnet101

Launch: trainkit seg_voc --data /path/to/data

On several processes: accelerate launch -m trainkit seg_voc ...

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes mIoU 85.9 % on the test set
for a ResNet-101 with a deep stem, trained in these three parts.
"""

from pathlib import Path
from typing import Any, Literal

from seg_ade20k import opener, segmentation
from seg_ade20k_encnet import SAMPLE as SAMPLE

from trainkit import Recipe
from trainkit.data.datasets.voc import VOC, VOCAug
from trainkit.errors import UserError
from trainkit.settings.variants import variant


@variant(
    segmentation, data=Path("data/voc"), model="encnet", backbone="resnet101", epochs=80, lr=0.001
)
def recipe(
    augmented: bool = True, split: Literal["train", "trainval"] = "train", **settings: Any
) -> Recipe:
    """EncNet on Pascal VOC 2012, 21 classes, through COCO and VOC-aug.

    Args:
        data: folder with VOCdevkit/ and, for the augmented set, benchmark_RELEASE/
        augmented: train on VOC-aug, 10,582 images, and not on VOC's own
        split: of VOC's own images, to train on where not augmented
    """
    if augmented and split != "train":
        raise UserError(
            f"split is {split}, and VOC-aug has none: give --no-augmented too, for VOC's own images"
        )
    open_data = opener(VOC, "VOC", VOCAug if augmented else VOC, split)
    return segmentation(open_data, **settings, lateral=True)
