"""Telling the user's mistakes, which end in one message, from ours, which keep their traceback."""

import os
import re
import traceback
from pathlib import Path

from trainkit.limits import causes, limit_met

TOLD = (ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError)  # others are bugs


def what_to_tell(error: Exception, recipe: Path) -> str | None:
    """The one message that `error` ends in, also where a limit of the machine was met; None for a bug."""
    message = None if os.environ.get("TRAINKIT_TRACEBACK") else limit_met(error) or _nul_told(error)
    return users_mistake(error, recipe) if message is None and isinstance(error, TOLD) else message


def _nul_told(error: Exception) -> str | None:
    """The name with a NUL character that the system refused, from the innermost call that has it; else None."""
    if not (isinstance(error, ValueError) and "embedded null" in str(error)):
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, (str, Path)) and "\0" in str(value):
                return f"{str(value)!r} holds a NUL character, and no name of a file can: take it out"
    return None


def is_one_process_affair(error: Exception) -> bool:
    """Whether the other processes do not end by the same error, as all do before the first step.

    Reading an image is one process's affair, and so is what it lacks, or that it lost the others.
    """
    frames = {frame.name for each in causes(error) for frame in traceback.extract_tb(each.__traceback__)}
    return limit_met(error) is not None or isinstance(error, ConnectionError) or bool({"steps", "measure"} & frames)


def is_the_machines(error: Exception) -> bool:
    """Whether the machine failed, and not what the user gave it."""
    failed = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
    return failed or limit_met(error) is not None


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
    return text if _is_ours(innermost, recipe) else None


def refusing_call(error: Exception, recipe: Path) -> str | None:
    """Which library function, called from where, raised `error`; None where trainkit or the recipe itself did."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [_is_ours(frame.f_code.co_filename, recipe) for frame, _ in frames]
    if ours[-1]:
        return None
    number = len(ours) - ours[::-1].index(True)  # of the first frame that is the library's
    (caller, line), (called, _) = frames[number - 1 : number + 1]
    name = getattr(called.f_code, "co_qualname", called.f_code.co_name).removesuffix(".__init__")
    where = f"{Path(caller.f_code.co_filename).name}, line {line}"
    return f"{name} of {called.f_globals.get('__name__')}, called in {where}"


def _is_ours(file: str, recipe: Path) -> bool:
    """Whether a file is of trainkit, or lies beside the recipe."""
    path = Path(file).resolve()
    return path.is_relative_to(Path(__file__).resolve().parent) or path.parent == recipe.resolve().parent
