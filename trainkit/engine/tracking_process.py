"""A process beside the training that sends its log to trackers: their work costs no step anything.

    python -P -m trainkit.engine.tracking_process DESCRIPTOR

It reads one line of JSON from its standard input: what to follow. A second line, "end", has it send
what is left and end; the end of its input without one, that the training is gone, has it end soon.
What a person is to know it writes to DESCRIPTOR, a JSON object a line.
"""

import fcntl
import json
import os
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from trainkit.engine.log_follower import HANGS_S, Cursors, LogFollower
from trainkit.engine.trackers import identity_of, new_identity, started

NICE = 10  # where cores are few they are the training's first; what trackers start inherits it
TRIES = 10  # of a change of which the system takes one in 100 ms
ABORT_S = 5.0  # for trackers to end where the training is gone


def main() -> None:
    """Follow until the training ends."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    _lower_sessions()
    out = os.fdopen(int(sys.argv[1]), "w")
    asked = json.loads(sys.stdin.readline())
    run = Path(asked["run"])
    lock = (run / ".trackers.lock").open("w")
    fcntl.lockf(lock, fcntl.LOCK_EX)  # that of a training that was killed may still end
    from accelerate import PartialState

    PartialState(cpu=True)  # its trackers ask it which process this is
    cursors = Cursors(run / "trackers.json")
    saying = threading.Lock()

    def say(name: str, **what: Any) -> None:
        with saying:
            out.write(json.dumps({"tracker": name, **what}) + "\n")
            out.flush()

    def note(name: str, text: str) -> None:
        say(name, said=text)

    followers = [
        LogFollower(
            name,
            partial(_begin, name, run, asked["project"], cursors),
            run,
            cursors,
            asked["settings"],
            partial(note, name),
        )
        for name in asked["trackers"]
    ]
    ended = threading.Event()

    def listen() -> None:
        is_end = sys.stdin.readline().strip() == "end"
        for follower in followers:
            if not is_end:
                follower.aborted.set()
            follower.ending.set()
        if not is_end:
            ended.wait(ABORT_S)
            os._exit(0)

    for follower in followers:
        follower.start()
    threading.Thread(target=listen, daemon=True).start()
    left = {follower.tracker_name: follower for follower in followers}
    hanging: set[str] = set()
    while left:
        for name, follower in list(left.items()):
            since = follower.busy_since
            if since is not None and time.monotonic() - since > HANGS_S and name not in hanging:
                hanging.add(name)
                note(name, f"has not answered for {HANGS_S:.0f} s; the training does not wait")
            if not follower.is_alive():
                say(name, ended=True)
                del left[name]
        time.sleep(0.05)
    ended.set()
    os._exit(0)  # threads of a tracker's own are not waited for


def _begin(
    name: str, run: Path, project: str, cursors: Cursors, cursor: dict[str, Any] | None
) -> Any:
    """Start a tracker, and note what the run is called there: before it is, where that is known."""
    identity = new_identity(name, run) if cursor is None else cursor["id"]
    tracker = started(name, identity, run, project, 0 if cursor is None else cursor["step"])
    cursors.note(name, id=identity or identity_of(tracker))
    _lower_sessions()  # a tracker may have started processes in sessions of their own
    return tracker


def _lower_sessions() -> None:
    """Have the sessions of this process and of what it started wait for the training's.

    Linux shares a core among sessions first ("autogroup", sched(7)): a nice value counts only
    within its own session, which would have as much of the core as the training's.
    """
    if not Path("/proc/self/autogroup").exists():
        return
    processes = [psutil.Process()]
    with suppress(psutil.Error):  # some process ended meanwhile: no reason to lose a tracker
        processes += processes[0].children(recursive=True)
    for process in processes:
        with suppress(OSError):  # it has ended, or the system does not allow it
            _lower(Path(f"/proc/{process.pid}/autogroup"))


def _lower(session: Path) -> None:
    """Lower the priority of a session, unless it is lowered."""
    for _ in range(TRIES):
        if session.read_text().endswith(f"nice {NICE}\n"):
            return
        try:
            session.write_text(str(NICE))
        except BlockingIOError:  # one change in 100 ms is a user's
            time.sleep(0.1)


if __name__ == "__main__":
    main()
