"""Every schedule against formulas written out here, at every step."""

import ast
import math
from pathlib import Path

import pytest
import torch

from trainkit import schedules

RUNS = [(1, 0), (2, 1), (7, 0), (10, 3), (10, 10), (100, 2.5), (333, 50), (1000, 0)]
FORMULAS = {
    "constant": (schedules.constant, {}, lambda t, n: 1.0),
    "linear": (schedules.linear, {}, lambda t, n: (n - t) / n),
    "linear to 0.1": (schedules.linear, {"end": 0.1}, lambda t, n: 1 - 0.9 * t / n),
    "cos": (schedules.cos, {}, lambda t, n: 0.5 * (1 + math.cos(math.pi * t / n))),
    "cos to 0.1": (
        schedules.cos,
        {"end": 0.1},
        lambda t, n: 0.1 + 0.45 * (1 + math.cos(math.pi * t / n)),
    ),
    "poly": (schedules.poly, {}, lambda t, n: (1 - t / n) ** 0.9),
    "poly 2": (
        schedules.poly,
        {"power": 2, "end": 0.01},
        lambda t, n: 0.01 + 0.99 * (1 - t / n) ** 2,
    ),
    "wsd": (schedules.wsd, {"decay": 0.25}, lambda t, n: 1.0 if t <= 0.75 * n else 4 * (1 - t / n)),
}


@pytest.mark.parametrize("total, warmup", RUNS)
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, total, warmup):
    make, arguments, formula = FORMULAS[name]
    schedule = make(**arguments, warmup_steps=warmup)
    for step in range(total):
        expected = step / warmup if step < warmup else formula(step - warmup, total - warmup)
        assert schedule(step, total) == pytest.approx(expected, rel=1e-12, abs=1e-15), step


@pytest.mark.parametrize("total, warmup", RUNS)
def test_steps_count_epochs_of_the_run(total, warmup):
    step, multistep = (
        schedules.step(2, 0.5, warmup_steps=warmup),
        schedules.multistep([1, 2.5], warmup_steps=warmup),
    )
    for t in range(total):
        ramp = t / warmup if t < warmup else None
        epoch = t / 4  # four steps an epoch
        assert step(t, total, 4) == pytest.approx(
            ramp if ramp is not None else 0.5 ** (epoch // 2), rel=1e-12
        )
        expected = 1.0 if epoch < 1 else 0.1 if epoch < 2.5 else 0.01
        assert multistep(t, total, 4) == pytest.approx(
            ramp if ramp is not None else expected, rel=1e-12
        )


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total)
    optimizer.step()
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert schedules.one_cycle()(step, total) == pytest.approx(expected, rel=1e-12)
        if step + 1 < total:
            scheduler.step()


def test_one_cycle_after_a_warm_up():
    schedule, plain = schedules.one_cycle(warmup_steps=5), schedules.one_cycle()
    assert [schedule(step, 25) for step in range(5)] == [0, 0.2, 0.4, 0.6, 0.8]
    assert [schedule(step, 25) for step in range(5, 25)] == [plain(step, 20) for step in range(20)]


def test_warm_up_in_epochs():
    schedule = schedules.cos(warmup_epochs=0.5)  # 2.5 steps of 5 an epoch
    assert [schedule(step, 10, 5) for step in range(3)] == [0, 0.4, 0.8]
    assert schedule(3, 10, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5 / 7.5)), rel=1e-12)


def test_last_step_is_never_a_division_by_zero():
    for make, arguments, _ in FORMULAS.values():
        assert math.isfinite(make(**arguments, warmup_steps=4)(4, 4))
    assert schedules.one_cycle(warmup_steps=4)(4, 4) == pytest.approx(1 / 25e4)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: schedules.cos(warmup_steps=11)(0, 10),
            "warm-up takes 11 steps and the whole run 10",
        ),
        (lambda: schedules.cos(warmup_epochs=3)(0, 10, 5), "warm-up takes 15 steps"),
        (lambda: schedules.cos(warmup_epochs=3)(0, 10), "call the schedule with steps_per_epoch"),
        (lambda: schedules.cos(warmup_epochs=3, warmup_steps=3), "in one unit"),
        (lambda: schedules.cos(warmup_steps=-1), "cannot be negative"),
        (lambda: schedules.cos()(11, 10), "step is 11"),
        (lambda: schedules.poly(power=0), "power is 0"),
        (lambda: schedules.wsd(decay=0), "decay is 0"),
        (lambda: schedules.one_cycle(rise=1), "rise is 1"),
        (lambda: schedules.step(0), "every_epochs is 0"),
        (lambda: schedules.multistep([3, 1]), r"milestones are \[3, 1\]"),
        (lambda: schedules.multistep([3])(0, 10), "multistep is given in epochs"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_imports_only_math_and_errors():
    tree = ast.parse(Path(schedules.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported == {"math", "collections.abc", "trainkit.errors"}
