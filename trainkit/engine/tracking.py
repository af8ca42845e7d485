"""Trackers of a training, which reads its log beside it: TensorBoard, W&B, MLflow, Trackio, own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from trainkit.engine.log_follower import Cursors, LogFollower
from trainkit.engine.setup import Setup
from trainkit.engine.trackers import flat
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.setting_values import plain

END_S = 30.0  # that trackers have at the end
STOPPED_S = 5.0  # and after a signal or an error
# of a launcher; the process beside the training is one by itself
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "ROLE_", "TORCHELASTIC_")
CHANGED = ("ACCELERATE_", "FSDP_", "OMP_NUM_THREADS")


class Tracking:
    """What follows the log of a run, in the main process; without trackers it does nothing.

    Those of accelerate run in a process of their own, so that neither their work nor their hanging
    takes time from a step; own ones, which only this process has, in a thread each.

    Args:
        run: the run's folder.
        names: of `--track`.
        own: trackers made by Python code.
        settings: of the run, sent on its first start.
        project: under which runs are grouped.
        note: shows a line.
    """

    def __init__(
        self,
        run: Path,
        names: tuple[str, ...],
        own: Sequence[Any],
        settings: Mapping[str, Any],
        project: str,
        note: Callable[[str], None],
    ):
        self._note = note
        self._left = set(names)
        self._process: subprocess.Popen | None = None
        self._said = b""
        self._followers: list[LogFollower] = []
        sent = flat(settings)
        if names:
            self._start_process(run, names, sent, project)
        if own:
            self._start_threads(run, own, sent)

    def _start_process(
        self, run: Path, names: tuple[str, ...], settings: Mapping[str, Any], project: str
    ) -> None:
        root = str(Path(__file__).resolve().parents[2])
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((*LAUNCHED, *CHANGED))
        }
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._out, writer = os.pipe()
        os.set_blocking(self._out, False)
        with (run / "trackers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainkit.engine.tracking_process", str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
                pass_fds=(writer,),
                start_new_session=True,  # Ctrl-C is the training's
            )
        os.close(writer)
        asked = {
            "run": str(run.resolve()),
            "trackers": list(names),
            "settings": settings,
            "project": project,
        }
        self._tell(json.dumps(asked))

    def _start_threads(self, run: Path, own: Sequence[Any], settings: Mapping[str, Any]) -> None:
        cursors = Cursors(run / "own_trackers.json")  # the process writes trackers.json
        for tracker in own:
            note = partial(self._note_of, tracker.name)
            start = partial(_start_own, tracker)
            follower = LogFollower(tracker.name, start, run, cursors, settings, note)
            follower.start()
            self._followers.append(follower)

    def _note_of(self, name: str, text: str) -> None:
        self._note(f"tracker {name}: {text}")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # its end is reported by `report`
                self._process.stdin.write(f"{line}\n".encode())
                self._process.stdin.flush()

    def report(self) -> None:
        """Show what the process has said since; waits for nothing."""
        if self._process is None:
            return
        while True:
            try:
                data = os.read(self._out, 65536)
            except BlockingIOError:
                break
            self._said += data
            if not data:  # the process has ended
                if self._left:
                    self._note(
                        f"tracker {', '.join(sorted(self._left))}: its process ended, see"
                        " trackers.log in the run's folder; the training continues without it"
                    )
                self._left.clear()
                break
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "said" in message:
                self._note_of(message["tracker"], message["said"])
            else:
                self._left.discard(message["tracker"])

    def close(self, seconds: float) -> None:
        """Have the trackers send what is left, and end them; wait for them so long at most."""
        until = time.monotonic() + seconds
        self._tell("end")
        for follower in self._followers:
            follower.ending.set()
        while self._left and self._process is not None and time.monotonic() < until:
            self.report()
            time.sleep(0.02)
        for follower in self._followers:
            follower.join(max(0.0, until - time.monotonic()))
            if follower.is_alive():
                self._left.add(follower.tracker_name)
                follower.aborted.set()
        if self._left:
            self._note(
                f"tracker {', '.join(sorted(self._left))} did not end within {seconds:.0f} s and"
                " was left; the run's log has all rows"
            )
        self._left.clear()
        self._followers.clear()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()
            os.close(self._out)
            self._process = None


@contextmanager
def tracked(
    setup: Setup,
    run: RunFolder,
    settings: Mapping[str, Any],
    source: RecipeSource | None,
    own: Sequence[Any],
) -> Iterator[Callable[[], None]]:
    """Context manager: trackers follow the run, in the main process.

    Args:
        setup: of the training.
        run: its folder.
        settings: the recipe's, resolved.
        source: where the recipe came from.
        own: trackers made by Python code.

    Yields:
        What shows the trackers' messages, to be called now and then.
    """
    options = setup.options
    if not setup.accelerator.is_main_process or not (options.track or own):
        yield lambda: None
        return
    sent = {**plain(settings), "options": plain(asdict(options))}
    file = None if source is None else source.file
    project = run.folder.resolve().name if file is None else file.stem
    tracking = Tracking(run.folder, options.track, own, sent, project, setup.display.note)
    ended = False
    try:
        yield tracking.report
        ended = True
    finally:
        tracking.close(END_S if ended else STOPPED_S)


def _start_own(tracker: Any, cursor: dict[str, Any] | None) -> Any:
    getattr(tracker, "start", lambda: None)()  # not all versions of accelerate ask for it
    return tracker
