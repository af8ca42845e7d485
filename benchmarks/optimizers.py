"""Every optimizer that can be built here: trained, killed by SIGKILL, resumed.

Which end as if nothing had happened.

    python benchmarks/optimizers.py [NAME ...]

Each is trained three times by `trainkit.train` in processes of their own, forked from one that has
torch imported: whole, killed after step 5 (a checkpoint is written every second one), and on from
there. Bit-equal means weights, the optimizer's state and every row of the log but its times. FILE
is what benchmarks/sharded_resume.py has written.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import prodigyopt  # noqa: F401
import schedulefree  # noqa: F401
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _results import Results, add_option

from helpers.network_recipes import small
from helpers.optimizers import builders
from helpers.toy_recipes import Images
from trainkit import Options, train
from trainkit.storage.checkpoint import list_checkpoints, load

KILLED_AFTER = 5
TIMES = (
    "images_per_s", "images_per_s_per_device", "data_wait", "memory_gib", "seconds", "pause_s",
    "save_s", "bytes",
)  # fmt: skip


class Deadly(Images):
    """Ends the process in step 6."""

    reads = 0

    def __getitem__(self, index: int):
        Deadly.reads += 1
        if Deadly.reads > 8 * KILLED_AFTER - 5 + 3:  # the fourth step has 3 images
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def run(name: str, folder: Path, deadly: bool) -> None:
    """One training, quietly; the reason of a refusal goes into a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    data = Deadly(27) if deadly else Images(27)
    options = Options(
        out=folder, seed=5, workers=0, log_every=1, checkpoint_every=2, keep_checkpoints=9
    )
    with (folder.parent / "shown").open("a") as shown, contextlib.redirect_stdout(shown):
        try:
            train(replace(small(builders()[name]), train_data=data), options)
        except ValueError as error:
            (folder.parent / "refused").write_text(str(error))


def trial(name: str) -> str:
    """What became of it."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / each for each in ("whole", "parts")]
        for folder, deadly in ((folders[0], False), (folders[1], True), (folders[1], False)):
            process = multiprocessing.get_context("fork").Process(
                target=run, args=(name, folder, deadly)
            )
            process.start()
            process.join()
            refused = Path(place) / "refused"
            if refused.exists():
                return f"refused at the start: {refused.read_text().partition(':')[0]}"
            expected = -signal.SIGKILL if deadly else 0
            if process.exitcode != expected:
                return f"FAILED: exit code {process.exitcode}"
        states = [load(list_checkpoints(folder / "checkpoints")[-1]) for folder in folders]
        equal = all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())
        equal = equal and str(states[0][1]["optimizer"]) == str(states[1][1]["optimizer"])
        equal = equal and rows(folders[0]) == rows(folders[1])
        return "bit-equal" if equal else "DIFFERENT"


def rows(folder: Path) -> list[dict]:
    """Of steps and evaluations, without times."""
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in found
        if row["event"] != "save"
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    add_option(parser)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    found = {}
    for name in asked.names or builders():
        found[name] = trial(name)
        print(f"{name:44} {found[name]}", flush=True)
    equal = sum(each == "bit-equal" for each in found.values())
    refused = sum(each.startswith("refused") for each in found.values())
    versions = f"torch {torch.__version__.partition('+')[0]}, timm {timm.__version__}"
    line = (
        f"{len(found)} optimizers and variants: {equal} bit-equal, {refused} refused by name at the"
        " start, "
    )
    line += f"{len(found) - equal - refused} otherwise ({versions}, CPU)"
    print(line)
    results = Results("optimizers", "torch", "timm", "prodigyopt", "schedulefree")
    for name, what in found.items():
        results.put(name, "trained, killed, resumed", "", what)
    results.write(asked.results)
    sys.exit(equal + refused != len(found))


if __name__ == "__main__":
    main()
