"""EncNet on Pascal-Context, 59 classes.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding's
train_dist.py trains it: SGD 0.001 for 16 images, head x10, poly 0.9, 80 epochs, auxiliary and
semantic-encoding loss 0.2 each, with lateral connections.

Launch: trainkit seg_pcontext --data /path/to/data

On several processes: accelerate launch -m trainkit seg_pcontext ...

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes pixAcc 79.2 %, mIoU 51.0 % for
a ResNet-50 with a deep stem, evaluated at scales 0.5 to 1.75, flipped too.
"""

from pathlib import Path
from typing import Any

from seg_ade20k import opener, segmentation
from seg_ade20k_encnet import SAMPLE as SAMPLE

from trainkit import Recipe
from trainkit.data.datasets.pcontext import PascalContext
from trainkit.settings.variants import variant


@variant(segmentation, data=Path("data/pcontext"), model="encnet", epochs=80, lr=0.001)
def recipe(**settings: Any) -> Recipe:
    """EncNet on Pascal-Context, 59 classes.

    Args:
        data: folder with JPEGImages, trainval/ and the lists train.txt and val.txt
            (see trainkit/data/datasets/pcontext.py)
    """
    return segmentation(opener(PascalContext, "Pascal-Context"), **settings, lateral=True)
