"""ResNeSt-50 on ImageNet-1k, 270 epochs: a variant of recog_imagenet.py.

Source: Zhang et al., ResNeSt: Split-Attention Networks, 2020, as PyTorch-Encoding trains it on 32
GPUs: SGD 0.8 for 2048 images, cosine over 270 epochs after 5 of warm-up, label smoothing 0.1, mixup
0.2, RandAugment, no decay on norms and biases, last gamma of each block from 0. Takes timm: pip
install ".[timm]".

Launch: trainkit recog_imagenet_resnest --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_resnest ...

Hardware and time: not yet measured; the authors used 32 GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes top1 81.03 %.
"""

from typing import Any

from recog_imagenet import SAMPLE as SAMPLE
from recog_imagenet import recipe as bag_of_tricks

from trainkit import Recipe
from trainkit.settings.variants import variant


@variant(
    bag_of_tricks,
    model="timm:resnest50d",
    epochs=270,
    lr=0.8,
    batch_size=2048,
    rand_augment=(2, 12),
)
def recipe(**settings: Any) -> Recipe:
    """ResNeSt on ImageNet-1k from scratch.

    Args:
        lr: peak learning rate, for 2048 images a batch
        size: side of the crop in training; the authors take 256 for 101 layers, 320 for 200
    """
    return bag_of_tricks(**settings)
