"""What a type checker says of a recipe outside the package: nothing, or what is wrong with it."""

import runpy
import subprocess
import sys

import pytest

from helpers.processes import ROOT
from trainkit.recipe import Recipe

TYPED = '''
"""A recipe as somebody with a type checker writes it: y = a x."""

from pathlib import Path

import torch
import trainkit
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from trainkit.data.dataset_info import LazyDataset
from trainkit.tasks.base import Task
from trainkit.schedules import cos


class Mean:
    """The mean of what it is given."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2)

    def add_batch(self, predictions: Tensor, references: Tensor) -> None:
        self.sums += torch.tensor([float((predictions - references).abs().sum()), len(references)])

    def compute(self) -> dict[str, float]:
        return {"error": float(self.sums[0] / self.sums[1])}


class Line(Task):
    """Squared error."""

    headline = "error"
    higher_is_better = False

    @property
    def terms(self) -> tuple[str, ...]:
        return ("square",)

    def counts(self, targets: Tensor) -> Tensor:
        return torch.tensor([float(len(targets))], device=targets.device)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten() - targets).square().sum()[None]

    def predict(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.flatten()

    def metrics(self) -> list[Mean]:
        return [Mean()]


def points() -> TensorDataset:
    x = torch.linspace(0, 1, 8)
    return TensorDataset(x[:, None], 2 * x)


def recipe(lr: float = 0.1) -> trainkit.Recipe:
    """Learn the slope."""
    model = nn.Linear(1, 1)
    return trainkit.Recipe(
        task=Line(),
        model=model,
        train_data=LazyDataset(points),
        val_data=points(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        schedule=cos(),
        epochs=1,
        batch_size=4,
    )


def best(out: Path) -> float:
    summary = trainkit.train(recipe(), trainkit.Options(out=out))
    return float(summary["best"])
'''
WRONG = {  # in place of what stands above; what mypy says then
    "    higher_is_better = False\n": (
        "",
        'Cannot instantiate abstract class "Line" with abstract attribute "higher_is_better"',
    ),
    "val_data=points(),": (
        "val_data=3,",
        'Argument "val_data" to "Recipe" has incompatible type "int"; expected "SizedDataset"',
    ),
    "trainkit.Options(out=out)": (
        "trainkit.Options(outt=out)",
        'Unexpected keyword argument "outt" for "Options"',
    ),
}


@pytest.mark.nightly
def test_a_typed_recipe_passes_and_a_wrong_one_is_reported(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "typed.py").write_text(TYPED)
    wrong = TYPED
    for right, (instead, _) in WRONG.items():
        assert wrong.count(right) == 1
        wrong = wrong.replace(right, instead)
    (tmp_path / "wrong.py").write_text(wrong)

    # in the project's folder: mypy takes its configuration, and what it knows of the package
    reported = subprocess.run(
        [sys.executable, "-m", "mypy", tmp_path / "typed.py", tmp_path / "wrong.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert reported.returncode == 1, reported.stdout + reported.stderr
    errors = [line for line in reported.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if "typed.py" in line], reported.stdout
    assert sum("wrong.py" in line for line in errors) == len(WRONG), reported.stdout
    for _, message in WRONG.values():
        assert any(message in line for line in errors), reported.stdout


def test_the_typed_recipe_is_one(tmp_path):
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    built = runpy.run_path(str(file))["recipe"]()
    assert isinstance(built, Recipe) and len(built.train_data) == 8
    assert built.task.terms == ("square",) and not built.task.higher_is_better
