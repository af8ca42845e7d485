"""Schedules by name: equal to the functions called by hand."""

import inspect
import re

import pytest

from trainkit import schedules
from trainkit.errors import UserError
from trainkit.settings.parsing import parse_named
from trainkit.settings.schedules import CURVES, named_schedule

NAMED = {
    "constant": schedules.constant(),
    "cos": schedules.cos(),
    "linear:end=0.1": schedules.linear(0.1),
    "poly": schedules.poly(0.9),
    "poly:power=2,end=0.01": schedules.poly(2, 0.01),
    "wsd:decay=0.5": schedules.wsd(0.5),
    "one_cycle": schedules.one_cycle(),
    "step:every_epochs=2,gamma=0.5": schedules.step(2, 0.5),
    "multistep:milestones=[2,3]": schedules.multistep([2, 3]),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_schedule_by_name_is_that_of_the_function(name):
    for warmup in (0, 1.5):
        found = named_schedule(name, warmup)
        make = CURVES[name.partition(":")[0]]
        arguments = parse_named("schedule", name)[1]
        expected = make(**arguments, warmup_epochs=warmup)
        curve = [found(step, 40, 10) for step in range(40)]
        assert curve == [expected(step, 40, 10) for step in range(40)]
        if not warmup:
            assert curve == [NAMED[name](step, 40, 10) for step in range(40)]


def test_every_schedule_has_a_name():
    public = {
        name
        for name, value in vars(schedules).items()
        if inspect.isfunction(value)
        and value.__module__ == schedules.__name__
        and not name.startswith(("_", "named"))
    }
    public.remove("delayed")  # takes another schedule, for one of the optimizer's groups
    assert public == set(CURVES) == {name.partition(":")[0] for name in NAMED}


@pytest.mark.parametrize(
    "name, message",
    [
        ("cosine", "no schedule of the name cosine; did you mean cos?"),
        ("step", "schedule step needs every_epochs, in epochs: --schedule step:every_epochs=30"),
        ("multistep", "--schedule multistep:milestones=[30,60]"),
        ("cos:power=2", "schedule cos does not take power"),
        ("cos:warmup_epochs=2", "warmup_epochs is given by --warmup-epochs"),
    ],
)
def test_a_schedule_that_cannot_be_named_is_refused(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        named_schedule(name)
