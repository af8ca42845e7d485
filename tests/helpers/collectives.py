"""Trains a toy in the processes it is started in, and writes the collectives of each step.

python tests/helpers/collectives.py OUT NAME [STEP]        (under torchrun)

OUT/collectives-RANK.json has a list for each step: operation and shapes of what it was given. With
STEP the last process gets a SIGTERM before that step, counted from 0.
"""

import json
import os
import signal
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def collectives(event) -> list:
    """Operation and shapes, such as ["all_reduce", [[2]]]."""
    return [event.name.removeprefix("gloo:"), event.input_shapes]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers
    from helpers.toy_recipes import RUNS
    from trainkit import Options
    from trainkit.data.seeding import seed_host
    from trainkit.engine.loop import train

    out, name, *rest = sys.argv[1:]
    rank, last = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
    steps: list[list] = []
    watching = []

    def record(batches):
        for step, batch in enumerate(batches):
            if rest == [str(step)] and rank == last:
                os.kill(os.getpid(), signal.SIGTERM)
            profiled = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            profiled.start()
            try:
                yield batch
            finally:  # also where no other batch is asked for
                profiled.stop()
                events = sorted(profiled.events(), key=lambda event: event.time_range.start)
                own = [collectives(each) for each in events if each.name.startswith("gloo:")]
                steps.append(own)

    def watch(training, batches):
        watching.append(record(batches))
        return watching[-1]

    build, options = RUNS[name]
    seed_host(5)
    changes = {"log_every": 100, "checkpoint_every": 100, "evaluate_every": 100}
    try:
        train(
            build(),
            Options(**{**options, "out": Path(out), "seed": 5, "workers": 0, **changes}),
            watch=watch,
        )
    except SystemExit as stopped:
        print(f"exit code {stopped.code}")
    finally:
        for each in watching:
            each.close()
        (Path(out) / f"collectives-{rank}.json").write_text(json.dumps(steps))
