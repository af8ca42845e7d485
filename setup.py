"""What setup.cfg cannot say: README's links to files, absolute where an index shows it."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "https://github.com/OWNER/trainkit"
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def long_description() -> str:
    """README.md with absolute links."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return LINK.sub(rf"]({REPOSITORY}/blob/main/\1)", text)


setup(long_description=long_description())
