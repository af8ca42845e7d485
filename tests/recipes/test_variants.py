"""Recipes that are others with other defaults, and settings that all recipes share.

Flat, described, built as given.
"""

import functools
import inspect
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.processes import ROOT
from trainkit.commands.recipe_file import RecipeFile, load_recipe
from trainkit.errors import UserError
from trainkit.schedules import cos
from trainkit.settings import OptimizerSettings, ScheduleSettings, SharedSettings
from trainkit.settings.variants import variant

FILES = sorted((ROOT / "recipes").glob("*.py"))
EQUAL = 6  # lines that would be a part to share


def base(
    dataset,
    *,
    data: str = "here",
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.1, head_lr_mult=10.0),
    base: int = 520,
    schedule: ScheduleSettings = ScheduleSettings(epochs=3),
) -> SimpleNamespace:
    """What others vary.

    Args:
        data: where it is,
            on two lines
        lr: for 16 images a batch
        base: a side
    """
    return SimpleNamespace(
        dataset=dataset, data=data, optimizer=optimizer, schedule=schedule, base=base
    )


@variant(base, lr=0.5, base=112)
def voc(split: str = "train", **settings) -> SimpleNamespace:
    """Another dataset.

    Args:
        data: folder with VOCdevkit
        split: to train on
    """
    return base(split, **settings)


def test_no_six_equal_lines_stand_in_two_recipes():
    places: dict[tuple[str, ...], str] = {}
    for file in FILES:
        lines = [line.strip() for line in file.read_text().splitlines() if re.search(r"\w", line)]
        lines = [line for line in lines if not re.match(r"import |from \S+ import ", line)]
        for first in range(len(lines) - EQUAL + 1):
            part = tuple(lines[first : first + EQUAL])
            assert places.setdefault(part, file.name) == file.name, (file.name, part)


def test_a_variant_has_the_settings_of_its_base_flat_and_with_its_own_defaults():
    found = {name: each.default for name, each in inspect.signature(voc).parameters.items()}
    assert found == {
        "data": "here", "lr": 0.5, "weight_decay": 1e-4, "head_lr_mult": 10.0, "layer_decay": 1.0,
        "clip_norm": None, "clip_value": None, "clip_agc": None, "ema": None, "optimizer": "sgd",
        "momentum": None, "betas": None,
        "freeze": (), "unfreeze_epoch": None, "base": 112, "epochs": 3, "warmup_epochs": 0,
        "schedule": "cos", "split": "train",
    }  # fmt: skip
    assert inspect.signature(voc).parameters["ema"].annotation == float | None
    lines = inspect.getdoc(voc).splitlines()
    assert lines[0] == "Another dataset."
    assert "    data: folder with VOCdevkit" in lines  # its own words
    assert "    lr: for 16 images a batch" in lines  # those of the base
    assert any(
        line.startswith("    ema: decay of a moving average") for line in lines
    )  # the class's


def test_a_variant_passes_settings_on_packed():
    built = voc(lr=0.7, ema=0.9, epochs=5, split="val")
    assert built.optimizer == OptimizerSettings(lr=0.7, head_lr_mult=10.0, ema=0.9)
    assert built.schedule == ScheduleSettings(epochs=5)
    assert (built.dataset, built.data, built.base) == ("val", "here", 112)
    assert voc().optimizer.lr == 0.5
    with pytest.raises(TypeError, match="learning_rate"):
        voc(learning_rate=1)

    @variant(voc, lr=0.9)
    def again(**settings):
        """A variant of a variant."""
        return voc(**settings)

    assert again(weight_decay=0).optimizer == OptimizerSettings(
        lr=0.9, weight_decay=0, head_lr_mult=10.0
    )
    assert again().base == 112


def test_a_default_that_is_no_setting_is_refused():
    with pytest.raises(UserError, match="variant: base has no settings dataset, rate; it has data"):
        variant(base, rate=1, dataset=2)(lambda **settings: None)


def test_a_recipe_file_is_called_with_flat_settings():
    module = SimpleNamespace(__file__="somewhere.py")
    function = functools.partial(base, "set")
    for each in (RecipeFile(function, module), RecipeFile(voc, module)):
        assert inspect.signature(each).parameters["optimizer"].annotation is str  # the field
        assert each(lr=0.3, clip_norm=2.0).optimizer == OptimizerSettings(
            lr=0.3, head_lr_mult=10.0, clip_norm=2.0
        )
    plain = RecipeFile(function, module)
    assert plain(optimizer=OptimizerSettings(lr=7)).optimizer.lr == 7  # as from Python


def test_other_dataclasses_stay_groups():
    """A recipe's own dataclass is nested, as it always was.

    One derived from SharedSettings is flat.
    """

    @dataclass(frozen=True)
    class Nested:
        depth: int = 3

    @dataclass(frozen=True)
    class Flat(SharedSettings):
        width: int

    def recipe(nested: Nested = Nested(), *, flat: Flat, size: int = 1):
        return nested, flat, size

    file = RecipeFile(recipe, SimpleNamespace(__file__="somewhere.py"))
    parameters = inspect.signature(file).parameters
    assert list(parameters) == ["nested", "width", "size"]
    assert parameters["width"].default is inspect.Parameter.empty
    assert file(width=4) == (Nested(), Flat(4), 1)


def test_the_optimizer_is_built_as_given():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network.head_names = ("1",)
    settings = OptimizerSettings(
        lr=0.2, weight_decay=0.3, head_lr_mult=5.0, clip_norm=1.5, ema=0.9, optimizer="nesterov"
    )
    built = settings.build(network, decay_vectors=False)
    assert (built["clip_norm"], built["ema"]) == (1.5, 0.9)
    groups = built["optimizer"].param_groups
    found = {(each["lr"], each["weight_decay"], each["params"][0].ndim) for each in groups}
    assert found == {(0.2, 0.3, 2), (0.2, 0.0, 1), (1.0, 0.3, 2), (1.0, 0.0, 1)}
    assert all(each["nesterov"] and each["momentum"] == 0.9 and each["fused"] for each in groups)
    adamw = OptimizerSettings(lr=0.2, optimizer="adamw", betas=(0.5, 0.6)).build(network)
    assert type(adamw["optimizer"]) is torch.optim.AdamW
    assert all(each["betas"] == (0.5, 0.6) for each in adamw["optimizer"].param_groups)
    schedule = ScheduleSettings(epochs=7, warmup_epochs=2).build()
    assert schedule["epochs"] == 7
    assert schedule["schedule"](1, 100, 10) == cos(warmup_epochs=2)(1, 100, 10) == 1 / 20


# of images of several classes, which have other weights
SEVERAL_CLASSES = ("recog_multilabel", "seg_multilabel")
NUMBERS = ("depth_folder",)  # of which a metric of classes knows nothing
UNSAMPLED = (*NUMBERS, "seg_multilabel")  # whose images are of no one class


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_takes_the_shared_settings(path, tmp_path, monkeypatch):
    """Optimizer, schedule, clipping, EMA and warm-up, in any recipe."""
    monkeypatch.chdir(tmp_path)
    function = load_recipe(path)
    asked = {"clip_norm": 2.0, "ema": 0.5, "warmup_epochs": 0.25, "epochs": 2}
    asked |= {"optimizer": "lion", "betas": (0.5, 0.6), "schedule": "poly:power=2"}
    has_labels = path.stem not in NUMBERS
    metric = "torchmetrics:F1Score" if has_labels else "torchmetrics:R2Score"
    asked["metrics"] = (metric,)
    if path.stem not in UNSAMPLED:
        asked["sampler"] = "balanced"
    recipe = function(**{**function.sample_settings(), **asked, "sample": True})
    assert (recipe.clip_norm, recipe.ema, recipe.epochs) == (2.0, 0.5, 2)
    assert recipe.schedule(1, 80, 40) == pytest.approx(0.1)
    assert recipe.schedule(45, 80, 40) == pytest.approx(0.25)  # half of what is after the warm-up
    assert type(recipe.optimizer).__name__ == "Lion"
    assert recipe.task.extra_metrics == (metric,)
    assert recipe.sampler == ("shuffle" if path.stem in UNSAMPLED else "balanced")
    assert all(group["betas"] == (0.5, 0.6) for group in recipe.optimizer.param_groups)
    assert torch.is_tensor(next(recipe.model.parameters()))


PUBLISHED = {  # optimizer and schedule of each; nesterov is SGD with it
    "recog_cifar10": ("nesterov", "cos"),
    "recog_minc": ("sgd", "multistep"),
    "depth_folder": ("adamw", "poly"),
    "seg_ade20k_eomt": ("adamw", "poly"),
    "seg_ade20k_dinov3": ("adamw", "cos"),
    "seg_ade20k_segformer": ("adamw", "poly:power=1.0"),
    "seg_ade20k_upernet": ("adamw", "poly:power=1.0"),
    "recog_imagenet_convnextv2": ("adamw", "cos"),
    **dict.fromkeys(
        (
            "recog_imagenet_a1",
            "recog_imagenet_a2",
            "recog_imagenet_a3",
            "recog_imagenet_deit3",
        ),
        ("lamb", "cos"),
    ),
    **dict.fromkeys(
        ("recog_folder", "recog_imagenet", "recog_imagenet_resnest", "recog_multilabel"),
        ("sgd", "cos"),
    ),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_recipe_has_published_stays_its_default(path):
    parameters = inspect.signature(load_recipe(path)).parameters
    named = parameters["optimizer"].default, parameters["schedule"].default
    assert named == PUBLISHED.get(path.stem, ("sgd", "poly"))
    frozen = ("backbone",) if path.stem == "seg_ade20k_dinov3" else ()
    assert parameters["freeze"].default == frozen
    for name in ("momentum", "betas"):
        assert parameters[name].default is None
    ema = 0.9999 if path.stem == "recog_imagenet_convnextv2" else None
    assert parameters["ema"].default == ema
    clipped = {"seg_ade20k_eomt": 0.01, "seg_ade20k_dinov3": 35.0}
    assert parameters["clip_norm"].default == clipped.get(path.stem)
    assert parameters["metrics"].default == ()
    if path.stem not in UNSAMPLED:
        assert parameters["sampler"].default == "shuffle"
    if path.stem not in (*SEVERAL_CLASSES, *NUMBERS):
        assert parameters["class_weights"].default is None


def test_the_drop_of_minc_is_that_of_its_schedule_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = load_recipe(ROOT / "recipes" / "recog_minc.py")

    def schedule(**asked):
        return function(**{**function.sample_settings(), **asked, "sample": True}).schedule

    published = schedule(drop=2)
    assert [published(step, 6, 1) for step in range(6)] == pytest.approx([1, 1] + [0.1] * 4)
    other = schedule(drop=2, schedule="multistep:milestones=[1,4],gamma=0.5")
    assert [other(step, 6, 1) for step in range(6)] == [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert schedule(drop=2, schedule="constant")(5, 6, 1) == 1
