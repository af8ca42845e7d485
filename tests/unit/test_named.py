"""Names with arguments, as settings give them."""

import pytest

from helpers.toy_recipes import CLASSES, recognition
from trainkit.engine.metric_checks import with_headline
from trainkit.errors import UserError, did_you_mean
from trainkit.settings.parsing import parse_named, require_arguments
from trainkit.tasks.recognition import Recognition


@pytest.mark.parametrize(
    "text, name, arguments",
    [
        ("cos", "cos", {}),
        ("poly:power=0.9,end=1e-2", "poly", {"power": 0.9, "end": 0.01}),
        ("multistep:milestones=[30,60], gamma=-1", "multistep",
         {"milestones": [30, 60], "gamma": -1}),
        ("timm:lion", "timm:lion", {}),
        ("timm:lion:betas=(0.9,0.95),caution=True", "timm:lion",
         {"betas": (0.9, 0.95), "caution": True}),
        ("torchmetrics:F1Score:average=macro", "torchmetrics:F1Score", {"average": "macro"}),
        ("torchmetrics:F1Score:average=None,top_k=2", "torchmetrics:F1Score",
         {"average": None, "top_k": 2}),
        ("evaluate:./my/metric.py:kind='a b'", "evaluate:./my/metric.py", {"kind": "a b"}),
        ("evaluate:my_metric:file=a/b-c.txt", "evaluate:my_metric", {"file": "a/b-c.txt"}),
        (r"evaluate:C:\metrics\mine:average=macro", r"evaluate:C:\metrics\mine",
         {"average": "macro"}),
    ],
)  # fmt: skip
def test_a_name_and_its_arguments(text, name, arguments):
    assert parse_named("metrics", text) == (name, arguments)


@pytest.mark.parametrize(
    "text", ["poly:power=", "poly:power=0.9,0.1", "poly:a=1,a=2", "poly:a=1,**b"]
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="schedule is 'poly:.*cannot be read: give NAME"):
        parse_named("schedule", text)


def test_an_argument_that_is_not_taken_is_refused_with_the_nearest():
    def poly(power: float, *, end: float = 0.0) -> None: ...

    require_arguments("schedule", "poly", ["power", "end"], poly)
    require_arguments("schedule", "poly", ["anything"], lambda **any: None)
    with pytest.raises(UserError, match="schedule poly does not take powr; did you mean power"):
        require_arguments("schedule", "poly", ["powr"], poly)
    assert did_you_mean("zzz", ["a", "b"]) == "; there are a, b"


def test_directions_that_metrics_state():
    names = ["torchmetrics:F1Score:average=macro", "torchmetrics:HammingDistance"]
    recipe = recognition(task=Recognition(CLASSES, extra_metrics=names), ema=0.9)
    chosen = with_headline(recipe, "F1Score_macro")
    assert chosen.best_by == ("F1Score_macro", True) and chosen.headline == "ema_F1Score_macro"
    assert with_headline(recipe, "HammingDistance").best_by == ("HammingDistance", False)
