"""Segmentation of your own images: images/{train,val} and annotations/{train,val}, masks named as their images.

Masks are grey or palette PNGs that hold class ids from 0; ids given as ignored count nowhere. Other ids, such as 0 and
255, are given by --mask-values 0,255, and colours by --mask-colors. Parquet files, or a name on the Hub, with a column
of images and one of masks, do as well.

Source: settings of recipes/seg_ade20k.py, for images of any kind.

Launch: accelerate launch -m trainkit recipes/seg_folder.py --data my_images --classes road,car,sky

Hardware and time: `--model lraspp --backbone small` for 80 epochs of CamVid at 240x180: 16 minutes on 2 CPU cores.

Expected: depends on your images; CamVid as above: mIoU 0.585 (docs/results.md has the command).
"""

from functools import partial

from torch.optim import SGD

from trainkit import Recipe
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.folder import IGNORED, read_classes
from trainkit.data.datasets.mask_colors import read_mask_colors
from trainkit.data.datasets.open import label_maps
from trainkit.data.datasets.segmentation import read_mask_values
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.inference import Inference
from trainkit.models.segmentation import Segmenter, encoding_weight, has_aux, segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.tasks.segmentation import Loss, Segmentation, named_losses

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "lraspp", "backbone": "small", "pretrained": False, "epochs": 6, "lr": 0.05, "batch_size": 8,
          "base": 112, "crop": 88, "head": 1.0, "sync_batch_norm": False}  # fmt: skip


def recipe(
    data: str = "data/my_images",
    classes: str = "",
    ignore: tuple[int, ...] = (IGNORED,),
    label_shift: int = 0,
    mask_values: str | None = None,
    mask_colors: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    stream: int | None = None,
    model: Segmenter = "deeplabv3",
    backbone: str = "resnet50",
    pretrained: bool = True,
    epochs: float = 60,
    lr: float = 0.01,
    batch_size: int = 16,
    weight_decay: float = 1e-4,
    warmup_epochs: float = 0,
    base: int = 520,
    crop: int = 480,
    head: float = 10.0,
    aux_weight: float = 0.2,
    se_weight: float | None = None,
    channels: int = 512,
    loss: tuple[Loss, ...] = ("cross_entropy",),
    class_weights: tuple[float, ...] | None = None,
    photometric: bool = False,
    max_share: float | None = None,
    sync_batch_norm: bool = True,
    eval_window: tuple[int, int] | None = None,
    eval_crop: int | None = None,
    sample: bool = False,
) -> Recipe:
    """Own images with masks.

    Args:
        data: folder with images/train, images/val, annotations/train, annotations/val, or with parquet files, or a
            name on the Hub
        classes: how many, their names with commas between, or a text file with one name a line
        ignore: ids in the masks that count nowhere
        label_shift: added to the ids in the masks; -1 where they begin at 1 and 0 is to be ignored
        mask_values: the id of each class in the masks, in the order of the classes, such as 0,255; None: 0, 1, 2, ...
        mask_colors: of colour-coded masks: a text file with one `R G B name` a line, or voc or cityscapes; it says the
            classes too
        image_column: the column of images, in parquet files with several
        mask_column: the column of masks, in parquet files with several
        stream: read parquet files where they lie, so many row groups at a time, such as 16; None: download them first
        model: the network
        backbone: of torchvision's ResNets, "timm:" and a name of timm's, mobilenet_v3_large (with lraspp), or "small",
            which has no published weights and trains on a laptop
        pretrained: start the backbone from published ImageNet weights
        epochs: passes over the training images
        lr: learning rate of the backbone
        batch_size: images of one step, over all processes
        weight_decay: of every parameter
        warmup_epochs: of linear warm-up from 0
        base: long side of an image before the random scale of 0.5 to 2, and in evaluation
        crop: side of the training crop
        head: factor of the learning rate outside the backbone, when it is pretrained
        aux_weight: factor of the auxiliary head's loss, where the network has one
        se_weight: factor of the semantic-encoding loss of EncNet; None: 0.2 as published; 0 for no such head
        channels: width of the head, but for torchvision's fcn, deeplabv3 and lraspp
        loss: of the pixels: cross_entropy, focal, ohem, dice, lovasz, or several of them
        class_weights: of cross_entropy and focal, a number for each class; None: all alike
        photometric: distort brightness, contrast, saturation and hue of the training crops
        max_share: a crop is drawn again while one class has more than this share of it, such as 0.75; None: never
        sync_batch_norm: on several GPUs, batch norm over the whole batch
        eval_window: evaluate in windows of this side, so many pixels from one to the next, such as 480 320
        eval_crop: evaluate centre crops of this side, as older codes do; None for either: whole images
        sample: train a small network on generated scenes in the same layout, in under a minute
    """
    colors = None if mask_colors is None else read_mask_colors(mask_colors)
    values = None if mask_values is None else read_mask_values(mask_values)
    source, names = generated.mask_folder() if sample else (data, read_classes(classes, colors))
    num_classes = names if isinstance(names, int) else len(names)

    maps = partial(
        label_maps, source, classes=names, ignore=ignore, label_shift=label_shift, stream=stream,
        image_column=image_column, mask_column=mask_column, mask_values=values, mask_colors=colors,
    )  # fmt: skip
    val_data = maps("val", transform=eval_transform(base, eval_crop))
    train = train_transform(base, crop, photometric=photometric, max_share=max_share)
    se_weight = encoding_weight(model, se_weight)
    aux_weight = aux_weight if has_aux(model) else 0.0
    heads = {"aux": aux_weight > 0, "se": se_weight > 0, "channels": channels}
    network = segmenter(model, num_classes, backbone, pretrained, **heads)
    head = head if pretrained else 1.0
    return Recipe(
        task=Segmentation(
            names,
            aux_weight=aux_weight,
            se_weight=se_weight,
            loss=named_losses(loss, class_weights),
            raw_ids=val_data.raw_ids,
            palette=None if colors is None else colors.palette,
        ),
        model=network,
        train_data=partial(maps, "train", transform=train),
        val_data=val_data,
        optimizer=SGD(
            param_groups(network, lr, weight_decay, head), lr=lr, momentum=0.9, fused=True
        ),
        schedule=poly(0.9, warmup_epochs=warmup_epochs),
        epochs=epochs,
        batch_size=batch_size,
        inference=Inference.windows(eval_window),
        sync_batch_norm=sync_batch_norm,
        drop_last=True,
        note=f"generated data: scenes of {num_classes} classes in {source}" if sample else None,
    )
