"""ConvNeXt V2-T fine-tuned on ImageNet-1k after FCMAE: a variant of recog_imagenet.py.

Source: Woo et al., ConvNeXt V2, 2023, with the command for the tiny network in the authors'
TRAINING.md: AdamW 8e-4 for 256 images (0.0032 for 1024), decay 0.05, layer-wise decay 0.9, cosine
over 300 epochs after 40 of warm-up, label smoothing 0.1, mixup 0.8, cutmix 1, RandAugment 9 of 10
(m9-mstd0.5-inc1), random erasing 0.25 with noise, stochastic depth 0.2, EMA 0.9999. The weights,
self-supervised (FCMAE), are timm's: pip install ".[timm]". The base network has, for 1024 images,
--lr 2.5e-3 --epochs 100 --warmup-epochs 20 --stochastic-depth 0.1, and --layer-decay 0.6 over
groups of three blocks (here a layer is a block: 0.84 comes near). The authors' last layer begins
near 0, here as timm makes it.

Launch: trainkit recog_imagenet_convnextv2 --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_convnextv2 ...

Hardware and time: not yet measured; the authors' command is for 32 GPUs, or for eight with four
micro-batches.

Expected: not yet measured with this code; the authors publish top1 83.0 % (base: 84.9 %).
"""

from typing import Any

from recog_imagenet import SAMPLE as OF_IMAGENET
from recog_imagenet import recipe as bag_of_tricks

from trainkit import Recipe
from trainkit.settings.variants import variant

SAMPLE = {**OF_IMAGENET, "stochastic_depth": None, "layer_decay": 1.0, "lr": 0.003, "ema": 0.99}


@variant(
    bag_of_tricks,
    model="timm:convnextv2_tiny.fcmae",
    pretrained=True,
    epochs=300,
    warmup_epochs=40,
    optimizer="adamw",
    lr=3.2e-3,
    weight_decay=0.05,
    layer_decay=0.9,
    ema=0.9999,
    batch_size=1024,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    erase=0.25,
    erase_with="noise",
    stochastic_depth=0.2,
)
def recipe(**settings: Any) -> Recipe:
    """ImageNet-1k, from self-supervised weights.

    Args:
        lr: peak learning rate, for 1024 images a batch
    """
    return bag_of_tricks(**settings)
