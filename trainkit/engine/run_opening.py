"""Opens the folder of a run in the main process, for all, and finds what is in it."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from trainkit import files
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.sampler import DRAWN
from trainkit.distributed.accelerator import fail_first, fail_last
from trainkit.distributed.launcher import place_on_host
from trainkit.engine.early_stopping import EarlyStopping
from trainkit.engine.setup import Setup
from trainkit.engine.stop_signal import FAILED, Stopped
from trainkit.errors import UserError
from trainkit.storage import checkpoint
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.recorded import read_order
from trainkit.storage.run_files import read_memory
from trainkit.storage.run_folder import RunFolder

Value = TypeVar("Value")
SEEN_WITHIN_S = 10  # a file of another host, on a network disk that looks only every few seconds


@dataclass(frozen=True)
class Found:
    """What an earlier training left in the folder: where this one resumes."""

    path: Path | None = None
    """the checkpoint"""
    order: int = DRAWN
    """version of the run's order of training images, see `TrainOrder.version`"""
    evaluation: dict[str, Any] | None = None
    """the log's row of the last one"""
    memory: dict[str, Any] | None = None
    """images of one pass that were found to fit into memory"""


def on_main_process(accelerator: Accelerator, function: Callable[[], Value]) -> Value:
    """What `function` returns in the main process, in all processes, which wait for it.

    Raises:
        UserError: in all of them where it raised one. Another error is raised in the main process,
            which reports it; the others are Stopped.
    """
    value: Value | None = None
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            value = function()
        except Exception as raised:  # the others wait for an answer; not every error can be sent
            error = raised
    refusal = error if isinstance(error, UserError) else None
    value, refusal, failed = broadcast_object_list([value, refusal, error is not None])
    if refusal is not None:
        raise refusal
    if error is not None:
        fail_first()
        raise error
    if failed:
        fail_last()
        raise Stopped(FAILED)
    return value


def open_run(
    setup: Setup, settings: Mapping[str, Any], source: RecipeSource | None
) -> tuple[RunFolder, Found]:
    """Open the run's folder and find what is in it; the main process decides for all.

    Args:
        setup: of the training.
        settings: the recipe's, resolved.
        source: where the recipe came from.

    Raises:
        UserError: this training may not have the folder, or cannot write it.
    """
    options, accelerator = setup.options, setup.accelerator
    lists = DatasetInfo.of(setup.recipe.train_data).lists

    def open_here() -> tuple[RunFolder, int, Path]:
        recorded = options.out is not None and (options.out / "settings.json").is_file()
        if options.out is not None and recorded and options.resume != "never":
            setup.plan.use_order(read_order(options.out))
        try:
            run, notes = RunFolder.open(
                options,
                settings,
                source,
                setup.resume_invariants,
                EarlyStopping.of(setup.recipe, options).is_due,
            )
        except OSError as error:
            raise _unwritable(options.out, error) from error
        with _closed_on_error(run):
            run.keep_lists(lists)
            for line in notes:
                setup.display.note(line)
            mark = run.folder / f".seen-{uuid4().hex}"
            if accelerator.num_processes > 1:
                mark.touch()
            return run, setup.plan.order.version, mark

    run, order, mark = on_main_process(accelerator, open_here)
    setup.plan.use_order(order)
    if accelerator.num_processes > 1:
        _all_see(accelerator, run, mark)
    with _closed_on_error(run):
        return run, _find(setup, run, order)


@contextmanager
def _closed_on_error(run: RunFolder) -> Iterator[None]:
    """Context manager: an error closes the run; one of the file system becomes a UserError."""
    try:
        yield
    except OSError as error:
        run.close()
        if isinstance(error, UserError):
            raise
        raise _unwritable(run.folder, error) from error
    except Exception:
        run.close()
        raise


def _find(setup: Setup, run: RunFolder, order: int) -> Found:
    """Find where the run in an open folder resumes, and take later rows out of its log."""
    accelerator = setup.accelerator
    path, damaged = _last_checkpoint(accelerator, run)

    def forget() -> Found:
        with _closed_on_error(run):
            evaluation = run.log.forget_after(checkpoint.step_of(path) if path else 0)
            for line in damaged:
                setup.display.note(line)
            return Found(path, order, evaluation, read_memory(run.folder))

    return on_main_process(accelerator, forget)


def _last_checkpoint(accelerator: Accelerator, run: RunFolder) -> tuple[Path | None, list[str]]:
    """`RunFolder.last_checkpoint`, of several processes: those of a host divide the hashing.

    Each host hashes all that it reads, as a file may be damaged on the way to one of them.

    Raises:
        UserError: one process cannot read a checkpoint that is whole, and that going back to the
            one before would lose.
    """
    if accelerator.num_processes == 1:
        return run.last_checkpoint()
    turn, turns = place_on_host()

    def verified(path: Path) -> str | None:
        faults = gather_object([checkpoint.verify(path, turn, turns)])
        found = next(((rank, each) for rank, each in enumerate(faults) if each is not None), None)
        if found is None:
            return None
        fault = on_main_process(accelerator, lambda: checkpoint.verify(path))
        if fault is None:
            raise UserError(
                f"process {found[0]} cannot read checkpoint {path}, which is whole for the main"
                f" process: {found[1]}. Run the same command again when its disk is back"
            )
        return fault

    paths = on_main_process(accelerator, lambda: checkpoint.list_checkpoints(run.checkpoints))
    return run.last_checkpoint(paths=paths, verified=verified)


def _unwritable(folder: Path | None, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be written: {files.reason(error)}; choose another folder with --out"
    )


def _all_see(accelerator: Accelerator, run: RunFolder, mark: Path) -> None:
    """Raise UserError where a process does not see the file that the main one has written."""
    until = time.monotonic() + SEEN_WITHIN_S
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(mark.parent)  # a network disk looks again
    place = f"{mark.parent.resolve()} on {socket.gethostname()}"
    blind = [each for places in gather_object([[] if seen else [place]]) for each in places]
    if accelerator.is_main_process:
        mark.unlink(missing_ok=True)
    if blind:
        run.close()
        raise UserError(
            "the run's folder is not one folder for all processes: what the main process writes is"
            f" not in {', '.join(blind[:4])}. Give --out a folder on a disk that all hosts share"
        )
