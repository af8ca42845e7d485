"""Every optimizer that can be built here: trained, killed by SIGKILL, resumed; which end as if nothing had happened.

    python benchmarks/optimizers.py [--out docs/optimizers.md --sharded FILE] [NAME ...]

Each is trained three times by `trainkit.train` in processes of their own, forked from one that has torch imported:
whole, killed after step 5 (a checkpoint is written every second one), and on from there. Bit-equal means weights,
the optimizer's state and every row of the log but its times. FILE is what benchmarks/sharded_resume.py has written.
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
from helpers.network_recipes import small
from helpers.optimizers import builders
from helpers.toy_recipes import Images
from trainkit import Options, train
from trainkit.storage.checkpoint import list_checkpoints, load

KILLED_AFTER = 5
TIMES = ("images_per_s", "pause_s", "save_s", "bytes")


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
    options = Options(out=folder, seed=5, workers=0, log_every=1, checkpoint_every=2, keep=9)
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
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sharded", type=Path)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    found = {}
    for name in asked.names or builders():
        found[name] = trial(name)
        print(f"{name:44} {found[name]}", flush=True)
    equal = sum(each == "bit-equal" for each in found.values())
    refused = sum(each.startswith("refused") for each in found.values())
    versions = f"torch {torch.__version__.partition('+')[0]}, timm {timm.__version__}"
    told = f"{len(found)} optimizers and variants: {equal} bit-equal, {refused} refused by name at the start, "
    told += f"{len(found) - equal - refused} otherwise ({versions}, CPU)"
    print(told)
    if asked.out is not None:
        sharded = read_sharded(asked.sharded) if asked.sharded is not None else {}
        lines = [PAGE.format(told=told)]
        lines += [f"| {name} | {what} | {sharded.get(name, '')} |" for name, what in found.items()]
        asked.out.write_text("\n".join(lines) + "\n")
    sys.exit(equal + refused != len(found))


def read_sharded(file: Path) -> dict[str, str]:
    """By optimizer, what benchmarks/sharded_resume.py found of it; of a refusal the one word."""
    lines = [line.split(" | ", 1) for line in file.read_text().splitlines() if " | " in line]
    return {name: what.partition(":")[0] for name, what in lines}


PAGE = """# Optimizers

A recipe brings its optimizer, from torch, timm or elsewhere. Its state is opaque to trainkit: it is saved, resumed,
sharded and rolled back whole, or the optimizer is refused by name at the start.

- **Its parameters are the trained ones.** Gradient norm, clipping and fp16's scale are of these alone; gradients of
  other parameters are dropped after each step.
- **Resume** puts back all state and all values of the groups (Prodigy's `d`, a count of steps). What the recipe now
  sets otherwise than when the run began, such as another weight decay, is applied.
- **Schedule-free optimizers**: `optimizer.eval()` and `optimizer.train()` are called around evaluations and saves. A
  checkpoint's model holds the weights to be evaluated; those in training are beside it, so that a resume is bit-equal.
  Batch norm's statistics belong to the weights in training: give `--precise-bn` with batch norm.
- **`--on-nonfinite skip`** leaves the state as it was, in the first step too. With torch's own optimizers this is done
  on the device; for others the step waits for it.
- **Refused**: a step that needs a closure (LBFGS), second derivatives (AdaHessian), sparse gradients (SparseAdam),
  groups or state that no checkpoint can hold (sets, functions, sparse or complex128 tensors), and parameters that are
  not the model's.
- **FSDP**: before the first step copies of the optimizer update one weight of each shape whole and sharded; where
  weights, state or groups then differ by more than rounding, or the sharded update fails, it is refused by name. It
  needs no list of names, and so holds for an optimizer of your own. With plain DDP each process has whole weights, and
  all optimizers of the table are right there. `benchmarks/sharded_optimizers.py` trains each for a few steps:
  119 of the 122 below: 73 train as one process does (weights within 2.2e-4 of the longest way, losses within 2e-5), 40
  are refused by FSDP's trial, and 6 everywhere; none that it lets pass trains otherwise. Refused are Muon (its bfloat16
  products round otherwise), Rprop, Adafactor, AdamP, SGDP, NovoGrad, MARS, timm's "cautious" ones (c...), and Prodigy
  (its state is flat, and not sharded as the weights are). PSGD Kron, whose update of sharded weights takes minutes, is
  refused untried.
- **Resume under FSDP**: `benchmarks/sharded_resume.py` trains each on two processes, whole, and stopped after step 4 of
  8 and resumed: all 73 that the trial lets pass end bit-equal, weights, state and log, and the 49 others are refused
  before the first step.

The table is written by `python benchmarks/optimizers.py --out docs/optimizers.md --sharded FILE`: each is trained
whole, killed by SIGKILL after step 5 and resumed from its last checkpoint; FILE has what came of it under FSDP. {told}.

| optimizer | trained, killed, resumed | under FSDP |
|---|---|---|"""


if __name__ == "__main__":
    main()
