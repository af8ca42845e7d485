"""Folders with a trained model, as `trainkit push` writes them, without a training."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from helpers.toy_recipes import CLASSES, recognition, segmentation
from trainkit.models.recognition import classifier
from trainkit.models.segmentation import segmenter
from trainkit.optim import param_groups
from trainkit.storage.model_json import model_json
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation


def write_teacher(
    folder: Path,
    dense: bool = False,
    seed: int = 1,
    classes=CLASSES,
    any_number: bool = False,
    **changes,
) -> Path:
    """A small network with random weights and statistics; `changes`: fields of its recipe.

    With `any_number` an image or a pixel is of any number of classes.
    """
    torch.manual_seed(seed)
    num_classes = classes if isinstance(classes, int) else len(classes)
    if dense:
        network: nn.Module = segmenter("lraspp", num_classes, "small", pretrained=False)
    else:
        network = classifier("small", num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    build, task = (segmentation, Segmentation) if dense else (recognition, Recognition)
    if any_number:
        task = MultiLabelSegmentation if dense else MultiLabel
    optimizer = torch.optim.SGD(param_groups(network, 0.1, 0.0), lr=0.1)
    recipe = build(**{"task": task(classes), "model": network, "optimizer": optimizer, **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(model_json(recipe)))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder
