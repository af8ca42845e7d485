"""Small recipes of mask classification; run as a script it trains some in its processes.

python tests/helpers/mask_recipes.py OUT NAME [NAME ...]        (or under torchrun)
"""

import sys
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers

from helpers.toy_recipes import CLASSES, Maps
from trainkit import Options, Recipe, train
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference
from trainkit.models.mask_networks import build_mask_network
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.tasks.mask_classification import MaskClassification

SIDE = 64
QUERIES = 5  # fewer than there are classes in some images
POINTS = 48


def config(kind: str, num_classes: int = CLASSES, **changes: Any) -> Any:
    """The configuration of a network that trains in a second; it has no dropout."""
    from transformers import AutoConfig

    of_both = {"num_labels": num_classes, "num_queries": QUERIES, "train_num_points": POINTS}
    if kind == "mask2former":
        body = AutoConfig.for_model(
            "swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            image_size=SIDE, drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        small = {
            "backbone_config": body, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
            "encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1,
            "decoder_layers": 3, "num_attention_heads": 2,
        }  # fmt: skip
    else:
        small = {
            "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_blocks": 2,
            "image_size": SIDE, "patch_size": 16, "num_register_tokens": 1,
            "num_upscale_blocks": 1,
        }  # fmt: skip
        if kind == "eomt_dinov3":
            small["intermediate_size"] = 32
    return AutoConfig.for_model(kind, **{**of_both, **small, **changes})


def masks(kind: str, **changes: Any) -> Recipe:
    """Images of 64 pixels in windows of that size; EoMT's masked attention fades."""
    network = build_mask_network(config(kind))
    values = {
        "task": MaskClassification(CLASSES, num_queries=QUERIES, num_points=POINTS),
        "model": network,
        "train_data": Maps(11, size=SIDE),
        "val_data": Maps(3, augment=False, size=SIDE + 8),
        "optimizer": torch.optim.SGD(param_groups(network, 0.02, 1e-4), lr=0.02, momentum=0.9),
        "schedule": poly(),
        "epochs": 2,
        "batch_size": 4,
        "clip_norm": 0.5,
        "ema": 0.9,
        "inference": Inference(window=SIDE, stride=32),
    }
    return Recipe(**{**values, **changes})


# Name -> type and options
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask2former": ("mask2former", {}),
    "mask2former-1": ("mask2former", {"micro_batch": 1}),
    "eomt": ("eomt", {}),
    "eomt-1": ("eomt", {"micro_batch": 1}),
    "eomt_dinov3": ("eomt_dinov3", {}),
    "eomt_dinov3-1": ("eomt_dinov3", {"micro_batch": 1}),
}


def run(name: str, out: Path, **options: Any) -> None:
    """Train one of RUNS in `out`."""
    kind, own = RUNS[name]
    seed_host(5)
    train(
        masks(kind),
        Options(**{"out": out, "seed": 5, "workers": 0, "log_every": 1, **own, **options}),
    )


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for each in names:
        run(each, Path(folder) / each)
