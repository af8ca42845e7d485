"""Chooses the command and the exit code; what a command does is in commands/."""

import difflib
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from trainkit import __version__
from trainkit.commands import COMMANDS
from trainkit.commands.interruption import REPORTS, Interruptions, Terminated
from trainkit.display.streams import keep_standard_streams
from trainkit.distributed.launcher import end_with_launcher, faulty_variable, rank
from trainkit.errors import exit_code_of, is_of_one_process, report_of

HELP = """\
trainkit trains a recipe, a Python file with a function `recipe(...)`, on one
loop.

  trainkit RECIPE [--setting value ...]   train it, or resume where it stopped
  trainkit check RECIPE [--setting ...]   try it on three batches, forecast cost
  trainkit audit RECIPE [--setting ...]   train a few steps twice, compare bits
  trainkit doctor FOLDER                  what it holds, how to train on it
  trainkit doctor RECIPE [--setting ...]  read all its data, report its faults
  trainkit pack RECIPE --out FOLDER       its data, once, for fast reading
  trainkit evaluate RUN [RUN ...]         measure it on the validation images
  trainkit report RUN [RUN ...]           what it did, or what they differ in
  trainkit predict RUN IMAGES ... --out FOLDER
                                          predictions of images and folders
  trainkit export RUN --out FILE          weights, torch.export program, ONNX
  trainkit average RUN [RUN ...] --out FOLDER
                                          mean of weights (SWA, model soups)
  trainkit push RUN OWNER/NAME            upload it to the Hugging Face Hub
  trainkit replay RUN                     repeat a step with a non-finite loss
  trainkit recipes                        the recipes that come with trainkit
  trainkit new RECIPE FILE                a copy of a recipe, to change
  trainkit COMMAND --help                 the options of a command
  trainkit RECIPE --help                  settings of a recipe, and options

RECIPE is a file, or the name of one of `trainkit recipes`, such as seg_folder;
`--sample` runs any of them on generated data in under a minute. RUN is the
folder of a run, a checkpoint in it, a folder that push wrote, or the name of a
model on the Hugging Face Hub (owner/name). For bare weights:
trainkit evaluate RECIPE --weights FILE, and so for predict and export.

On several processes or with another precision:
accelerate launch -m trainkit RECIPE ...
"""
HELP_FLAGS = (["--help"], ["-h"])
FLAGS = ("--help", "--version")  # that come first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and report its errors, each in one message.

    Args:
        argv: words of the command line after the program's name; None for those of this process.

    Returns:
        The exit code: 0 done, 1 the machine failed, 2 something for the user to set right, 130
        after Ctrl-C and 143 after SIGTERM, wherever they arrive.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    interruptions = None if argv is not None else Interruptions(_fail)  # of a process of its own
    try:
        if interruptions is not None:
            interruptions.begin()
            keep_standard_streams(reported=not {"-h", "--help"} & set(words))
        return _run(words)
    except KeyboardInterrupt:
        return _stopped_by(signal.SIGINT)
    except Terminated:
        return _stopped_by(signal.SIGTERM)
    except Exception as error:
        if interruptions is not None and interruptions.number is not None:
            return _stopped_by(interruptions.number)  # a library raised its own in place of ours
        return _report(error)
    finally:
        if interruptions is not None:
            interruptions.end()


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
    module = import_module(f"trainkit.commands.{command}")
    return module.run(next(iter(words), ""), words[1:])


def _report(error: Exception) -> int:
    """The exit code for an error, whose message is reported; one that is a bug goes on."""
    message = report_of(error)
    if message is None:
        raise error
    return _fail(message, from_all=is_of_one_process(error), code=exit_code_of(error))


def _stopped_by(number: int) -> int:
    return _fail(REPORTS[number], code=128 + number)


def _first_missing(command: str, words: list[str]) -> str:
    """The message where a command lacks what it takes first; `words` come after the command."""
    first = COMMANDS[command]
    near = difflib.get_close_matches(words[0], FLAGS, n=1) if words else []
    meant = f"; did you mean trainkit {near[0]}?" if near else "; see trainkit --help"
    which = first.lower().replace("|", " or ")
    return f"which {which}? `trainkit {command} {first} ...` takes it first{meant}"


def _fail(message: str, from_all: bool = False, code: int = 2) -> int:
    """Report an error once, in the main process, or with `from_all` in each process that has it."""
    number = rank()
    if number == 0 or from_all:
        from trainkit.display.terminal import error

        error(message if number == 0 else f"process {number}: {message}")
    return code
