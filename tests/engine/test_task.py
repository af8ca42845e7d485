"""The loop's calls of a task: defaults, what changes with the step, targets made in the step."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, Recipe, evaluate, train
from trainkit.data.mixup import Mixup, soft_targets
from trainkit.data.seeding import seed_host
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError
from trainkit.metrics.base import Counting
from trainkit.schedules import cos
from trainkit.storage.checkpoint import list_checkpoints, load
from trainkit.storage.lookup import trained_steps
from trainkit.tasks.base import TASK_DEFINES, Task, as_task
from trainkit.tasks.recognition import Recognition


class Points(Dataset):
    """y = 2 x0 - x1 + 3, without noise."""

    def __init__(self, num_points):
        self.x = torch.randn(num_points, 2, generator=torch.Generator().manual_seed(num_points))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return x, 2 * x[0] - x[1] + 3


class MeanError(Counting):
    """Squared error in thousandths."""

    name = "mean_error"

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.int64)

    def _count(self, predictions, references):
        errors = (1000 * (predictions - references) ** 2).round().long()
        return torch.stack([torch.tensor(len(references)), errors.sum()])

    def _results(self):
        return {"error": self.counts[1].item() / 1000 / max(1, self.counts[0].item())}


class Members:
    """The members that a task must have, and no base class."""

    terms = ("squared_error",)
    headline = "error"
    higher_is_better = False

    def counts(self, targets):
        return torch.tensor([float(len(targets))])

    def losses(self, outputs, targets):
        return ((outputs.squeeze(1) - targets) ** 2).sum()[None]

    def predict(self, outputs, targets):
        return outputs.squeeze(1)

    def metrics(self):
        return [MeanError()]


class Inherits(Members, Task):
    """The same members with the defaults of the base class."""


class Warmed(nn.Module):
    """A linear map whose output is scaled by a buffer that the task sets, and by an attribute."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 1)
        self.register_buffer("scale", torch.zeros(()))
        self.offset = 0.0

    def forward(self, images):
        return self.scale * self.linear(images) + self.offset


@dataclass
class Annealed(Inherits):
    """Changes a buffer and an attribute of the model and a weight of its own loss with the step."""

    fails_at: int | None = None
    weight: float = math.nan

    def at_step(self, model, step, total_steps):
        if step == self.fails_at:
            raise RuntimeError("pulled the plug")
        assert not torch.is_grad_enabled()
        model.scale.fill_(0.5 + step / total_steps)
        model.offset = step / 8
        self.weight = 1 + step / total_steps

    def losses(self, outputs, targets):
        return self.weight * super().losses(outputs, targets)


def regression(task, model=None, **changes):
    torch.manual_seed(0)
    model = nn.Linear(2, 1) if model is None else model
    settings = {
        "task": task, "model": model, "train_data": Points(24), "val_data": Points(10), "epochs": 4,
        "batch_size": 8, "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "schedule": cos(),
    }  # fmt: skip
    return Recipe(**(settings | changes))


def weights_of(run):
    model, _ = load(list_checkpoints(run / "checkpoints")[-1])
    return model


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("member", TASK_DEFINES)
def test_a_task_without_a_member_that_it_must_define_is_refused(member):
    for base in ((), (Task,)):
        members = {name: value for name, value in vars(Members).items() if name != member}
        lacking = type("Lacking", base, members)
        with pytest.raises(
            UserError, match=f"task Lacking lacks {member}; see trainkit.tasks.base.Task"
        ):
            regression(lacking())


@pytest.mark.parametrize(
    "member, value", [("higher_is_better", "no"), ("rows_per_image", 0), ("rows_per_image", 1.5)]
)
def test_a_task_with_a_member_of_another_kind_is_refused(member, value):
    task = Inherits()
    setattr(task, member, value)
    with pytest.raises(UserError, match=f"task Inherits: {member} is {value!r}; it must be"):
        regression(task)


def test_a_task_that_does_not_inherit_is_completed(tmp_path):
    for name, task in (("members", Members()), ("inherits", Inherits())):
        train(regression(task), Options(out=tmp_path / name, workers=0))
    assert same(weights_of(tmp_path / "members"), weights_of(tmp_path / "inherits"))

    given = Members()
    task = as_task(given)
    assert task.given is given and task.terms == ("squared_error",) and as_task(task) is task
    assert task.known_classes is None and task.thorough_metrics() == [] and not task.is_dense
    assert task.check(torch.tensor(1)) is None and not task.provides("check")
    given.classes = ["a", "b"]  # what it comes to have later is seen too
    assert task.known_classes == ["a", "b"]


def test_a_property_that_fails_is_not_taken_for_one_that_is_not_there():
    class Broken(Members):
        @property
        def percent(self):
            return self.nowhere

    with pytest.raises(AttributeError, match="nowhere"):
        _ = as_task(Broken()).percent


def test_a_dataclass_that_inherits_keeps_its_required_fields():
    @dataclass
    class WithClasses(Inherits):
        classes: int
        num_classes: int

    with pytest.raises(TypeError, match="classes"):
        WithClasses()


def test_a_module_as_a_task_moves_with_the_model():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones(()))

    for name in TASK_DEFINES:
        setattr(Module, name, getattr(Members, name))
    task = Module()
    task_module = TaskModule(nn.Linear(2, 1), task).to("meta")
    assert task.weight.device.type == "meta" and task_module.task.given is task


def test_a_task_that_changes_with_the_step_is_resumed_bit_equal(tmp_path):
    """Also evaluated in between, with averaged weights, and again from the checkpoint alone."""
    options = {"workers": 0, "evaluate_every": 1, "log_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = train(regression(Annealed(), Warmed(), ema=0.5), Options(out=whole, **options))
    for step in (2, 7):
        with pytest.raises(RuntimeError, match="pulled the plug"):
            train(
                regression(Annealed(fails_at=step), Warmed(), ema=0.5), Options(out=cut, **options)
            )
    resumed = train(regression(Annealed(), Warmed(), ema=0.5), Options(out=cut, **options))
    assert same(weights_of(whole), weights_of(cut))
    assert resumed["final"] == summary["final"] and resumed["best"] == summary["best"]
    assert weights_of(whole)["scale"] == 0.5 + 11 / 12, (
        "set before the last step, and averaged by no evaluation"
    )

    last = list_checkpoints(whole / "checkpoints")[-1]
    found = evaluate(regression(Annealed(), Warmed(), ema=0.5), last, workers=0)
    assert found == summary["final"]
    by_hand = Warmed()
    by_hand.load_state_dict(weights_of(whole))
    with torch.no_grad():
        Annealed().at_step(by_hand, 12, 12)
        errors = [(by_hand(x[None]).squeeze() - y) ** 2 for x, y in Points(10)]
    assert found["error"] == pytest.approx(sum(errors).item() / 10, abs=1e-3)


def test_weights_of_an_unknown_step_are_refused_where_the_task_changes_with_it(tmp_path):
    torch.save(Warmed().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match="task Annealed changes with the step .at_step., and nothing says"
    ):
        evaluate(regression(Annealed(), Warmed()), tmp_path / "w.pth", workers=0)
    assert trained_steps(as_task(Members()), None, tmp_path / "w.pth") is None


@dataclass(frozen=True)
class Distilled(Recognition):
    """Targets half of a teacher, which draws random numbers."""

    mixed: list = field(default_factory=list)
    prepared: list = field(default_factory=list)

    def prepare(self, images, targets):
        assert not torch.is_grad_enabled() and images.dtype == torch.float32
        self.mixed.append(soft_targets(targets, CLASSES))
        self.prepared.append((self.mixed[-1] + torch.rand(len(images), CLASSES).softmax(1)) / 2)
        return self.prepared[-1]

    def losses(self, outputs, targets):
        assert torch.equal(targets, self.prepared[-1])
        return super().losses(outputs, targets)


@pytest.mark.parametrize("mix", [None, Mixup(alpha=1.0, num_classes=CLASSES)])
def test_targets_are_prepared_after_mixing_and_without_gradients(mix, tmp_path):
    def one_epoch(folder, num_drawn):
        seed_host(1)
        task = Distilled(CLASSES)
        recipe = recognition(task=task, mix=mix, epochs=1)
        torch.rand(num_drawn)  # what the process has drawn before says nothing
        train(recipe, Options(out=folder, workers=1))  # this process reads no image
        return task

    task, again = one_epoch(tmp_path / "run", 0), one_epoch(tmp_path / "again", 7)
    mixed = any(((targets > 0).sum(1) == 2).any() for targets in task.mixed)
    assert task.mixed and mixed == (mix is not None)
    assert all(torch.equal(one, other) for one, other in zip(task.prepared, again.prepared))
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "again"))


def test_a_task_with_two_rows_per_image(tmp_path):
    class Both(Inherits):
        """Its prediction and the same again; the metric halves."""

        rows_per_image = 2

        def predict(self, outputs, targets):
            return outputs.squeeze(1).repeat_interleave(2)

        def metrics(self):
            return [OfTwo()]

    class OfTwo(MeanError):
        def _count(self, predictions, references):
            assert len(predictions) == 2 * len(references)
            return super()._count(predictions[::2], references)

    one = train(regression(Inherits(), eval_batch_size=3), Options(out=tmp_path / "one", workers=0))
    two = train(regression(Both(), eval_batch_size=3), Options(out=tmp_path / "two", workers=0))
    assert one["final"] == two["final"]

    wrong = Both()
    wrong.rows_per_image = 1
    with pytest.raises(
        UserError, match="Both: predict gave 6 rows for 3 images, and rows_per_image is 1"
    ):
        train(regression(wrong, eval_batch_size=3), Options(out=tmp_path / "wrong", workers=0))


def test_a_metric_from_elsewhere_takes_labels(tmp_path):
    class Foreign:
        name = "foreign"

        def add_batch(self, predictions, references):
            pass

        def compute(self):
            return {"error": 0.0}

    class WithForeign(Inherits):
        def metrics(self):
            return [Foreign()]

    with pytest.raises(UserError, match="task WithForeign lacks labels"):
        train(regression(WithForeign()), Options(out=tmp_path / "run", workers=0))
    assert not (tmp_path / "run").exists(), "refused before the first step"


def test_recipes_are_replaced_with_the_task_they_have():
    recipe = regression(Members())
    assert replace(recipe, epochs=2).task is recipe.task
