"""Tiny networks of transformers, and recipes with them.

Run as a script it trains one of them in the processes it is started in:

    python tests/helpers/hf_recipes.py OUT TYPE          (or under torchrun)
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from helpers.toy_recipes import CLASSES, Maps, segmentation
from trainkit import Options, Recipe, freeze, train
from trainkit.models.segmentation import auxiliary_weight, segmenter
from trainkit.optim import param_groups
from trainkit.tasks.segmentation import Segmentation

LR = 1e-3
VIT = "hidden_size=16 num_hidden_layers=4 num_attention_heads=2 intermediate_size=32"
# Type of transformers -> --model-args
TINY = {
    "beit": f"{VIT} image_size=32 patch_size=8 out_indices=1,2,3,4 pool_scales=1,2"
    " use_relative_position_bias=true drop_path_rate=0",
    "data2vec-vision": f"{VIT} image_size=32 patch_size=8 out_indices=1,2,3,4 pool_scales=1,2"
    " use_relative_position_bias=true drop_path_rate=0",
    "dpt": f"{VIT} image_size=32 backbone_out_indices=0,1,2,3 neck_hidden_sizes=8,8,16,16"
    " fusion_hidden_size=16 semantic_classifier_dropout=0",
    "mobilenet_v2": "depth_multiplier=0.25 min_depth=4 classifier_dropout_prob=0",
    "mobilevit": "hidden_sizes=16,24,32 neck_hidden_sizes=8,8,16,16,24,24,32 num_attention_heads=2"
    " aspp_out_channels=16 aspp_dropout_prob=0 hidden_dropout_prob=0 classifier_dropout_prob=0",
    "mobilevitv2": "width_multiplier=0.25 aspp_out_channels=16 aspp_dropout_prob=0"
    " classifier_dropout_prob=0",
    "sapiens2": "hidden_size=32 num_hidden_layers=2 num_attention_heads=2 patch_size=8"
    " intermediate_size=32 num_key_value_attention_heads=2 pos_embed_rescale=none"
    " head_config.upsample_out_channels=[16] head_config.conv_out_channels=[16]",
    "segformer": "hidden_sizes=8,8,16,16 depths=1,1,1,1 num_attention_heads=1,1,2,2"
    " decoder_hidden_size=16 drop_path_rate=0 classifier_dropout_prob=0",
    "tipsv2_dpt": "backbone_config.hidden_size=16 backbone_config.num_hidden_layers=4"
    " backbone_config.num_attention_heads=2 backbone_config.image_size=28"
    " backbone_config.out_indices=1,2,3,4 backbone_config.reshape_hidden_states=false"
    " neck_hidden_sizes=8,8,16,16 fusion_hidden_size=16",
    "upernet": "backbone_config.embedding_size=8 backbone_config.hidden_sizes=8,8,16,16"
    " backbone_config.depths=1,1,1,1 backbone_config.layer_type=basic"
    " backbone_config.out_features=stage1,stage2,stage3,stage4 hidden_size=16"
    " auxiliary_channels=8 pool_scales=1,2",
}


def tiny(kind: str, num_classes: int = CLASSES, **changes) -> nn.Module:
    """The tiny network of a type, the same in each call."""
    torch.manual_seed(0)
    arguments = TINY[kind].split()
    return segmenter(f"hf:{kind}", num_classes, pretrained=False, model_args=arguments, **changes)


class Larger(Maps):
    """The images and maps of `Maps`, enlarged to 64 x 64, in evaluation to odd sides."""

    sides = (64, 64)

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        height, width = self.sides
        image = image.repeat_interleave(8, 1).repeat_interleave(8, 2)
        target = target.repeat_interleave(8, 0).repeat_interleave(8, 1)
        return image[:, :height, :width], target[:height, :width]


class Odd(Larger):
    sides = (67, 93)


def recipe(kind: str, num_images: int = 8, **changes) -> Recipe:
    """Two steps an epoch; evaluated at sides that no patch divides, where the type takes those."""
    network = tiny(kind)
    groups = param_groups(network, LR, 1e-3, head_lr_mult=2.0)
    only = getattr(network, "image_size", None)
    train_data, val_data = Larger(num_images), Odd(3, augment=False)
    if only is not None:
        train_data.sides = val_data.sides = only
    values = {
        "task": Segmentation(CLASSES, aux_weight=auxiliary_weight(network, 0.2)),
        "model": network,
        "optimizer": torch.optim.SGD(groups, lr=LR, momentum=0.9),
        "train_data": train_data,
        "val_data": val_data,
        "batch_size": 4,
        "epochs": 2,
        "ema": 0.9,
        "clip_norm": None,
    }
    return segmentation(**{**values, **changes})


def without_norms(kind: str) -> Recipe:
    """Batch norm rests: it sees the images of one process and micro-batch alone."""
    built = recipe(kind, num_images=14, batch_size=6)
    for module in built.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            freeze(module)
    groups = param_groups(built.model, LR, 1e-3, head_lr_mult=2.0)
    return replace(built, optimizer=torch.optim.SGD(groups, lr=LR, momentum=0.9))


def run(kind: str, out: Path, **options) -> None:
    options = {"workers": 0, "log_every": 1, "report": False, "pictures": False, **options}
    train(without_norms(kind), Options(out=out, seed=3, **options))


if __name__ == "__main__":
    run(sys.argv[2], Path(sys.argv[1]))
