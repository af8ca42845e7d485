"""The commands, and the only reader of argv. Settings come from the recipe's signature, read by tyro."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from trainkit import __version__
from trainkit.distributed.launcher import end_with_launcher, faulty_variable, rank
from trainkit.errors import is_one_process_affair, is_the_machines, what_to_tell
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
        commands = {
            "train": _train,
            "check": _check,
            "doctor": _doctor,
            "evaluate": _evaluate,
            "predict": _predict,
            "export": _export,
            "push": _push,
            "replay": _replay,
        }
        return commands[command](Path(words[0]), words[1:])
    except Exception as error:
        message = what_to_tell(error, Path(words[0]))
        if message is None:
            raise
        return _fail(
            message, from_all=is_one_process_affair(error), code=1 if is_the_machines(error) else 2
        )


def _train(path: Path, words: list[str]) -> int:
    from trainkit.commands.recipe_file import build, load_recipe
    from trainkit.options import Options

    function = load_recipe(path)
    settings, options = _read(function, Options, f"trainkit {path}", words, {})
    options = _with_out(options, path)

    from trainkit.data.seeding import seed_host
    from trainkit.engine.loop import train

    seed_host(options.seed)
    train(build(function, settings), options, settings, path)
    return 0


def _check(path: Path, words: list[str]) -> int:
    from trainkit.commands.recipe_file import build, load_recipe
    from trainkit.options import Options

    function = load_recipe(path)
    settings, options = _read(function, Options, f"trainkit check {path}", words, {})

    from trainkit.commands.check import check
    from trainkit.data.seeding import seed_host

    seed_host(options.seed)
    check(build(function, settings), options)
    return 0


def _doctor(path: Path, words: list[str]) -> int:
    from trainkit.commands.recipe_file import build, load_recipe
    from trainkit.options import DoctorOptions

    function = load_recipe(path)
    settings, options = _read(function, DoctorOptions, f"trainkit doctor {path}", words, {})
    if rank() != 0:
        return 0  # reading takes no launcher: one process does it all

    from trainkit.commands.doctor import examine

    out = options.out or Path("runs") / f"{path.stem}-doctor"
    return 2 if examine(build(function, settings), options.workers, out)["num_errors"] else 0


def _evaluate(path: Path, words: list[str]) -> int:
    from trainkit.commands.results import write_results
    from trainkit.files import require_room
    from trainkit.options import EvaluateOptions
    from trainkit.storage.lookup import read_precise_bn, read_seed

    function, settings, asked, weights, run_folder = _of_checkpoint(
        "evaluate", path, EvaluateOptions, words
    )

    from trainkit.data.seeding import seed_host
    from trainkit.engine.loop import evaluate

    options = asked.as_options(
        run_folder, read_seed(run_folder), read_precise_bn(run_folder, weights)
    )
    seed_host(options.seed)
    recipe = _built(function, settings, run_folder)
    recipe = replace(
        recipe.as_stored() if asked.as_stored else recipe,
        inference=asked.inference(recipe.inference),
    )
    if options.out is not None:
        require_room(options.out)

    def keep(results: dict[str, Any]) -> None:
        if options.out is not None:
            write_results(options.out, weights, settings, results)

    evaluate(recipe, weights, options, asked.partial, keep)
    return 0


def _predict(path: Path, words: list[str]) -> int:
    from trainkit.options import PredictOptions

    options = _with_positional(PredictOptions, "paths")
    function, settings, asked, weights, run = _of_checkpoint("predict", path, options, words)

    from trainkit.commands.predict import predict, told

    faults = predict(_built(function, settings, run), weights, asked)
    return _fail(told(faults, asked.out)) if faults else 0


def _export(path: Path, words: list[str]) -> int:
    from trainkit.options import ExportOptions

    function, settings, asked, weights, run = _of_checkpoint("export", path, ExportOptions, words)

    from trainkit.commands.export import export

    fault = export(_built(function, settings, run), weights, asked)
    return _fail(fault, code=1) if fault else 0


def _push(folder: Path, words: list[str]) -> int:
    from trainkit.options import PushOptions

    asked = _options(_with_positional(PushOptions, "name"), f"trainkit push {folder}", words)
    if rank() != 0:
        return 0  # one process does it all

    from trainkit.commands.push import push

    push(folder, asked)
    return 0


def _of_checkpoint(command: str, path: Path, options: type, words: list[str]) -> tuple:
    """Recipe, its settings, options, weights and their run, whose settings are the defaults."""
    import inspect

    from trainkit.commands.recipe_file import load_recipe
    from trainkit.storage.lookup import find_weights, read_class_names, read_input, read_settings

    function = load_recipe(path)
    prog = f"trainkit {command} {path}"
    recorded: dict[str, Any] = {}
    if not {"-h", "--help"} & set(words):
        checkpoint = _first_read(options, prog, words).checkpoint
        recorded = read_settings(checkpoint)
        # The data may hold some of the run's classes alone, and no training images to tell them by.
        if _takes_class_names(function) and recorded.get("classes") is None:
            names = read_class_names(checkpoint)
            recorded |= {} if names is None else {"classes": names}
        # What the run took of its network, whatever is said of that network now.
        taken = read_input(checkpoint, inspect.signature(function))
        recorded |= {name: value for name, value in taken.items() if recorded.get(name) is None}
    settings, asked = _read(function, options, prog, words, recorded)
    return function, settings, asked, *find_weights(asked.checkpoint)


def _takes_class_names(function: Callable) -> bool:
    """Whether a recipe has a setting `classes` that is names, or None."""
    import inspect

    classes = inspect.signature(function).parameters.get("classes")
    return classes is not None and classes.annotation == tuple[str, ...] | None


def _built(function: Callable, settings: dict[str, Any], run: Path | None) -> Any:
    """The recipe, of the classes that the weights' run was trained on."""
    from trainkit.commands.recipe_file import build
    from trainkit.storage.run_settings import check_same_classes

    check_same_classes(run, (recipe := build(function, settings)).task)
    return recipe


def _with_positional(options: type, name: str) -> type:
    """The same options, the one called `name` given without a flag."""
    import tyro

    annotations = {name: tyro.conf.Positional[get_type_hints(options)[name]]}
    same = type(
        options.__name__, (options,), {"__annotations__": annotations, "__doc__": options.__doc__}
    )
    return dataclass(frozen=True)(same)


def _replay(folder: Path, words: list[str]) -> int:
    from trainkit.commands.recipe_file import build, load_recipe
    from trainkit.options import Options, ReplayOptions
    from trainkit.storage.lookup import find_failure, read_origin, read_settings
    from trainkit.storage.run_files import read_report

    asked = _options(ReplayOptions, f"trainkit replay {folder}", words)
    failure = find_failure(folder, asked.step)
    seed, origin = read_origin(folder)
    # where a variant finds the recipe it varies
    sys.path.append(str(Path(origin or folder).parent))
    function = load_recipe(folder / "recipe.py")
    settings, _ = _read(
        function, ReplayOptions, f"trainkit replay {folder}", [], read_settings(folder)
    )
    report = read_report(failure)

    from trainkit.commands.replay import replay
    from trainkit.data.seeding import seed_host

    options = Options(
        seed=seed,
        workers=asked.workers,
        micro_batch=report["micro_batch"],
        on_bad_image=report["on_bad_image"],
        channels_last=report["channels_last"],
        tf32=report["tf32"],
        static_graph=report.get("static_graph", False),
        activation_checkpointing=report.get("activation_checkpointing", False),
    )
    seed_host(options.seed)
    return 0 if replay(build(function, settings), options, failure) else 1


def _with_out(options: Any, path: Path) -> Any:
    return options if options.out is not None else replace(options, out=Path("runs") / path.stem)


def _options(options: type, prog: str, words: list[str]) -> Any:
    import tyro

    return tyro.cli(options, prog=prog, args=words)


def _first_read(options: type, prog: str, words: list[str]) -> Any:
    """The options alone; the settings among the words are left for later."""
    import tyro

    return tyro.cli(options, prog=prog, args=words, return_unknown_args=True)[0]


def _read(
    function: Callable, options: type, prog: str, words: list[str], recorded: dict[str, Any]
) -> tuple:
    """The settings of `function` and the `options`, from the words of the command line.

    A setting not given there is as `recorded` by an earlier run, else as `--sample` sets it where that is
    given, else as the signature says. Raises UserError where a setting has the name of an option of any command.
    """
    import inspect

    import tyro

    from trainkit.commands.recipe_file import sample_settings
    from trainkit.options import check_finite, check_names
    from trainkit.storage.setting_values import read_settings_as

    signature = inspect.signature(function)
    check_names(signature.parameters)
    recorded = read_settings_as(recorded, signature, function.path)
    defaults = {**(sample_settings(function) if "--sample" in words else {}), **recorded}

    def collect(**settings: Any) -> dict[str, Any]:
        return settings

    parameters = [
        parameter.replace(default=defaults[name]) if name in defaults else parameter
        for name, parameter in signature.parameters.items()
    ]
    annotations = {name: each.annotation for name, each in signature.parameters.items()}
    types = {
        name: each for name, each in annotations.items() if each is not inspect.Parameter.empty
    }
    collect.__signature__ = signature.replace(parameters=parameters, return_annotation=dict)
    collect.__annotations__ = {**types, "return": dict}
    collect.__doc__ = function.__doc__

    def command(settings: dict, options: Any) -> tuple:
        return settings, options

    command.__annotations__ = {
        "settings": Annotated[dict, tyro.conf.arg(constructor=collect, name="")],
        "options": Annotated[options, tyro.conf.arg(name="")],
    }
    module = inspect.getdoc(function.module) or ""
    found, asked = tyro.cli(command, prog=prog, description=module, args=words)
    check_finite({**found, **vars(asked)})
    return found, asked


def _fail(message: str, from_all: bool = False, code: int = 2) -> int:
    """Say it once: the main process, or with `from_all` whichever it happened in."""
    number = rank()
    if number == 0 or from_all:
        from trainkit.display import error

        error(message if number == 0 else f"process {number}: {message}")
    return code
