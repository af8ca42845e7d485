"""Names of networks: what one may have meant, and timm where it is there."""

import difflib
from collections.abc import Sequence
from types import ModuleType


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name most like it, as the end of a message; empty where none is."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def timm_with(name: str) -> tuple[ModuleType, str]:
    """timm, and its own name of the network "timm:NAME". Raises ValueError where either is not there."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f'{name} needs timm: pip install "trainkit[timm]"') from error
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        raise ValueError(f"timm {timm.__version__} has no {short!r}{nearest(short, timm.list_models())}")
    return timm, short
