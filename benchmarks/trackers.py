"""What trackers add to a step of 0.3 ms with a row of the log every 10 steps.

    python benchmarks/trackers.py                   # none, all four, and with one that hangs
    python benchmarks/trackers.py --seconds 30 --batch 8

The two layers of step_overhead.py; its programs take turns of a fraction of a second (_turns.py).
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
from _turns import ROUNDS, Program, take_turns
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--stamps", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1_000_000, help="at most, of each program")
    parser.add_argument("--seconds", type=float, default=60.0, help="of all programs together")
    parser.add_argument("--turn", type=float, default=0.15, help="seconds of one at a time")
    add_option(parser)
    asked = parser.parse_args()
    if asked.row:
        return child(asked)
    results = Results("trackers", "torch", "accelerate", *ALL, rounds=ROUNDS, baseline=ROWS["none"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            "WANDB_MODE": "offline",
            "TRACKIO_DIR": str(folder / "trackio"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        programs = {}
        for row in ROWS:
            command = [sys.executable, __file__, "--row", row, "--batch", str(asked.batch)]
            command += ["--steps", str(asked.steps)]
            programs[row] = Program(command, environment, folder / f"{row}.stamps")
        until = time.monotonic() + STARTED_S  # all trackers are at work while it is measured
        for row in ("all", "hanging"):
            file = folder / f"{row}.run" / "trackers.json"
            while time.monotonic() < until and not (
                file.is_file() and all(tracker in file.read_text() for tracker in ALL)
            ):
                time.sleep(0.1)
        taken = take_turns(programs, asked.seconds, asked.turn)
    add_rows(results, {ROWS[row]: found for row, found in taken.items()})
    results.write(asked.results)


if __name__ == "__main__":
    main()
