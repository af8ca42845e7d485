"""EncNet on COCO with the 21 classes of Pascal VOC.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding's
train_dist.py trains it, a first part of recipes/seg_voc.py: SGD 0.004 for 16 images, head x10, poly
0.9, 30 epochs; images with fewer than 1,000 pixels of the classes are left out.

Launch: trainkit seg_coco --data /path/to/data

On several processes: accelerate launch -m trainkit seg_coco ...

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured; no figure is published for this part alone.
"""

from pathlib import Path
from typing import Any

from seg_ade20k import opener, segmentation
from seg_ade20k_encnet import SAMPLE as SAMPLE

from trainkit import Recipe
from trainkit.data.datasets.coco import COCO
from trainkit.settings.variants import variant


@variant(
    segmentation, data=Path("data/coco"), model="encnet", backbone="resnet101", epochs=30, lr=0.004
)
def recipe(**settings: Any) -> Recipe:
    """EncNet on COCO with the 21 classes of Pascal VOC.

    Args:
        data: folder with train2017/, val2017/ and annotations/
    """
    return segmentation(opener(COCO, "COCO"), **settings, lateral=True)
