"""Recipes with a dense head on a tiny vision transformer of timm, or on one of its pyramids.

HEAD is linear, upernet, dpt, linear4 (on the last four blocks), or maxvit (UPerNet on a network for
images of one size, evaluated in windows).

Run as a script it trains one of them in the processes it is started in:

    python tests/helpers/vit_recipes.py OUT HEAD         (or under torchrun)
"""

import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers

from helpers.hf_recipes import Larger, Odd
from helpers.toy_recipes import CLASSES, segmentation
from trainkit import Options, Recipe, freeze, train
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference
from trainkit.models.segmentation import segmenter
from trainkit.settings import OptimizerSettings
from trainkit.tasks.segmentation import Segmentation

BACKBONE = "timm:test_vit"  # patches of 16


def network(head: str) -> nn.Module:
    """The same in each call."""
    seed_host(0)
    name = {"linear4": "linear", "maxvit": "upernet"}.get(head, head)
    body = "timm:test_maxvit" if head == "maxvit" else BACKBONE
    return segmenter(
        name,
        CLASSES,
        body,
        pretrained=False,
        channels=16,
        out_indices=(-4, -3, -2, -1) if head == "linear4" else None,
        image_size=64,
    )


def recipe(head: str, model: nn.Module | None = None, **settings) -> Recipe:
    """Two steps an epoch; evaluated on images of 67 x 93."""
    model = network(head) if model is None else model
    without_aux = head in ("linear", "linear4", "dpt")
    windows = {"inference": Inference(window=64, stride=40)} if head == "maxvit" else {}
    given = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "head_lr_mult": 2.0,
        "layer_decay": 0.8,
        "ema": 0.9,
        **settings,
    }
    return segmentation(
        **{
            "task": Segmentation(CLASSES, aux_weight=0.0 if without_aux else 0.4),
            "model": model,
            "train_data": Larger(8),
            "val_data": Odd(3, augment=False),
            "batch_size": 4,
            "epochs": 2,
            **windows,
            **OptimizerSettings(**given).build(model),
        }
    )


def without_norms(head: str) -> Recipe:
    """Batch norm rests, as it sees the images of one process and micro-batch alone; no dropout.

    One epoch of three steps; dpt, whose head is wide, on small images.
    """
    model = network(head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            freeze(module)
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    # Adam makes much of the rounding of gradients near 0; FSDP takes no fused SGD on the CPU
    built = recipe(head, model, optimizer="sgd:fused=False", lr=0.01)
    train_data, val_data = Larger(14), Odd(2 if head == "dpt" else 3, augment=False)
    if head == "dpt":
        train_data.sides, val_data.sides = (32, 32), (29, 45)
    return replace(built, train_data=train_data, val_data=val_data, batch_size=6, epochs=1)


def run(built: Recipe, out: Path, **options) -> None:
    options = {"workers": 0, "log_every": 1, "report": False, "pictures": False, **options}
    train(built, Options(out=out, seed=3, **options))


if __name__ == "__main__":
    run(without_norms(sys.argv[2]), Path(sys.argv[1]))
