"""Schedules of each of the optimizer's groups."""

import pytest
import torch

from helpers.logs import assert_bit_equal, rows, weights
from helpers.toy_recipes import recognition
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.errors import UserError
from trainkit.schedules import constant, delayed, poly
from trainkit.storage.checkpoint import list_checkpoints, load


def recipe(schedule):
    seed_host(3)
    made = recognition()
    head = made.model.head.parameters()
    groups = [{"params": list(made.model.backbone.parameters())}, {"params": list(head)}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return recognition(epochs=1, model=made.model, optimizer=optimizer, schedule=schedule)


def test_a_delayed_schedule_is_the_schedule_of_what_remains():
    schedule, inner = delayed(poly(warmup_steps=100), 50), poly(warmup_steps=100)
    assert [schedule(step, 1000) for step in (0, 49, 50)] == [0, 0, 0]
    for step in (51, 150, 151, 600, 1000):
        assert schedule(step, 1000) == inner(step - 50, 950)
    with pytest.raises(UserError, match="waits 50 steps, and the whole run has 40"):
        schedule(0, 40)
    with pytest.raises(UserError, match="warm-up takes 100 steps and the whole run 70"):
        schedule(0, 120)


def test_each_group_follows_its_own(tmp_path):
    """The backbone waits for three of four steps; equal curves are one curve."""
    made = recipe([delayed(constant(), 3), constant()])
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    options = {"seed": 3, "workers": 0, "log_every": 1, "checkpoint_every": 3}
    train(made, Options(out=tmp_path / "run", **options, keep_checkpoints=9))
    third = load(list_checkpoints(tmp_path / "run" / "checkpoints")[0])[0]
    assert all(torch.equal(third[n], before[n]) == n.startswith("backbone") for n in before)
    last = weights(tmp_path / "run")
    assert not any(torch.equal(last[name], before[name]) for name in before)
    assert [row["lr"] for row in rows(tmp_path / "run")] == [0, 0, 0, 0.1]
    for name, schedule in (("alike", [constant(), constant()]), ("one", constant())):
        train(recipe(schedule), Options(out=tmp_path / name, **options))
    assert_bit_equal(tmp_path / "alike", tmp_path / "one")


def test_a_list_of_another_length_is_refused():
    with pytest.raises(UserError, match="schedule is a list of 3, and the optimizer has 2 groups"):
        recipe([constant()] * 3)
