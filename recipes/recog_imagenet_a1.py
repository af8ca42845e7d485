"""ResNet-50 on ImageNet-1k by procedure A1 of ResNet strikes back: a variant of recog_imagenet.py.

Source: Wightman et al., ResNet strikes back, 2021, Table 2, A1: LAMB 0.005 for 2048 images, decay
0.01, cosine over 600 epochs after 5 of warm-up, binary cross-entropy, label smoothing 0.1, mixup
0.2, cutmix 1, RandAugment 7 of 10 (m7-mstd0.5-inc1), three copies of an image in a batch,
stochastic depth 0.05, crops of 0.95 in evaluation. Targets above 0.2 count as 1, as in timm's
commands for it, which leaves nothing of the label smoothing. An epoch of three copies is three of
the paper's: 200 are its 600. Batches hold 2064 images: three copies and the pairs of mixup do not
divide 2048. Takes timm: pip install ".[timm]".

Launch: trainkit recog_imagenet_a1 --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_a1 ...

Hardware and time: not yet measured; the authors used four V100 GPUs of 32 GB for 4.6 days.

Expected: not yet measured with this code; the paper has top1 80.4 %.
"""

from typing import Any

from recog_imagenet import SAMPLE as OF_IMAGENET
from recog_imagenet import recipe as bag_of_tricks

from trainkit import Recipe
from trainkit.settings.variants import variant

# the small network leaves out no block
SAMPLE = {**OF_IMAGENET, "stochastic_depth": None, "batch_size": 36, "lr": 0.01, "epochs": 2}


@variant(
    bag_of_tricks,
    model="timm:resnet50",
    epochs=200,
    warmup_epochs=1.6666666666666667,  # 5 of the paper's
    optimizer="lamb",
    lr=5e-3,
    weight_decay=0.01,
    batch_size=2064,
    loss="bce",
    bce_threshold=0.2,
    cutmix=1.0,
    auto_augment="rand-m7-mstd0.5-inc1",
    repeats=3,
    stochastic_depth=0.05,
    crop_fraction=0.95,
)
def recipe(**settings: Any) -> Recipe:
    """ImageNet-1k from scratch, by the longest procedure.

    Args:
        lr: peak learning rate, for 2048 images a batch
        epochs: passes over the training images, each of them three times
    """
    return bag_of_tricks(**settings)
