"""EncNet on ADE20K, 150 classes.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding's train_dist.py trains
it: SGD 0.004 for 16 images, head x10, poly 0.9, 180 epochs, auxiliary and semantic-encoding loss 0.2 each.

Launch: accelerate launch -m trainkit recipes/seg_ade20k_encnet.py --data /path/to/data

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes pixAcc 80.1 %, mIoU 41.5 % for a ResNet-50 with
a deep stem, evaluated at scales 0.5 to 1.75, flipped too (`--backbone timm:resnet50d` is the nearest).
"""

from functools import partial
from pathlib import Path

from torch.optim import SGD

from trainkit import Recipe
from trainkit.data import sample as generated
from trainkit.data.ade20k import ADE20K
from trainkit.models.segmenters import Segmenter, segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.segmentation import Segmentation, eval_transform, train_transform

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.02, "batch_size": 8, "base": 112, "crop": 88,
          "head": 1.0, "channels": 64}  # fmt: skip


def recipe(
    data: Path = Path("data/ADEChallengeData2016"),
    model: Segmenter = "encnet",
    backbone: str = "resnet50",
    pretrained: bool = True,
    epochs: float = 180,
    lr: float = 0.004,
    batch_size: int = 16,
    weight_decay: float = 1e-4,
    base: int = 520,
    crop: int = 480,
    head: float = 10.0,
    aux_weight: float = 0.2,
    se_weight: float = 0.2,
    channels: int = 512,
    sample: bool = False,
) -> Recipe:
    """EncNet on ADE20K, 150 classes.

    Args:
        data: the unpacked ADEChallengeData2016.zip
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
        se_weight: factor of the semantic-encoding loss of EncNet; 0 for no such head
        channels: width of the head
        sample: train a small network on generated scenes, in under a minute
    """
    train, evaluation = train_transform(base, crop), eval_transform(base)
    if sample:
        data = generated.ade20k()
    val_data = ADE20K(data, "validation", evaluation)
    train_data = partial(ADE20K, data, "training", train)
    se = se_weight > 0 and model == "encnet"
    network = segmenter(model, len(ADE20K.classes), backbone, pretrained, aux_weight > 0, se, False, channels)
    return Recipe(
        task=Segmentation(
            ADE20K.classes,
            aux_weight=aux_weight,
            se_weight=se_weight if se else 0.0,
            palette=ADE20K.palette,
            raw_ids=ADE20K.raw_ids,
        ),
        model=network,
        train_data=train_data,
        val_data=val_data,
        optimizer=SGD(param_groups(network, lr, weight_decay, head), lr=lr, momentum=0.9, fused=True),
        schedule=poly(0.9),
        epochs=epochs,
        batch_size=batch_size,
        drop_last=True,
        note=f"generated data, not ADE20K: scenes of 16 of the 150 classes in {data}" if sample else None,
    )
