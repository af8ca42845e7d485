"""A training of a network of each family: every decoder, every type of transformers, classifiers.

Batch norm rests, as it sees the images of one process and micro-batch alone, and nothing is
dropped. Run as a script it trains those that are named, in the processes it is started in:

    python tests/helpers/families.py OUT NAME...         (or under torchrun)
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers

from helpers.hf_recipes import TINY, Larger, Odd, tiny
from helpers.toy_recipes import CLASSES, Images, recognition, segmentation
from trainkit import Options, Recipe, freeze, train
from trainkit.data.seeding import seed_host
from trainkit.models.recognition import fine_tuned
from trainkit.models.segmentation import auxiliary_weight, encoding_weight, has_aux, segmenter
from trainkit.optim import param_groups
from trainkit.tasks.segmentation import Segmentation

LR = 1e-3
SIDE = 64
# Decoder of segmentation_models_pytorch -> encoder; each decoder once, encoders of both libraries
DECODERS = {
    "unet": "resnet18",
    "unetplusplus": "timm:mobilenetv3_small_050",
    "fpn": "timm:regnety_002",
    "manet": "resnet18",
    "linknet": "resnet18",
    "pan": "timm:mobilenetv3_small_050",
    "deeplabv3plus": "resnet18",
    "segformer": "mit_b0",
    "dpt": "tu-vit_tiny_patch16_224",
}
# Our own -> backbone
OURS = {
    "fcn": "timm:resnet18",
    "deeplabv3": "timm:resnet18",
    "encnet": "small",
    "pspnet": "timm:resnet18",
    "upernet": "timm:convnext_atto",
    "lraspp": "mobilenet_v3_large",
}
# Type of transformers -> --model-args
CLASSIFIERS = {
    "vit": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 intermediate_size=32"
    " patch_size=8",
    "deit": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 intermediate_size=32"
    " patch_size=8",
    "clip": "vision_config.hidden_size=16 vision_config.num_hidden_layers=2"
    " vision_config.num_attention_heads=2 vision_config.intermediate_size=32"
    " vision_config.patch_size=8",
    "convnext": "hidden_sizes=8,8,16,16 depths=1,1,1,1 drop_path_rate=0",
    "swin": "embed_dim=8 depths=1,1 num_heads=1,2 window_size=2 drop_path_rate=0",
    "resnet": "embedding_size=8 hidden_sizes=8,8 depths=1,1 layer_type=basic",
    "dinov2": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 patch_size=8",
    "mobilenet_v2": "depth_multiplier=0.25 min_depth=4",
}
NAMED = (
    "resnet18", "mobilenet_v3_small", "timm:resnetv2_50d_gn", "timm:vit_tiny_patch16_224",
    "timm:convnext_atto", "timm:swin_tiny_patch4_window7_224", "timm:mobilevitv2_050",
    "timm:swinv2_tiny_window8_256", "timm:mixer_s32_224", "timm:efficientvit_b0",
    "timm:xcit_nano_12_p16_224",
)  # fmt: skip

Builder = Callable[[], nn.Module]


def _segmenter(name: str, backbone: str) -> Builder:
    return lambda: segmenter(name, CLASSES, backbone, False, channels=16)


def _classifier(name: str, arguments: str = "") -> Builder:
    words = arguments.split()
    return lambda: fine_tuned(name, CLASSES, False, [SIDE, SIDE], model_args=words)


DENSE: dict[str, Builder] = {
    **{f"{name} {body}": _segmenter(name, body) for name, body in DECODERS.items()},
    **{f"{name} {body}": _segmenter(name, body) for name, body in OURS.items()},
    **{f"hf:{kind} dense": (lambda kind=kind: tiny(kind)) for kind in TINY},
}
WHOLE: dict[str, Builder] = {
    **{f"hf:{kind}": _classifier(f"hf:{kind}", words) for kind, words in CLASSIFIERS.items()},
    **{name: _classifier(name) for name in NAMED},
}
FAMILIES = {**DENSE, **WHOLE}


def network(name: str) -> nn.Module:
    """The same in each call, without what differs between batches."""
    seed_host(0)
    built = FAMILIES[name]()
    for module in built.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            freeze(module)
        for probability in ("p", "drop_prob"):
            if isinstance(getattr(module, probability, None), float):
                setattr(module, probability, 0.0)
    return built


def recipe(name: str) -> Recipe:
    """One epoch of three steps; maps are evaluated at sides that no patch divides."""
    model = network(name)
    values = {
        "model": model,
        "optimizer": torch.optim.SGD(param_groups(model, LR, 1e-3), lr=LR, momentum=0.9),
        "batch_size": 6,
        "epochs": 1,
        "clip_norm": None,
    }
    if name in WHOLE:
        data = {"train_data": Images(14, size=SIDE), "val_data": Images(3, False, size=SIDE)}
        return recognition(**values, **data, mix=None)
    train_data, val_data = Larger(14, size=16), Odd(2, augment=False, size=16)
    if name.startswith("pan "):  # it halves a map of a sixteenth three times
        train_data.sides, val_data.sides = (128, 128), (128, 125)
    only = getattr(model, "image_size", None)
    if only is not None:
        train_data.sides = val_data.sides = only
    usual = 0.4 if has_aux(name.split()[0]) else 0.0
    task = Segmentation(
        CLASSES,
        aux_weight=auxiliary_weight(model, usual),
        se_weight=encoding_weight(name.split()[0], None),
    )
    return segmentation(**values, task=task, train_data=train_data, val_data=val_data)


def run(name: str, out: Path, **options) -> None:
    options = {"workers": 0, "log_every": 1, "report": False, "pictures": False, **options}
    train(recipe(name), Options(out=out, seed=3, **options))


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for each in names:
        run(each, Path(folder) / each)
