"""Says where a network starts from random weights though published ones are asked for."""

from collections.abc import Mapping
from typing import Any

from trainkit.models.pretrained import SMALL, has_published_weights


def starting_weights(settings: Mapping[str, Any]) -> list[str]:
    """A line where these settings of a recipe ask for weights that there are not; or none."""
    model, backbone = settings.get("model"), settings.get("backbone")
    if settings.get("pretrained") is not True or not isinstance(model, str):
        return []
    if has_published_weights(model, backbone):
        return []
    return [f"{SMALL} has no published weights: it starts from random ones"]
