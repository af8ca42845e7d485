"""ResNet-50 on ImageNet-1k by procedure A3 of ResNet strikes back: a variant of A2.

Source: Wightman et al., ResNet strikes back, 2021, Table 2, A3: as recog_imagenet_a2, with LAMB
0.008, 100 epochs of single copies in batches of 2048, RandAugment 6 of 10, no stochastic depth,
and crops of 160 in training, 224 in evaluation. Takes timm: pip install ".[timm]".

Launch: trainkit recog_imagenet_a3 --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_a3 ...

Hardware and time: not yet measured; the authors used four V100 GPUs of 16 GB for 15 hours.

Expected: not yet measured with this code; the paper has top1 78.1 %.
"""

from typing import Any

from recog_imagenet_a2 import SAMPLE as OF_A2
from recog_imagenet_a2 import recipe as middle

from trainkit import Recipe
from trainkit.settings.variants import variant

SAMPLE = {**OF_A2, "eval_size": None, "epochs": 6}


@variant(
    middle,
    epochs=100,
    warmup_epochs=5,
    lr=8e-3,
    batch_size=2048,
    auto_augment="rand-m6-mstd0.5-inc1",
    repeats=1,
    stochastic_depth=None,
    size=160,
    eval_size=224,
)
def recipe(**settings: Any) -> Recipe:
    """ImageNet-1k from scratch, by the shortest procedure.

    Args:
        epochs: passes over the training images
    """
    return middle(**settings)
