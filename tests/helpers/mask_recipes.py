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
from trainkit.models.hf_config import found
from trainkit.models.mask_networks import finish_mask_network, mask_network_class
from trainkit.models.segmentation import segmenter
from trainkit.optim import param_groups
from trainkit.schedules import poly
from trainkit.tasks.mask_classification import MaskClassification

SIDE = 64
QUERIES = 5  # fewer than there are classes in some images
POINTS = 48


# Type of transformers -> --model-args of a network that trains in a second, without dropout
OF_ALL = f"num_queries={QUERIES} train_num_points={POINTS}"
VIT = (
    f"{OF_ALL} hidden_size=16 num_hidden_layers=4 num_attention_heads=2 num_blocks=2"
    f" image_size={SIDE} patch_size=16 num_register_tokens=1 num_upscale_blocks=1"
)
TINY = {
    "mask2former": f"{OF_ALL} backbone_config.embed_dim=8 backbone_config.depths=1,1,1,1"
    " backbone_config.num_heads=1,1,2,2 backbone_config.window_size=2"
    f" backbone_config.image_size={SIDE} backbone_config.drop_path_rate=0"
    " backbone_config.out_features=stage1,stage2,stage3,stage4"
    " feature_size=32 mask_feature_size=32 hidden_dim=32 encoder_feedforward_dim=16"
    " dim_feedforward=16 encoder_layers=1 decoder_layers=3 num_attention_heads=2",
    "eomt": VIT,
    "eomt_dinov3": f"{VIT} intermediate_size=32",
}


def config(kind: str, num_classes: int = CLASSES, **changes: Any) -> Any:
    """The configuration of the tiny network of a type."""
    settings = found(f"hf:{kind}", TINY[kind].split()).config
    for name, value in {"num_labels": num_classes, **changes}.items():
        setattr(settings, name, value)
    return settings


def built(settings: Any) -> Any:
    """The network of a configuration, with random weights."""
    network = mask_network_class(settings.model_type)(settings)
    finish_mask_network(network)
    return network


def masks(kind: str, **changes: Any) -> Recipe:
    """Images of 64 pixels in windows of that size; EoMT's masked attention fades."""
    network = segmenter(f"hf:{kind}", CLASSES, pretrained=False, model_args=TINY[kind].split())
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
