"""EncNet on Pascal-Context, 59 classes.

Source: Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, as PyTorch-Encoding's train_dist.py trains
it: SGD 0.001 for 16 images, head x10, poly 0.9, 80 epochs, auxiliary and semantic-encoding loss 0.2 each, with lateral
connections.

Launch: accelerate launch -m trainkit recipes/seg_pcontext.py --data /path/to/data

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes pixAcc 79.2 %, mIoU 51.0 % for a ResNet-50 with
a deep stem, evaluated at scales 0.5 to 1.75, flipped too.
"""

from functools import partial
from pathlib import Path

from torch.optim import SGD

from trainkit import Recipe
from trainkit.data import sample as generated
from trainkit.data.folder import MaskFolder
from trainkit.data.pcontext import PascalContext
from trainkit.models.segmenters import Segmenter, segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.segmentation import Segmentation, eval_transform, train_transform

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.02, "batch_size": 8, "base": 112, "crop": 88,
          "head": 1.0, "channels": 64}  # fmt: skip


def recipe(
    data: Path = Path("data/pcontext"),
    model: Segmenter = "encnet",
    backbone: str = "resnet50",
    pretrained: bool = True,
    epochs: float = 80,
    lr: float = 0.001,
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
    """EncNet on Pascal-Context, 59 classes.

    Args:
        data: folder with JPEGImages, trainval/ and the lists train.txt and val.txt (see trainkit/data/pcontext.py)
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
        data, _ = generated.mask_folder()
        train_data, val_data = (
            MaskFolder(data / "images" / name, data / "annotations" / name, len(PascalContext.classes), transform)
            for name, transform in (("train", train), ("val", evaluation))
        )
    else:
        val_data = PascalContext(data, "val", evaluation)
        train_data = partial(PascalContext, data, "train", train)
    se = se_weight > 0 and model == "encnet"
    network = segmenter(model, len(PascalContext.classes), backbone, pretrained, aux_weight > 0, se, True, channels)
    return Recipe(
        task=Segmentation(
            PascalContext.classes,
            aux_weight=aux_weight,
            se_weight=se_weight if se else 0.0,
            palette=PascalContext.palette,
            raw_ids=PascalContext.raw_ids,
        ),
        model=network,
        train_data=train_data,
        val_data=val_data,
        optimizer=SGD(param_groups(network, lr, weight_decay, head), lr=lr, momentum=0.9, fused=True),
        schedule=poly(0.9),
        epochs=epochs,
        batch_size=batch_size,
        drop_last=True,
        note=f"generated data, not Pascal-Context: scenes of 16 classes in {data}" if sample else None,
    )
