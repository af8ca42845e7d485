"""Rebuilds networks and evaluation transforms from model.json, without running a recipe."""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from trainkit.data.transforms import recognition as recognition_transforms
from trainkit.data.transforms import segmentation as segmentation_transforms
from trainkit.errors import UserError
from trainkit.models.recognition import classifier, fine_tuned
from trainkit.models.recorded import recorded_networks
from trainkit.models.segmentation import segmenter
from trainkit.models.small import small_fcn, small_lraspp
from trainkit.settings.rebuildable import is_rebuildable

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "recognition.classifier": classifier,
    "recognition.fine_tuned": fine_tuned,
    "segmentation.segmenter": segmenter,
    "small.small_fcn": small_fcn,
    "small.small_lraspp": small_lraspp,
}
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "recognition.eval_transform": recognition_transforms.eval_transform,
    "segmentation.eval_transform": segmentation_transforms.eval_transform,
}


def network_from(model_json: Mapping[str, Any], recipe: ModuleType | None = None) -> nn.Module:
    """The network that model.json describes, with random weights; published ones are not fetched.

    Args:
        model_json: what `trainkit.storage.model_json.read_model_json` gives.
        recipe: the file that model.json names where a recipe has a network of its own, loaded; its
            code is run.

    Raises:
        UserError: nothing says how the network was built, or the recipe's file is needed and not
            given.
    """
    network = model_json["network"]
    if network is None:
        raise UserError(
            f"model.json does not say how {model_json['type']} was built: it is none of"
            " trainkit.models, and the recipe has no function `network` with @rebuildable. Give"
            " the recipe"
        )
    arguments = dict(network["arguments"])
    if "pretrained" in arguments:  # the weights come from the checkpoint
        arguments["pretrained"] = False
    if "lora" in arguments:  # its adapters are merged into the weights that are loaded
        arguments["lora"] = None
    if network["recipe"] is None:
        return _built(_function(NETWORKS, network["function"]), network, arguments)
    function = getattr(recipe, network["function"], None)
    if function is None:
        raise UserError(
            f"the network was built by `{network['function']}` in {network['recipe']}, a recipe's"
            " own code: give that file"
        )
    if not is_rebuildable(function):
        raise UserError(
            f"model.json names `{network['function']}` in {network['recipe']}, which builds no"
            " network that can be rebuilt: it has no @rebuildable"
        )
    return _built(function, network, arguments)


def transform_from(model_json: Mapping[str, Any]) -> Callable | None:
    """The evaluation transform that model.json describes; None where images stay as they are read.

    Raises:
        UserError: it is none of trainkit's.
    """
    transform = model_json["transform"]
    if transform is None or transform.get("recipe") is not None:
        raise UserError(
            "model.json does not say what an evaluation makes of an image: it is none of"
            " trainkit.data.transforms. Give the recipe"
        )
    if transform["function"] == "as_stored":
        return None
    function = _function(TRANSFORMS, transform["function"])
    return _built(function, transform, transform["arguments"])


def _built(function: Callable, described: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """What the function gives. Raises UserError where it does not take the arguments."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"model.json gives {described['function']} other arguments than it takes ({error}):"
            " take the version of trainkit that wrote it, or the recipe's file that belongs to it"
        ) from error
    with recorded_networks(None):  # it has all arguments that it had
        return function(**arguments)


def _function(known: Mapping[str, Callable], name: str) -> Callable:
    if name not in known:
        raise UserError(
            f"model.json names {name!r}, which this trainkit does not have; it has"
            f" {', '.join(known)}. Take the version of trainkit that wrote it"
        )
    return known[name]
