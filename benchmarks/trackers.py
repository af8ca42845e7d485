"""What trackers add to a step of 0.3 ms with a row of the log every 10 steps.

    python benchmarks/trackers.py                   # none, all four, and with one that hangs
    python benchmarks/trackers.py --seconds 30 --processes 1

The two layers of step_overhead.py, in several processes of each kind, since two of the same code
differ by some percent; all take turns of a fraction of a second (_turns.py).
W&B runs offline, MLflow and Trackio write to files of this program. The one that hangs is an own
tracker whose first row never returns, beside the four; the rows of the others that it cannot take
are dropped. Needs pip install "trainkit[tensorboard,wandb,mlflow,trackio]".
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from _results import Results, add_option
from _turns import ROUNDS, Program, take_turns, together
from step_overhead import add_rows

ALL = ("tensorboard", "wandb", "mlflow", "trackio")
ROWS = {"none": "no tracker", "all": "all four", "hanging": "all four, and one that hangs"}
LOG_EVERY = 10
STARTED_S = 60.0  # in which the process of the trackers has begun


def child(asked: argparse.Namespace) -> None:
    """Train with the trackers of one row, and note when each step began."""
    import torch
    from _loops import CLASSES, WORKS, Images, Stamps, Timed, cosine

    from trainkit import Options, Recipe, train
    from trainkit.tasks.recognition import Recognition

    class Hanging:
        """A tracker that never returns."""

        name = "hanging"

        def store_init_configuration(self, values: dict) -> None:
            """Nothing to store."""

        def log(self, values: dict, step: int) -> None:
            time.sleep(1e6)

        def finish(self) -> None:
            """Nothing to end."""

    work = WORKS["mlp"]
    torch.set_num_threads(1)
    network = Timed(work.network(), Stamps(asked.stamps))
    data = Images(work.epoch * asked.batch, work.size)
    recipe = Recipe(
        task=Recognition(CLASSES), model=network, train_data=data,
        val_data=Images(asked.batch, work.size), batch_size=asked.batch,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
        schedule=lambda step, total, per_epoch: cosine(step, total),
        epochs=asked.steps / work.epoch, eval_batch_size=asked.batch,
    )  # fmt: skip
    options = Options(
        out=asked.stamps.with_suffix(".run"), workers=0, log_every=LOG_EVERY, evaluate_every=10**6,
        track=() if asked.row == "none" else ALL,
    )  # fmt: skip
    train(recipe, options, trackers=[Hanging()] if asked.row == "hanging" else [])


def begun(asked: argparse.Namespace, row: str, folder: Path, has_trackers: bool) -> Program:
    """Start a program of `row`, wait until its trackers are at work, and have it wait."""
    folder.mkdir(exist_ok=True)
    environment = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / f"trackio-{row}"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / f'mlflow-{row}.db'}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [sys.executable, __file__, "--row", row, "--batch", str(asked.batch)]
    command += ["--steps", str(asked.steps)]
    program = Program(command, environment, folder / f"{row}.stamps")
    file = folder / f"{row}.run" / "trackers.json"
    until = time.monotonic() + STARTED_S
    while has_trackers and time.monotonic() < until and program.runs():
        if file.is_file() and all(tracker in file.read_text() for tracker in ALL):
            break
        time.sleep(0.1)
    program.warm_up()
    return program


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--stamps", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1_000_000, help="at most, of each program")
    parser.add_argument("--seconds", type=float, default=120.0, help="of all programs together")
    parser.add_argument("--processes", type=int, default=4, help="of each kind")
    parser.add_argument("--turn", type=float, default=0.15, help="seconds of one at a time")
    add_option(parser)
    asked = parser.parse_args()
    if asked.row:
        return child(asked)
    results = Results("trackers", "torch", "accelerate", *ALL, rounds=ROUNDS, baseline=ROWS["none"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {}
        for number in range(asked.processes):  # one of each kind, then the next of each
            for row in ROWS:
                programs[f"{row} {number}"] = begun(asked, row, folder / f"{number}", row != "none")
        taken = take_turns(programs, asked.seconds, asked.turn)
    add_rows(
        results,
        {
            kind: together([taken[f"{row} {number}"] for number in range(asked.processes)])
            for row, kind in ROWS.items()
        },
    )
    results.write(asked.results)


if __name__ == "__main__":
    main()
