"""The process that makes trainings of an audit: it imports everything once, and forks for each.

    python -m trainkit.commands.audit_process

It reads a line of standard input for each time: the `Trial`s that train together, as JSON. It
answers with the exit codes.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.audit_options import AuditOptions
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.seeding import seed_host
from trainkit.distributed.accelerator import use_whole_host
from trainkit.distributed.launcher import end_with_parent
from trainkit.engine.audit import Audit
from trainkit.engine.loop import train
from trainkit.errors import exit_code_of, report_of
from trainkit.options import Options
from trainkit.storage.locks import posix_locks
from trainkit.storage.recipe_source import RecipeSource


@dataclass(frozen=True)
class Trial:
    """One process of one training of an audit; paths as strings, for JSON.

    Attributes:
        recipe: the file.
        words: settings and options of the command line.
        run: folder of the run.
        results: folder for what it prints and finds; see `Audit`.
        records: folder of the first training's records.
        audit: further arguments of `Audit`.
        options: those that differ from the asked ones.
        keep: the run stays, with the recipe's code in it.
        env: variables of the environment that it adds, such as RANK.
    """

    recipe: str
    words: list[str]
    run: str
    results: str
    records: str
    audit: dict[str, Any]
    options: dict[str, Any]
    keep: bool = False
    env: dict[str, str] = field(default_factory=dict)


def serve() -> None:
    """Train what standard input asks for, line by line, until it ends."""
    end_with_parent(signal.SIGKILL, os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        codes = _all_codes([_fork(Trial(**each)) for each in json.loads(line)])
        answers.write(json.dumps(codes) + "\n")
        answers.flush()


def _all_codes(pids: list[int]) -> list[int]:
    """Exit codes of the processes; when one fails, the others are ended."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        for other in pids if status else ():
            if other not in codes:
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def _fork(trial: Trial) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    end_with_parent(signal.SIGKILL, server)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(trial.env)
    printed = os.open(Path(trial.results) / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, file in ((0, nothing), (1, printed), (2, printed)):
        os.dup2(file, descriptor)
    sys.exit(_train(trial))  # as a whole interpreter ends, with what it registered for that


def _train(trial: Trial) -> int:
    try:
        _train_as_asked(trial)
    except Exception as error:
        message = report_of(error)
        if message is None:
            raise
        content = {"message": message, "code": exit_code_of(error)}
        file = Path(trial.results) / f"error-{trial.env.get('RANK', 0)}.json"
        file.write_text(json.dumps(content))
        return 1
    return 0


def _train_as_asked(trial: Trial) -> None:
    """Train as `trainkit RECIPE` does, watched."""
    path = Path(trial.recipe)
    recipe_file = load_recipe(path)
    settings, asked = read_settings_and_options(recipe_file, "audit", "trainkit", trial.words)
    assert isinstance(asked, AuditOptions)
    options = Options(**{each.name: getattr(asked, each.name) for each in fields(Options)})
    options = replace(
        options,
        out=Path(trial.run),
        log_every=1,
        patience=None,
        min_delta=0.0,
        track=(),
        profile=False,
        async_checkpoint=False,
        checkpoint_format="full",
        report=False,
        pictures=False,
        **trial.options,
    )
    posix_locks()
    seed_host(options.seed)
    recipe = build(recipe_file, settings)
    use_whole_host()
    audit = Audit(Path(trial.records), Path(trial.results), asked.steps, **trial.audit)
    train(
        recipe,
        options,
        settings,
        RecipeSource(file=path) if trial.keep else None,
        watch=audit.watch,
    )


if __name__ == "__main__":
    serve()
