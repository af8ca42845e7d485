"""Optimizers of torch, timm, schedulefree and prodigyopt.

Saved and resumed bit for bit, or refused by name.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from helpers.network_recipes import Small, small
from helpers.optimizers import builders
from helpers.toy_recipes import CLASSES, Images
from trainkit import Options, Recipe
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.optimizer_state import evaluation_mode
from trainkit.engine.setup import Setup
from trainkit.engine.training import Training
from trainkit.storage.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings(
    "ignore:It is highly recommended to have 'opt_einsum':UserWarning"
)
REFUSED = {
    "torch.optim.LBFGS": "LBFGS computes the loss again in its step",
    "torch.optim.SparseAdam": "SparseAdam is for sparse gradients",
    "timm adahessian": "Adahessian needs second derivatives",
    "schedulefree.AdamWScheduleFreeClosure": "AdamWScheduleFreeClosure computes the loss again",
    "schedulefree.RAdamScheduleFreeClosure": "RAdamScheduleFreeClosure computes the loss again",
    "schedulefree.SGDScheduleFreeClosure": "SGDScheduleFreeClosure computes the loss again",
}
STEPS, SAVED = 7, 3


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    """And functions that an optimizer compiles, such as timm's Kron, run as they are written."""
    torch.compiler.set_stance("force_eager")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors as small as these, more wait for each other
    yield start_accelerator()
    torch.set_num_threads(threads)
    torch.compiler.set_stance("default")


def begun(recipe: Recipe, accelerator: Accelerator, folder, **options) -> Training:
    folder.mkdir(exist_ok=True)
    options = Options(out=folder, workers=0, async_checkpoint=False, keep_checkpoints=9, **options)
    run = RunFolder(folder)
    run.checkpoints.mkdir(exist_ok=True)
    training = Training(Setup(recipe, options).silent(options), run)
    training.stepper.task_module.train()
    return training


def step(training: Training, number: int, bad: bool = False) -> None:
    images, targets = (part[8 * (number % 3) :][:8] for part in training.recipe.train_data.batch)
    training.stepper(number, images * math.nan if bad else images, targets)
    training.state.advance(num_images=8, seconds=0.0)


def images() -> Images:
    data = Images(27, augment=False)
    data.batch = data.images.float() / 64 - 1, data.targets
    return data


@pytest.mark.parametrize("name", builders())
def test_a_resume_is_bit_equal_or_refused(tmp_path, accelerator, name):
    """Against a run that was neither stopped nor saved, which an evaluation in between does not
    change either."""
    build, data = builders()[name], images()
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            begun(small(build, train_data=data), accelerator, tmp_path)
        return
    whole = begun(small(build, train_data=data), accelerator, tmp_path)
    for number in range(STEPS):
        step(whole, number)

    first = begun(small(build, train_data=data), accelerator, tmp_path)
    first.checkpointer.require_savable()
    for number in range(SAVED):
        step(first, number)
    first.checkpointer.require_savable()
    with evaluation_mode(first.recipe.optimizer):
        first.recipe.model.eval()(data.batch[0])
    first.recipe.model.train()
    first.checkpointer.save()

    second = begun(small(build, train_data=data), accelerator, tmp_path)
    second.checkpointer.restore(tmp_path / "checkpoints" / f"step-{SAVED:09d}")
    for number in range(SAVED, STEPS):
        step(second, number)
    assert not torch.equal(whole.recipe.model.head.weight, small(build).model.head.weight)
    for key, value in whole.recipe.model.state_dict().items():
        assert torch.equal(value, second.recipe.model.state_dict()[key]), key
    assert str(second.recipe.optimizer.state_dict()) == str(whole.recipe.optimizer.state_dict())


@pytest.mark.parametrize("name", [name for name in builders() if name not in REFUSED])
def test_a_skipped_step_is_no_step_to_the_optimizer(tmp_path, accelerator, name):
    """Weights, state and averages are those of a run without the first step and a later one, bit
    for bit."""
    build, data = builders()[name], images()
    skipping = begun(
        small(build, train_data=data, ema=0.9), accelerator, tmp_path, on_nonfinite="skip"
    )
    other = begun(small(build, train_data=data, ema=0.9), accelerator, tmp_path)
    for number in range(6):
        bad = number in (0, 3)
        step(skipping, number, bad)
        if not bad:
            step(other, number)
    for key, value in other.recipe.model.state_dict().items():
        assert torch.equal(value, skipping.recipe.model.state_dict()[key]), key
    assert str(other.recipe.optimizer.state_dict()) == str(skipping.recipe.optimizer.state_dict())
    averages = [each.checkpointer.ema.state_dict() for each in (skipping, other)]
    assert averages[0]["count"] == averages[1]["count"] == 4
    for key, value in averages[1]["averages"].items():
        assert torch.equal(value, averages[0]["averages"][key]), key


class Counting(torch.optim.SGD):
    """Counts and estimates in its groups, as Prodigy does."""

    def __init__(self, weights, lr: float, weight_decay: float = 0.0):
        super().__init__(weights, lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group |= {"estimate": 1.0, "taken": 0}

    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] += 1
            group["lr"] *= group["estimate"]
        super().step(closure)
        for group in self.param_groups:
            group["estimate"] *= 1.5


class Together(torch.optim.SGD):
    """Keeps state of all weights together, under names of its own."""

    @torch.no_grad()
    def step(self, closure=None):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        norms = self.state["norms"].setdefault("sum", torch.zeros(()))
        norms += sum(weight.grad.norm() for weight in weights)
        self.state["taken"] = self.state.get("taken", 0) + 1
        for weight in weights:
            weight.grad /= norms / self.state["taken"]
        super().step(closure)


def test_state_of_all_weights_together_is_resumed(tmp_path, accelerator):
    data = images()
    trainings = []
    for last in (STEPS, SAVED, STEPS):
        recipe = small(lambda model: Together(model.parameters(), 0.05, 0.9), train_data=data)
        training = begun(recipe, accelerator, tmp_path)
        resumed = len(trainings) == 2
        if resumed:
            training.checkpointer.restore(tmp_path / "checkpoints" / f"step-{SAVED:09d}")
        for number in range(SAVED if resumed else 0, last):
            step(training, number)
        if last == SAVED:
            training.checkpointer.save()
        trainings.append(training)
    whole, _, again = (each.recipe for each in trainings)
    assert again.optimizer.state["taken"] == STEPS
    assert torch.equal(whole.model.head.weight, again.model.head.weight)
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())


def test_what_was_changed_on_purpose_is_all_that_changes(tmp_path, accelerator):
    """A resume with another weight decay has that, and the groups' own counts."""
    data = images()
    first = begun(
        small(lambda model: Counting(model.parameters(), 0.01), train_data=data),
        accelerator,
        tmp_path,
    )
    for number in range(SAVED):
        step(first, number)
    first.checkpointer.save()
    changed = small(
        lambda model: Counting(model.parameters(), 0.01, weight_decay=0.5), train_data=data
    )
    second = begun(changed, accelerator, tmp_path)
    second.checkpointer.restore(tmp_path / "checkpoints" / f"step-{SAVED:09d}")
    (group,) = changed.optimizer.param_groups
    assert (group["taken"], group["estimate"], group["weight_decay"]) == (SAVED, 1.5**SAVED, 0.5)
    other = begun(
        small(lambda model: torch.optim.AdamW(model.parameters()), train_data=data),
        accelerator,
        tmp_path,
    )
    with pytest.raises(
        ValueError, match="the checkpoint is of optimizer Counting, and the recipe has AdamW"
    ):
        other.checkpointer.restore(tmp_path / "checkpoints" / f"step-{SAVED:09d}")


@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_optimizers_parameters_count(tmp_path, accelerator, frozen):
    """A linear probe: norm and clip are of the head, and other gradients do not accumulate."""
    data = images()

    def probe(model: nn.Module) -> torch.optim.Optimizer:
        model.backbone.requires_grad_(not frozen)
        return torch.optim.SGD(model.head.parameters(), lr=0.1)

    training = begun(small(probe, train_data=data, clip_norm=0.05), accelerator, tmp_path)
    by_hand = Small()
    by_hand.load_state_dict(training.recipe.model.state_dict())
    for number in range(3):
        part = slice(8 * number, 8 * number + 8)
        inputs, targets = data.batch[0][part], data.batch[1][part]
        loss = nn.functional.cross_entropy(by_hand(inputs), targets, label_smoothing=0.1)
        grads = torch.autograd.grad(loss, list(by_hand.head.parameters()))
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        with torch.no_grad():
            for weight, grad in zip(by_hand.head.parameters(), grads):
                weight -= 0.1 * grad * (0.05 / norm).clamp(max=1)
        stats = training.stepper(number, inputs, targets)
        assert stats.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        assert all(weight.grad is None for weight in training.recipe.model.parameters())
    for name, value in training.recipe.model.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_an_optimizer_of_another_model_is_refused(tmp_path, accelerator):
    recipe = small(lambda model: torch.optim.SGD(model.parameters(), lr=0.1), train_data=images())
    recipe.model.head = nn.Linear(4, CLASSES)
    with pytest.raises(
        ValueError, match="SGD has 2 parameters that are not the model's .*build it after the model"
    ):
        begun(recipe, accelerator, tmp_path)


def test_no_gradient_at_all_is_reported(tmp_path, accelerator):
    class Apart(Small):
        def forward(self, x):
            return super().forward(x) + 0 * self.backbone(x).sum()

    recipe = small(
        lambda model: torch.optim.SGD(model.head.parameters(), lr=0.1), train_data=images()
    )
    recipe.model.head.requires_grad_(False)
    training = begun(recipe, accelerator, tmp_path)
    with pytest.raises(
        ValueError, match="no gradient reached the 2 parameters of optimizer SGD in step 1"
    ):
        step(training, 0)
