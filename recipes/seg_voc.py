"""EncNet on Pascal VOC 2012, 21 classes, through COCO and VOC-aug.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding trains it: COCO first
(recipes/seg_coco.py), then VOC-aug at 0.001 for 80 epochs, then VOC at 0.0001 for 50, each from the one before.

    trainkit recipes/seg_coco.py --data /path/to/coco --backbone resnet101
    trainkit recipes/seg_voc.py --init-from runs/seg_coco --out runs/voc_aug --backbone resnet101
    trainkit recipes/seg_voc.py --init-from runs/voc_aug --no-augmented --split trainval --lr 0.0001 --epochs 50 ...

Launch: accelerate launch -m trainkit recipes/seg_voc.py --data /path/to/data

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes mIoU 85.9 % on the test set for a ResNet-101 with
a deep stem, trained in these three parts.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from torch.optim import SGD

from trainkit import Recipe
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.voc import VOC, VOCAug
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.models.segmentation import Segmenter, encoding_weight, segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.tasks.segmentation import Loss, Segmentation, named_losses

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.02, "batch_size": 8, "base": 112, "crop": 88,
          "head": 1.0, "channels": 64, "sync_batch_norm": False}  # fmt: skip


def recipe(
    data: Path = Path("data/voc"),
    model: Segmenter = "encnet",
    backbone: str = "resnet101",
    pretrained: bool = True,
    epochs: float = 80,
    lr: float = 0.001,
    batch_size: int = 16,
    weight_decay: float = 1e-4,
    base: int = 520,
    crop: int = 480,
    head: float = 10.0,
    aux_weight: float = 0.2,
    se_weight: float | None = None,
    channels: int = 512,
    augmented: bool = True,
    split: Literal["train", "trainval"] = "train",
    loss: tuple[Loss, ...] = ("cross_entropy",),
    photometric: bool = False,
    max_share: float | None = None,
    sync_batch_norm: bool = True,
    eval_window: tuple[int, int] | None = None,
    eval_crop: int | None = None,
    sample: bool = False,
) -> Recipe:
    """EncNet on Pascal VOC 2012, 21 classes, through COCO and VOC-aug.

    Args:
        data: folder with VOCdevkit/ and, for the augmented set, benchmark_RELEASE/
        augmented: train on VOC-aug, 10,582 images, and not on VOC's own
        split: of VOC's own images, to train on where not augmented
        model: the network
        backbone: of torchvision's ResNets, "timm:" and a name of timm's, or "small", which trains on a laptop
        pretrained: start the backbone from published ImageNet weights
        epochs: passes over the training images
        lr: learning rate of the backbone, for 16 images a batch
        batch_size: images of one step, over all processes
        weight_decay: of every parameter
        base: long side of an image before the random scale, and in evaluation
        crop: side of the training crop
        head: factor of the learning rate outside the backbone
        aux_weight: factor of the auxiliary head's loss; 0 for no such head
        se_weight: factor of the semantic-encoding loss of EncNet; None: 0.2 as published; 0 for no such head
        channels: width of the head
        loss: of the pixels: cross_entropy, focal, ohem, dice, lovasz, or several of them
        photometric: distort brightness, contrast, saturation and hue of the training crops
        max_share: a crop is drawn again while one class has more than this share of it, such as 0.75; None: never
        sync_batch_norm: on several GPUs, batch norm over the whole batch
        eval_window: evaluate in windows of this side, so many pixels from one to the next, such as 480 320
        eval_crop: evaluate centre crops of this side, as older codes do; None for either: whole images
        sample: train a small network on generated scenes, in under a minute
    """
    if augmented and split != "train":
        raise UserError(
            f"split is {split}, and VOC-aug has none: give --no-augmented too, for VOC's own images"
        )
    train = train_transform(base, crop, photometric=photometric, max_share=max_share)
    evaluation = eval_transform(base, eval_crop)
    if sample:
        train_data, val_data = generated.masks(len(VOC.classes), train, evaluation)
    else:
        val_data = VOC(data, "val", evaluation)
        train_data = (
            partial(VOCAug, data, "train", train) if augmented else partial(VOC, data, split, train)
        )
    se_weight = encoding_weight(model, se_weight)
    heads = {"aux": aux_weight > 0, "se": se_weight > 0, "lateral": True, "channels": channels}
    network = segmenter(model, len(VOC.classes), backbone, pretrained, **heads)
    return Recipe(
        task=Segmentation.of(
            VOC, loss=named_losses(loss), aux_weight=aux_weight, se_weight=se_weight
        ),
        model=network,
        train_data=train_data,
        val_data=val_data,
        optimizer=SGD(
            param_groups(network, lr, weight_decay, head), lr=lr, momentum=0.9, fused=True
        ),
        schedule=poly(0.9),
        epochs=epochs,
        batch_size=batch_size,
        inference=Inference.windows(eval_window),
        sync_batch_norm=sync_batch_norm,
        drop_last=True,
        note="generated data, not VOC: scenes of 16 classes" if sample else None,
    )
