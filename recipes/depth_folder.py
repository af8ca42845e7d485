"""A number for each pixel, such as depth or height, on your own images with maps of numbers.

The layout is images/{train,val} and depth/{train,val}, maps named as their images: PNG of 16 bits,
TIFF or npy. NYU Depth v2 in this layout, with PNG in millimetres, by the protocol of Eigen et al.:
--scale 0.001 --limits 0.001 10 --eval-region nyu_eigen.

Source: Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep Network,
NeurIPS 2014, for the loss and the metrics; settings of recipes/seg_folder.py else.

Launch: trainkit depth_folder --data my_images --scale 0.001

On several processes: accelerate launch -m trainkit depth_folder ...

Hardware and time: depends on your images.

Expected: depends on your images; not yet measured on a public set.
"""

from dataclasses import asdict, replace
from functools import partial
from typing import Literal

from trainkit import Recipe
from trainkit.data.dataset_info import LazyDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.value_maps import ValueMapSource
from trainkit.data.transforms.dense_regression import train_transform
from trainkit.data.transforms.segmentation import eval_transform
from trainkit.inference import Inference
from trainkit.losses.base import Criterion
from trainkit.losses.dense_regression import L1, Huber, ScaleInvariantLog
from trainkit.metrics.dense_regression import Region
from trainkit.models.outputs import check_only_size
from trainkit.models.pretrained import has_published_weights
from trainkit.models.segmentation import segmenter
from trainkit.settings import OptimizerSettings, OrientationSettings, ScheduleSettings
from trainkit.tasks.dense_regression import DenseRegression

# What --sample changes; a setting given beside it still wins.
SAMPLE = {
    "model": "lraspp",
    "backbone": "small",
    "pretrained": False,
    "epochs": 6,
    "lr": 0.003,
    "batch_size": 8,
    "long_side": 112,
    "crop": 88,
    "scale": 0.001,
    "limits": (0.1, 20.0),
}


def recipe(
    data: str = "data/my_images",
    scale: float = 1.0,
    invalid: float | None = 0.0,
    limits: tuple[float, float] | None = None,
    image_column: str | None = None,
    map_column: str | None = None,
    split: SplitSettings = SplitSettings(),
    model: str = "deeplabv3",
    backbone: str = "resnet50",
    pretrained: bool = True,
    batch_size: int = 16,
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=1e-4, weight_decay=0.01, optimizer="adamw", head_lr_mult=10.0
    ),
    schedule: ScheduleSettings = ScheduleSettings(epochs=60, schedule="poly", warmup_epochs=1),
    loss: Literal["silog", "l1", "huber"] = "silog",
    output: Literal["log", "linear"] = "log",
    variance_focus: float = 0.5,
    delta: float = 1.0,
    metrics: tuple[str, ...] = (),
    long_side: int = 640,
    crop: int = 480,
    photometric: bool = False,
    orientation: OrientationSettings = OrientationSettings(),
    eval_window: tuple[int, int] | None = None,
    eval_flip: bool = False,
    eval_region: Region | None = None,
    median_scaling: bool = False,
    eval_batch_size: int = 4,
    sample: bool = False,
) -> Recipe:
    """Own images with depth, height or other numbers.

    Args:
        data: folder with images/train, images/val, depth/train and depth/val (or height, maps,
            targets); with val_share one with images/ and depth/, or a CSV or JSONL list of path and
            depth
        scale: value of one step of the stored numbers, such as 0.001 for millimetres in metres;
            predictions are written as PNG in the same steps
        invalid: stored number that says that nothing is known; None: none but NaN
        limits: least and largest value; targets beyond count nowhere, predictions are kept within
        image_column: of paths, in a list
        map_column: of the maps' paths, in a list
        model: the network, see seg_folder; on a laptop: --model lraspp --backbone small
        backbone: see seg_folder
        pretrained: start the backbone from published ImageNet weights
        lr: peak learning rate of the backbone
        head_lr_mult: factor of the learning rate outside the backbone, when it is pretrained
        batch_size: images of one step, over all processes
        loss: silog: scale-invariant error of logarithms; l1; huber
        output: log: the network gives the logarithm of the value, which is positive then; linear:
            the value, for heights and others that may be negative
        variance_focus: of silog, in [0, 1]; 0: the mean square of the logarithms' differences
        delta: of huber, in the unit of the values
        metrics: further ones of torchmetrics, such as torchmetrics:R2Score or
            torchmetrics:MeanAbsolutePercentageError
        long_side: long side of an image before the random scale of 1 to 1.5, and in evaluation
        crop: side of the crops in training
        photometric: distort brightness, contrast, saturation and hue of the crops
        eval_window: side and stride of windows in evaluation, such as 480 320; None: whole images
        eval_flip: also predict the flipped image in evaluation, and average
        eval_region: part of each map that is measured: nyu_eigen, rows 45 to 470 and columns 41 to
            600 of NYU Depth v2; kitti_eigen or kitti_garg, of KITTI; None: all of it
        median_scaling: measure predictions times median(target) / median(prediction) of each image,
            for networks that do not know the scale
        eval_batch_size: images of one size in a forward pass of an evaluation, per process
        sample: train a small network on generated scenes in the same layout, in under a minute
    """
    source = generated.depth_folder() if sample else data
    maps = ValueMapSource(source, image_column, map_column, scale, invalid, split)
    losses: dict[str, Criterion] = {
        "silog": ScaleInvariantLog(variance_focus),
        "l1": L1(),
        "huber": Huber(delta),
    }
    pretrained = pretrained and has_published_weights(model, backbone)
    network = segmenter(model, 1, backbone, pretrained, aux=False, se=False, image_size=crop)
    check_only_size(network, crop, eval_window[0] if eval_window else None)
    inference = Inference.windows(eval_window)
    if eval_flip:
        inference = replace(inference or Inference(), flip=True)
    optimizer = optimizer if pretrained else replace(optimizer, head_lr_mult=1.0)
    train = train_transform(long_side, crop, photometric=photometric, **asdict(orientation))
    return Recipe(
        task=DenseRegression(
            losses[loss], output, limits, scale, metrics, eval_region, median_scaling
        ),
        model=network,
        train_data=LazyDataset(partial(maps.open, "train", train)),
        val_data=maps.open("val", eval_transform(long_side)),
        **optimizer.build(network, decay_vectors=False),
        **schedule.build(),
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        inference=inference,
        note=f"generated data: scenes with depth in {source}" if sample else None,
    )
