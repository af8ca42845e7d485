"""What was recorded of a network that is built again, for the functions that build networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Read = Callable[[], Mapping[str, Any] | None]

_READ: ContextVar[Read | None] = ContextVar("read", default=None)
_TAKES_CONFIG: ContextVar[bool] = ContextVar("takes_config", default=True)


@contextmanager
def recorded_networks(read: Read | None, configs: bool = True) -> Iterator[None]:
    """Context manager: a network that was built before is built as it was then.

    Of transformers it is built of the config it had, and nothing is looked up on the Hub or in a
    folder for it.

    Args:
        read: gives the "network" of model.json, or None; called where a network asks for it. None:
            all are built as they are asked for.
        configs: whether those of transformers are, too.
    """
    tokens = _READ.set(read), _TAKES_CONFIG.set(configs)
    try:
        yield
    finally:
        _READ.reset(tokens[0])
        _TAKES_CONFIG.reset(tokens[1])


def recorded_network() -> Mapping[str, Any] | None:
    """The "network" of model.json within `recorded_networks`; None where there is none."""
    read = _READ.get()
    return None if read is None else read()


def takes_config() -> bool:
    """Whether networks of transformers are built of what was recorded."""
    return _TAKES_CONFIG.get()
