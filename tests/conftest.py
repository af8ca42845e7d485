"""Fixtures of all tests."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
    # generated data, and nothing that a test spoils reaches the user's own cache
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="trainkit-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

pytest.register_assert_rewrite("helpers")  # for comparisons that say what differs

from helpers.processes import Script  # noqa: E402


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images.

    Tests that want it are skipped where TRAINKIT_DATA does not name it.
    """
    if not os.environ.get("TRAINKIT_DATA"):
        pytest.skip(
            "TRAINKIT_DATA is not set: it names a folder with camvid/, cifar10/,"
            " ADEChallengeData2016/"
        )
    return Path(os.environ["TRAINKIT_DATA"]).resolve()


@pytest.fixture(autouse=True)
def no_script_outlives_its_test():
    """What a failed test leaves behind would keep pytest from ending."""
    yield
    while Script.begun:
        script = Script.begun.pop()
        if script.poll() is None:
            script.end()
