"""Chooses the command and the exit code; what a command does is in commands/."""

import difflib
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from trainkit import __version__
from trainkit.commands import COMMANDS
from trainkit.display.streams import keep_standard_streams
from trainkit.distributed.launcher import end_with_launcher, faulty_variable, rank
from trainkit.errors import exit_code_of, is_of_one_process, report_of

HELP = """\
trainkit trains a recipe, a Python file with a function `recipe(...)`, on one loop.

  trainkit RECIPE [--setting value ...]            train it, or resume where it stopped
  trainkit check RECIPE [--setting value ...]      try it on three batches, and estimate its cost
  trainkit audit RECIPE [--setting value ...]      train a few steps again and compare every bit
  trainkit doctor RECIPE [--setting value ...]     read all its data once, and report its faults
  trainkit doctor FOLDER                           what images it holds, and how to train on them
  trainkit evaluate RUN                            measure a run on the validation images
  trainkit report RUN [RUN ...]                    what a run did, or what runs differ in: HTML
  trainkit predict RUN IMAGES ... --out FOLDER     predictions of images, and of folders with images
  trainkit export RUN --out FILE                   weights, a torch.export program or ONNX
  trainkit push RUN OWNER/NAME                     upload weights, recipe and results to the Hub
  trainkit replay RUN                              run a step again whose loss was not finite
  trainkit recipes                                 the recipes that come with trainkit
  trainkit new RECIPE FILE                         a copy of a recipe, to change
  trainkit COMMAND --help                          the options of a command
  trainkit RECIPE --help                           the settings of a recipe and the options of a run

RECIPE is a file, or the name of one of `trainkit recipes`, such as seg_folder; `--sample` runs
any of them on generated data in under a minute. RUN is the folder of a run, a checkpoint in it,
a folder that push wrote, or the name of a model on the Hugging Face Hub (owner/name). For bare
weights: trainkit evaluate RECIPE --weights FILE, and so for predict and export.

On several processes or with another precision: accelerate launch -m trainkit RECIPE ...
"""
HELP_FLAGS = (["--help"], ["-h"])
FLAGS = ("--help", "--version")  # that come first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and report its errors, each in one message.

    Args:
        argv: words of the command line after the program's name; None for those of this process.

    Returns:
        The exit code: 0 done, 1 the machine failed, 2 something for the user to set right, 130
        after Ctrl-C, wherever it arrives.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv is None:  # a process of its own
            keep_standard_streams(reported=not {"-h", "--help"} & set(words))
        return _run(words)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C (SIGINT)", code=128 + signal.SIGINT)
    finally:
        if argv is None:  # a second Ctrl-C ends it at once, and says nothing
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(words: list[str]) -> int:
    if not words or words[:1] in HELP_FLAGS:
        sys.stdout.write(HELP)
        return 0
    if words == ["--version"]:
        sys.stdout.write(f"trainkit {__version__}\n")
        return 0
    # also a file that is called like a command
    named = bool(words) and words[0] in COMMANDS
    command = words.pop(0) if named else "train"
    if named and words[:1] in HELP_FLAGS:
        from trainkit.commands.arguments import show_help  # tyro, and no torch

        show_help(command, COMMANDS[command])
        return 0
    end_with_launcher()
    if fault := faulty_variable():
        return _fail(fault, from_all=True)
    if COMMANDS[command] and (not words or words[0].startswith("-")):
        return _fail(_first_missing(command, words))
    try:
        module = import_module(f"trainkit.commands.{command}")
        return module.run(next(iter(words), ""), words[1:])
    except Exception as error:
        message = report_of(error)
        if message is None:
            raise
        return _fail(message, from_all=is_of_one_process(error), code=exit_code_of(error))


def _first_missing(command: str, words: list[str]) -> str:
    """The message where a command lacks what it takes first; `words` come after the command."""
    first = COMMANDS[command]
    near = difflib.get_close_matches(words[0], FLAGS, n=1) if words else []
    meant = f"; did you mean trainkit {near[0]}?" if near else "; see trainkit --help"
    return f"which {first.lower()}? `trainkit {command} {first} ...` takes it first{meant}"


def _fail(message: str, from_all: bool = False, code: int = 2) -> int:
    """Report an error once, in the main process, or with `from_all` in each process that has it."""
    number = rank()
    if number == 0 or from_all:
        from trainkit.display.terminal import error

        error(message if number == 0 else f"process {number}: {message}")
    return code
