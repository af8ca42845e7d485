"""Cases of parametrised tests: which are nightly, and which are to run."""

from collections.abc import Iterable
from typing import Any

import pytest


def at_night(*values: Any, day: Iterable[Any]) -> list[Any]:
    """Those of the suite, and the others marked nightly."""
    return [
        value if value in day else pytest.param(value, marks=pytest.mark.nightly)
        for value in values
    ]


def collected(request: pytest.FixtureRequest, argument: str = "name") -> list[str]:
    """Values of an argument in the collected tests of the module that asks, each once.

    So a fixture prepares for one case, or the gate's, no more than they need.
    """
    tests = [item for item in request.session.items if item.path == request.path]
    values = (test.callspec.params.get(argument) for test in tests if hasattr(test, "callspec"))
    return list(dict.fromkeys(value for value in values if value is not None))
