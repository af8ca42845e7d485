"""ResNet-50 on ImageNet-1k by procedure A2 of ResNet strikes back: a variant of A1.

Source: Wightman et al., ResNet strikes back, 2021, Table 2, A2: as recog_imagenet_a1, with decay
0.02, no label smoothing, mixup 0.1, and half the epochs: 100 of three copies are the paper's 300.
Takes timm: pip install ".[timm]".

Launch: trainkit recog_imagenet_a2 --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_a2 ...

Hardware and time: not yet measured; the authors used four V100 GPUs of 32 GB for 2.3 days.

Expected: not yet measured with this code; the paper has top1 79.8 %.
"""

from typing import Any

from recog_imagenet_a1 import SAMPLE as SAMPLE
from recog_imagenet_a1 import recipe as longest

from trainkit import Recipe
from trainkit.settings.variants import variant


@variant(longest, epochs=100, weight_decay=0.02, label_smoothing=0.0, mixup=0.1)
def recipe(**settings: Any) -> Recipe:
    """ImageNet-1k from scratch, by the procedure of middle length."""
    return longest(**settings)
