"""DeepLabV3 or another network on Cityscapes, 19 classes.

Source: PyTorch-Encoding's train_dist.py at commit c1d9ec6: SGD 0.01 for 16 images, head x10, poly 0.9, 240 epochs,
auxiliary loss 0.2; long side 2048 and crops of 768 are the usual ones for images of 2048 x 1024.

Launch: accelerate launch -m trainkit recipes/seg_cityscapes.py --data /path/to/data

Hardware and time: not yet measured; crops of 768 in batches of 16 are for four GPUs and more.

Expected: not yet measured; no figure is published with these settings.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from torch.optim import SGD

from trainkit import Recipe
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.cityscapes import Cityscapes
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.inference import Inference
from trainkit.models.segmentation import Segmenter, encoding_weight, segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.tasks.segmentation import Loss, Segmentation, named_losses

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.02, "batch_size": 8, "base": 112, "crop": 88,
          "head": 1.0, "channels": 64, "sync_batch_norm": False}  # fmt: skip


def recipe(
    data: Path = Path("data/cityscapes"),
    model: Segmenter = "deeplabv3",
    backbone: str = "resnet101",
    pretrained: bool = True,
    epochs: float = 240,
    lr: float = 0.01,
    batch_size: int = 16,
    weight_decay: float = 1e-4,
    base: int = 2048,
    crop: int = 768,
    head: float = 10.0,
    aux_weight: float = 0.2,
    se_weight: float | None = None,
    channels: int = 512,
    labels: Literal["fine", "coarse"] = "fine",
    split: Literal["train", "train_extra"] = "train",
    loss: tuple[Loss, ...] = ("cross_entropy",),
    photometric: bool = False,
    max_share: float | None = None,
    sync_batch_norm: bool = True,
    eval_window: tuple[int, int] | None = None,
    eval_crop: int | None = None,
    sample: bool = False,
) -> Recipe:
    """DeepLabV3 or another network on Cityscapes, 19 classes.

    Args:
        data: folder with leftImg8bit/ and gtFine/ or gtCoarse/
        labels: which polygons to train on; evaluated are the fine ones
        split: to train on; train_extra has coarse labels alone
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
    train = train_transform(base, crop, photometric=photometric, max_share=max_share)
    evaluation = eval_transform(base, eval_crop)
    if sample:
        train_data, val_data = generated.masks(len(Cityscapes.classes), train, evaluation)
    else:
        val_data = Cityscapes(data, "val", evaluation)
        train_data = partial(Cityscapes, data, split, train, labels)
    se_weight = encoding_weight(model, se_weight)
    heads = {"aux": aux_weight > 0, "se": se_weight > 0, "lateral": False, "channels": channels}
    network = segmenter(model, len(Cityscapes.classes), backbone, pretrained, **heads)
    return Recipe(
        task=Segmentation.of(
            Cityscapes, loss=named_losses(loss), aux_weight=aux_weight, se_weight=se_weight
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
        note="generated data, not Cityscapes: scenes of 16 classes" if sample else None,
    )
