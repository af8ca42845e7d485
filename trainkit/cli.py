"""Which command it is, and the exit code it ends with; what a command does is in commands/."""

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from trainkit import __version__
from trainkit.distributed.launcher import end_with_launcher, faulty_variable, rank
from trainkit.errors import CommandFailed, is_one_process_affair, is_the_machines, what_to_tell
from trainkit.streams import keep_standard_streams

HELP = """\
trainkit trains a recipe, a Python file with a function `recipe(...)`, on one loop.

  trainkit RECIPE [--setting value ...]                 train it, or go on where it stopped
  trainkit evaluate RECIPE --checkpoint PATH            measure a run, a checkpoint or a weights file
  trainkit check RECIPE [--setting value ...]           try it on three batches, and forecast what it takes
  trainkit doctor RECIPE [--setting value ...]          read all its data once, and tell what is wrong with it
  trainkit predict RECIPE --checkpoint PATH IMAGES ...  --out FOLDER
                                                        predictions of images, and of folders with images
  trainkit export RECIPE --checkpoint PATH --out FILE   weights, a torch.export program or ONNX
  trainkit push RUN OWNER/NAME                          weights, recipe, figures and a model card, to the Hub
  trainkit replay RUN                                   run a step again whose loss was no number
  trainkit RECIPE --help                                its settings and the options of a run

On several processes or with another precision: accelerate launch -m trainkit RECIPE ...
Recipes to start from are in recipes/; `--sample` runs any of them on generated data in under a minute.
"""
COMMANDS = ("train", "check", "doctor", "evaluate", "predict", "export", "push", "replay")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. 2: something to be set right by the user, 1: the machine; told in one message.

    130 after Ctrl-C, whatever it comes into.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv is None:  # a process of its own
            keep_standard_streams(told=not {"-h", "--help"} & set(words))
        return _run(words)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C (SIGINT)", code=128 + signal.SIGINT)
    finally:
        if argv is None:  # a second Ctrl-C ends it at once, and says nothing
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(words: list[str]) -> int:
    command = words.pop(0) if words[:1] and words[0] in COMMANDS else "train"
    if words[:1] in (["--help"], ["-h"]):
        sys.stdout.write(HELP)
        return 0
    if words == ["--version"]:
        sys.stdout.write(f"trainkit {__version__}\n")
        return 0
    end_with_launcher()
    if fault := faulty_variable():
        return _fail(fault, from_all=True)
    if not words or words[0].startswith("-"):
        what, file = ("run", "RUN") if command in ("push", "replay") else ("recipe", "RECIPE")
        return _fail(
            f"which {what}? `trainkit {command} {file} ...` takes it first; see trainkit --help"
        )
    try:
        module = import_module(f"trainkit.commands.{command}")
        return module.run(Path(words[0]), words[1:])
    except CommandFailed as error:
        return _fail(str(error), code=1)
    except Exception as error:
        message = what_to_tell(error, Path(words[0]))
        if message is None:
            raise
        return _fail(
            message, from_all=is_one_process_affair(error), code=1 if is_the_machines(error) else 2
        )


def _fail(message: str, from_all: bool = False, code: int = 2) -> int:
    """Report it once, in the main process, or with `from_all` in whichever it happened; the exit code."""
    number = rank()
    if number == 0 or from_all:
        from trainkit.display import error

        error(message if number == 0 else f"process {number}: {message}")
    return code
