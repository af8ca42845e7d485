"""Says where a network starts from random weights though published ones are asked for."""

from collections.abc import Mapping
from typing import Any

SMALL = "small"  # networks and backbones of our own, which nobody published weights of


def starting_weights(settings: Mapping[str, Any]) -> list[str]:
    """A line where these settings of a recipe ask for weights that there are not; or none."""
    networks = settings.get("model"), settings.get("backbone")
    if settings.get("pretrained") is not True or SMALL not in networks:
        return []
    return ["small has no published weights: it starts from random ones"]
