"""Loads trained models by the files beside their weights, without recipe and dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainkit.data.bands import PixelSettings
from trainkit.engine.task_module import set_step
from trainkit.inference import Inference
from trainkit.models.rebuild import transform_from
from trainkit.prediction.model_info import ModelInfo
from trainkit.storage.lookup import read_thresholds, trained_steps
from trainkit.storage.stored_model import StoredModel, bound
from trainkit.storage.weights import take_weights


class Source(StoredModel):
    """A trained model that predictions are made with."""

    def info(self, trust_recipe: bool = False) -> ModelInfo:
        """The model, with random weights, and what belongs to it.

        Raises:
            UserError: model.json lacks something, or the network is of a recipe from elsewhere, and
                `trust_recipe` is false; or its weights are too few for it.
        """
        found = self.known(self.lacks)
        network, task = self.network(trust_recipe), self.task()
        seen = found["inference"]
        return ModelInfo(
            model=network,
            task=task,
            transform=transform_from(found),
            mean=found["mean"],
            std=found["std"],
            pixels=PixelSettings(found.get("channels", 3), found.get("bits", 8)),
            upright=found["upright"],
            inference=None if seen is None else _inference_from(seen),
            batch_size=found["batch_size"],
            thresholds=read_thresholds(task, self.run, self.weights),
        )


def load(
    source: str | Path, *, trust_recipe: bool = False, device: str | torch.device = "cpu"
) -> tuple[nn.Module, ModelInfo]:
    """A trained model, ready to predict, and what belongs to it.

        model, info = trainkit.load("runs/seg_folder")
        info.predict("my_photos")

    Neither the recipe nor its data is needed, and no published weights are fetched.

    Args:
        source: a run's folder, of which the best checkpoint is taken, a checkpoint, a folder that
            `trainkit push` wrote, or the name of a model on the Hugging Face Hub.
        trust_recipe: run code that was not trained here; needed where its network is of its
            recipe's own.
        device: where the model goes.

    Returns:
        The network in evaluation mode, with EMA weights where the run has them; and a `ModelInfo`:
        `classes`, `preprocess(image)`, `predict(images)`.

    Raises:
        MissingFileError: nothing is there.
        UserError: the network or its task cannot be built without the recipe, or the task changes
            with the step, which is not known of these weights.
    """
    found = Source.at(Path(source))
    info = found.info(trust_recipe)
    take_weights(info.model, found.weights)
    set_step(info.task, info.model, trained_steps(info.task, found.run, found.weights))
    info.model.to(device).eval()
    return info.model, info


def _inference_from(described: Mapping[str, Any]) -> Inference:
    arguments = bound(Inference, described)
    return Inference(**{**arguments, "scales": tuple(arguments["scales"])})
