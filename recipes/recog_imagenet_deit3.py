"""ViT-S on ImageNet-1k as DeiT III trains it: a variant of recog_imagenet.py.

Source: Touvron et al., DeiT III: Revenge of the ViT, 2022, with the command in the authors'
README_revenge.md: LAMB 0.004 for 2048 images, decay 0.05, cosine over 800 epochs after 5 of
warm-up, binary cross-entropy with every class of a mixture as 1, mixup 0.8, cutmix 1, 3-Augment,
colour jitter 0.3, three copies of an image in a batch, stochastic depth 0.05, layer scale (in
timm's network). An epoch of three copies is three of the paper's, and batches hold 2064 images,
as in recog_imagenet_a1. Takes timm: pip
install ".[timm]".

Launch: trainkit recog_imagenet_deit3 --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet_deit3 ...

Second stage, ViT-S at 384 pixels, by the authors' command ("finetuning for ViT-S at resolution
384x384"): AdamW 1e-5 for 512 images, decay 0.1, cosine over 20 epochs after 5 of warm-up,
cross-entropy with label smoothing 0.1, the same mixup and cutmix, RandAugment in place of
3-Augment, no copies and no stochastic depth. --init-from resizes the position embeddings: trainkit
recog_imagenet_deit3 --data /path/to/imagenet --out runs/deit3_384 --init-from
runs/recog_imagenet_deit3 --model timm:deit3_small_patch16_384 --size 384 --optimizer adamw --lr
1e-5 --weight-decay 0.1 --batch-size 512 --epochs 20 --warmup-epochs 5 --loss cross_entropy
--bce-threshold None --label-smoothing 0.1 --auto-augment rand-m9-mstd0.5-inc1 --jitter None
--repeats 1 --stochastic-depth 0. The larger networks begin at 192 pixels (ViT-B and L: --size 192
--lr 3e-3, stochastic depth 0.2 and 0.45) and end with the same 20 epochs at 224.

Hardware and time: not yet measured; the authors used eight GPUs.

Expected: not yet measured with this code; the authors publish top1 81.4 % for ViT-S
and 83.4 % after the second stage.
"""

from typing import Any

from recog_imagenet import SAMPLE as OF_IMAGENET
from recog_imagenet import recipe as bag_of_tricks

from trainkit import Recipe
from trainkit.settings.variants import variant

SAMPLE = {**OF_IMAGENET, "stochastic_depth": None, "batch_size": 36, "lr": 0.01, "repeats": 1}


@variant(
    bag_of_tricks,
    model="timm:deit3_small_patch16_224",
    epochs=266.6666666666667,  # 800 of the paper's
    warmup_epochs=1.6666666666666667,  # 5 of the paper's
    optimizer="lamb",
    lr=4e-3,
    weight_decay=0.05,
    batch_size=2064,
    loss="bce",
    bce_threshold=0.0,
    label_smoothing=0.0,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="3a",
    jitter=(0.3, 0.3, 0.3),
    repeats=3,
    stochastic_depth=0.05,
)
def recipe(**settings: Any) -> Recipe:
    """ImageNet-1k from scratch with a vision transformer.

    Args:
        lr: peak learning rate, for 2048 images a batch
        epochs: passes over the training images, each of them three times
    """
    return bag_of_tricks(**settings)
