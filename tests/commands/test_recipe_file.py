"""A recipe is any callable whose settings can be seen.

What a run recorded of them comes back, or is refused.
"""

import inspect
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.processes import TESTS
from helpers.toy_recipes import Images, in_blocks, recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.commands.option_checks import check_finite
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.engine.metric_checks import RESERVED, require_free_names
from trainkit.errors import MissingFileError
from trainkit.storage.setting_values import plain, read_settings_as, typed
from trainkit.tasks.recognition import Recognition

HEAD = f"""
import functools, sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.toy_recipes import recognition
SAMPLE = {{"epochs": 0.75}}
"""
FORMS = {
    "function": "def recipe(epochs: float = 1.5): return recognition(epochs=epochs)",
    "decorated": "@loud\ndef recipe(epochs: float = 1.5): return recognition(epochs=epochs)",
    "partial": (
        "def base(epochs: float, drop: bool): return recognition(epochs=epochs, drop_last=drop)\n"
        "recipe = functools.partial(base, epochs=1.5, drop=False)"
    ),
    "partial decorated": (
        "recipe = functools.partial(loud(lambda epochs=1.5: recognition(epochs=epochs)),"
        " epochs=2.0)"
    ),
    "class": (
        "from dataclasses import fields\nfrom trainkit import Recipe\nclass recipe(Recipe):\n   "
        " def __init__(self, epochs: 'float' = 1.5):\n        made = recognition(epochs=epochs)\n  "
        "      super().__init__(**{each.name: getattr(made, each.name) for each in fields(made)})"
    ),
    "object": (
        "class Maker:\n    def __call__(self, epochs: float = 1.5): return"
        " recognition(epochs=epochs)\nrecipe = Maker()"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_callable_is_a_recipe(tmp_path, form):
    """Its SAMPLE is the file's, also where a decorator of another file stands around it."""
    (tmp_path / "loudly.py").write_text(
        "import functools\ndef loud(f):\n    @functools.wraps(f)\n    def g(*a, **k): return f(*a,"
        " **k)\n    return g\n"
    )
    (tmp_path / "mine.py").write_text(f"{HEAD}from loudly import loud\n{FORMS[form]}\n")
    recipe = load_recipe(tmp_path / "mine.py")
    assert (
        recipe.sample_settings() == {"epochs": 0.75}
        and "epochs" in inspect.signature(recipe).parameters
    )
    assert build(recipe, {"epochs": 0.25}).epochs == 0.25


def test_a_variant_has_the_sample_of_the_file_it_varies(tmp_path):
    (tmp_path / "varied.py").write_text(f"{HEAD}{FORMS['function']}\n")
    (tmp_path / "variant.py").write_text("from varied import recipe\n")
    assert load_recipe(tmp_path / "variant.py").sample_settings() == {"epochs": 0.75}


@pytest.mark.parametrize(
    "code, message",
    [
        (
            "def recipe(*words, **settings): ...",
            r"takes \*words, \*\*settings, which no flag can name",
        ),
        ("def recipe(lr, /): ...", "takes lr, which no flag can name"),
        ("def recipe(lr: 'Rate' = 0.1): ...", "an annotation of `recipe` names Rate"),
        ("recipe = dict", "the settings of `recipe` cannot be seen|takes"),
        ("def recipe(:", "line 1, is not Python: invalid syntax"),
        ("return", "line 1, is not Python: 'return' outside function"),
        ("recipe = 5", "has no function `recipe`"),
    ],
)
def test_what_cannot_be_a_recipe_is_reported(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "mine.py")


class Color(Enum):
    RED = 1
    BLUE = 2


class Size(NamedTuple):
    height: int
    width: int


@dataclass(frozen=True)
class Inner:
    place: Path = Path("x")
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    lr: float
    color: Color = Color.RED
    inner: Inner | None = None
    names: list[str] = field(default_factory=list)
    by_epoch: dict[int, float] = field(default_factory=dict)
    kinds: frozenset[str] = frozenset()
    size: Size = Size(1, 2)
    mode: Literal["a", 3] = "a"
    either: int | Path = 0
    both: Annotated[tuple[float, Color], "a note"] = (0.5, Color.BLUE)


NUMBERS = st.floats(allow_nan=False)
INNERS = st.builds(Inner, st.text().map(Path), st.lists(st.integers()).map(tuple))
OUTERS = st.builds(
    Outer,
    lr=NUMBERS,
    inner=st.none() | INNERS,
    by_epoch=st.dictionaries(st.integers(), NUMBERS),
    either=st.integers() | st.text().map(Path),
    both=st.tuples(NUMBERS, st.sampled_from(Color)),
)


@dataclass(frozen=True, slots=True)
class Slotted:
    lr: float
    inner: Inner | None = None


def test_numbers_in_dataclasses_are_finite():
    check_finite({"optimizer": Slotted(0.1), "inner": Slotted(1.0, Inner(Path("a"), ()))})
    with pytest.raises(ValueError, match="optimizer.lr is nan; it must be a finite number"):
        check_finite({"optimizer": Slotted(float("nan"))})


@given(OUTERS)
def test_settings_that_are_dataclasses_come_back(value):
    assert typed(json.loads(json.dumps(plain(value))), Outer) == value


@pytest.mark.parametrize(
    "value, annotation",
    [
        ("many", float), (True, int), (True, float), (1, bool), (1.5, int), (None, float),
        ([1], int), ({}, str), ("GREEN", Color), ("c", Literal["a", "b"]), ([1], tuple[int, int]),
        (["a"], tuple[int, ...]), ("x", list[str]), ({"lr": 1.0, "gone": 2}, Outer),
        ({"color": "RED"}, Outer), ([1, 2, 3], Size), ({}, Inner | Outer | None),
        ({"a": 1.0}, dict[int, float]), ("x", dict), ([], Path), ("x", int | None),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value, annotation):
    if annotation == Inner | Outer | None:
        value = {"place": "x", "lr": 1}
    with pytest.raises(ValueError):
        typed(value, annotation)


def test_what_may_be_two_dataclasses_is_refused():
    @dataclass
    class Other:
        place: Path

    with pytest.raises(ValueError, match="it may be Inner or Other"):
        typed({"place": "x"}, Inner | Other)


def test_a_default_that_json_does_not_know_comes_back():
    def recipe(dtype=torch.float32, sizes=(1, 2), lr: float = None): ...

    recorded = plain({"dtype": torch.float32, "sizes": (1, 2), "lr": None})
    found = read_settings_as(recorded, inspect.signature(recipe), Path("mine.py"))
    assert found == {"dtype": torch.float32, "sizes": (1, 2), "lr": None}


class Ending(Images):
    def __getitem__(self, index):
        if index == 5:
            raise StopIteration
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_dataset_that_stops_iterating_finishes_no_run(tmp_path, workers):
    with pytest.raises(
        ValueError, match=r"image 5 \(number 5 of Ending\): reading it raised StopIteration"
    ):
        train(recognition(train_data=Ending(27)), Options(out=tmp_path, workers=workers))
    assert not (tmp_path / "summary.json").exists()
    skipping = Options(out=tmp_path / "skip", workers=workers, on_bad_image="skip")
    assert train(recognition(train_data=Ending(27)), skipping)["bad_images"] >= 2


class Named:
    def __init__(self, name):
        self.metric = name

    def add_batch(self, **counted): ...

    def compute(self):
        return {self.metric: 1.0}


@pytest.mark.parametrize("name", ["step", "num_images", "event", "split", "best_step"])
def test_a_metric_does_not_take_a_name_of_the_log(tmp_path, name):
    assert name in RESERVED
    recipe = recognition(epochs=0.75, task=Recognition(7, extra_metrics=[Named(name)]))
    with pytest.raises(
        ValueError, match=f"metric Named computes {name}, which the log needs for itself"
    ):
        train(recipe, Options(out=tmp_path, workers=0))
    assert not (tmp_path / "log.jsonl").exists(), "before the first step"


class Shares(Named):
    """Of no image it computes nothing; it never forgets."""

    asked = 0

    def add_batch(self, **counted):
        self.asked += 1

    def compute(self):
        return {self.metric: self.asked / self.asked, "batches": self.asked}


class Declares(Shares):
    percent = ("split",)


def test_a_metric_that_needs_images_is_refused_where_it_has_them(tmp_path):
    """Before the first step by what it computes of a trial's labels, or declares.

    Of a task of one's own, whose labels nobody knows, by the first evaluation.
    """

    class Own(Recognition):
        pass

    options = Options(out=tmp_path / "run", workers=0, log_every=1)
    message = "metric Shares computes epoch, which the log needs for itself"
    with pytest.raises(ValueError, match=message):
        train(
            recognition(epochs=0.75, task=Recognition(7, extra_metrics=[Shares("epoch")])), options
        )
    assert not (tmp_path / "run").exists()
    late = Options(out=tmp_path / "late", workers=0, log_every=1)
    with pytest.raises(ValueError, match=message):
        train(recognition(epochs=0.75, task=Own(7, extra_metrics=[Shares("epoch")])), late)
    assert (tmp_path / "late" / "log.jsonl").read_text()
    declared = recognition(epochs=0.75, task=Recognition(7, extra_metrics=[Declares("share")]))
    with pytest.raises(ValueError, match="metric Declares computes split"):
        train(declared, Options(out=tmp_path / "declared", workers=0))
    assert not (tmp_path / "declared").exists()


def test_to_ask_a_metric_for_its_names_changes_nothing_in_it():
    class Remembers(Named):
        calls = 0

        def compute(self):
            self.calls += 1
            return {self.metric: self.calls}

    metric = Remembers("share")
    require_free_names(Recognition(7, extra_metrics=[metric]))
    assert metric.compute() == {"share": 1}


FRAGILE = (
    HEAD
    + """
from helpers.toy_recipes import in_blocks
def recipe():
    made = in_blocks()
    def spoil(module, inputs, outputs):
        spoilt = module.training and module[4].bias.detach().max() > 100
        return outputs * float("nan") if spoilt else outputs
    made.model.register_forward_hook(spoil)
    return made
"""
)


def test_replay_begins_from_the_weights_the_run_began_from(tmp_path, monkeypatch, capsys):
    """The step fails with these alone; where they are gone or others, it is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    weights = in_blocks().model.state_dict()
    weights["4.bias"] = torch.full_like(weights["4.bias"], 150.0)
    save_file(weights, "w.safetensors")
    more = ("--activation-checkpointing", "--static-graph", "--workers", "0", "--out", "run")
    assert main(["fragile.py", "--init-from", "w.safetensors", *more]) == 2
    report = json.loads(next((tmp_path / "run").glob("failures/*/report.json")).read_text())
    assert (
        report["static_graph"]
        and report["activation_checkpointing"]
        and report["checkpoint"] is None
    )
    assert (
        main(["replay", "run", "--workers", "0"]) == 0 and "fails again" in capsys.readouterr().out
    )
    weights["4.bias"] += 1
    save_file(weights, "w.safetensors")
    assert main(["replay", "run", "--workers", "0"]) == 2
    assert "w.safetensors, which have changed since" in capsys.readouterr().err
    (tmp_path / "w.safetensors").unlink()
    assert (
        main(["replay", "run", "--workers", "0"]) == 2
        and "which are gone" in capsys.readouterr().err
    )


def test_one_fault_has_one_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + FORMS["function"])
    (tmp_path / "broken.py").write_text("def recipe(:")
    save_file(recognition().model.state_dict(), "w.safetensors")
    weights = ("--weights", "w.safetensors")
    commands = {
        "train": (), "check": (), "doctor": (), "evaluate": weights,
        "predict": (*weights, "--out", "o", "x.png"),
        "export": (*weights, "--out", "o.safetensors"),
    }  # fmt: skip
    for file, more in (("nothing.py", ()), ("broken.py", ()), ("mine.py", ("--epochs", "nan"))):
        for command, words in commands.items():
            assert main([command, file, *words, *more]) == 2, (command, file)
            assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "asked, answer",
    [
        ("nope.py", "; recipes in recipes: recipes/recog_cars.py, recipes/seg_voc.py"),
        ("seg_vok.py", "; did you mean recipes/seg_voc.py?"),
        ("seg_voc", "; did you mean recipes/seg_voc.py?"),
        ("recog_car.py", "; did you mean recipes/recog_cars.py?"),
    ],
)
def test_a_recipe_that_is_not_there(asked, answer, tmp_path, monkeypatch):
    """Names are compared, and not the folder that all of them share."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("seg_voc.py", "recog_cars.py"):
        (tmp_path / "recipes" / name).touch()
    with pytest.raises(MissingFileError) as message:
        load_recipe(Path("recipes") / asked)
    assert str(message.value) == f"no recipe at {Path('recipes') / asked}{answer}"
