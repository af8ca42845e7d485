"""Telling the user's mistakes, which end in one message, from ours, which keep their traceback."""

import os
import re
import traceback
from pathlib import Path


def users_mistake(error: Exception, recipe: Path) -> str | None:
    """What to tell the user; None where the error is not one that trainkit or the recipe raised on purpose.

    On purpose: the innermost frame is theirs. The same goes for an error from a worker process, whose
    traceback arrives as text.
    """
    if os.environ.get("TRAINKIT_TRACEBACK"):
        return None
    text = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        innermost = re.findall(r'File "([^"]+)", line \d+', text)[-1]
        text = re.split(r"^[\w.]+Error: ", text, flags=re.MULTILINE)[-1].strip()
    else:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    raised_in = Path(innermost).resolve()
    ours = raised_in.is_relative_to(Path(__file__).resolve().parent) or raised_in.parent == recipe.resolve().parent
    return text if ours else None
