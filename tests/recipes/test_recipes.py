"""Every recipe file.

What its docstring says, and a few steps on generated data through the command line.
"""

import ast
import dataclasses
import inspect
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.dataset_info import opened
from trainkit.data.seeding import seed_host
from trainkit.errors import UserError
from trainkit.options import EvaluateOptions, ExportOptions, Options, PredictOptions

FILES = sorted((ROOT / "recipes").rglob("*.py"))


def test_all_are_found():
    own = ["depth_folder"]
    recognition = [
        "recog_cifar10",
        "recog_folder",
        "recog_imagenet",
        "recog_imagenet_a1",
        "recog_imagenet_a2",
        "recog_imagenet_a3",
        "recog_imagenet_convnextv2",
        "recog_imagenet_deit3",
        "recog_imagenet_resnest",
        "recog_minc",
        "recog_multilabel",
    ]
    more = ["seg_cityscapes", "seg_coco", "seg_folder", "seg_multilabel", "seg_pcontext", "seg_voc"]
    variants = ["dinov3", "encnet", "eomt", "segformer", "upernet"]
    ade20k = ["seg_ade20k", *(f"seg_ade20k_{name}" for name in variants)]
    assert [path.stem for path in FILES] == [*own, *recognition, *ade20k, *more]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_and_settings(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    for part in (
        "Source: ",
        f"Launch: trainkit {path.stem}",
        f"accelerate launch -m trainkit {path.stem}",
        "Hardware and time: ",
        "Expected: ",
    ):
        assert part in text, part
    function = load_recipe(path)
    parameters = inspect.signature(function).parameters
    assert "sample" in parameters and parameters["sample"].default is False
    assert set(function.sample_settings()) <= set(parameters)
    described = inspect.getdoc(function)
    for name, parameter in parameters.items():
        assert f"\n    {name}: " in described, f"{name} is not described"
        assert (
            parameter.default is not inspect.Parameter.empty
            and parameter.annotation is not inspect.Parameter.empty
        )


# further variants of recipes that others of the suite train
AT_NIGHT = (
    *(f"recog_imagenet_{name}" for name in ("a1", "a2", "a3", "convnextv2", "deit3")),
    "recog_imagenet_resnest",
    *(f"seg_ade20k_{name}" for name in ("dinov3", "encnet", "eomt", "segformer", "upernet")),
    "seg_ade20k",  # which .ci/run trains for longer
    "seg_cityscapes",
    "seg_coco",
    "seg_pcontext",
)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[night] if path.stem in AT_NIGHT else [])
        for path in FILES
        for night in [pytest.mark.nightly]
    ],
)
def test_a_few_steps_on_generated_data(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warmup = (
        ("--warmup-epochs", "0")
        if "warmup_epochs" in inspect.signature(load_recipe(path)).parameters
        else ()
    )
    assert (
        main(
            [
                str(path),
                "--sample",
                "--epochs",
                "0.2",
                *warmup,
                "--workers",
                "0",
                "--log-every",
                "1",
            ]
        )
        == 0
    )
    folder = tmp_path / "runs" / path.stem
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["event"] == "step"]
    assert len(losses) >= 2 and all(map(math.isfinite, losses))
    assert json.loads((folder / "summary.json").read_text())["final"]["num_images"] > 20


@pytest.mark.parametrize(
    "name, settings, parameters, shape",
    [
        # torchvision publishes 35,322,218 and 42,004,074 for 21 classes; 129 more in each of the
        # two heads
        ("seg_ade20k", {}, 35_322_218 + 129 * (513 + 257), (1, 150, 64, 64)),
        (
            "seg_ade20k",
            {"model": "deeplabv3"},
            42_004_074 + 129 * (257 + 257),
            (1, 150, 64, 64),
        ),
        (
            "seg_folder",
            {"model": "lraspp", "backbone": "mobilenet_v3_large"},
            None,
            (1, 16, 64, 64),
        ),
        # 25,557,032 and 11,689,512 for 1000 classes; the stem for CIFAR has 27 weights a filter,
        # not 147
        ("recog_imagenet", {}, 25_557_032 - 992 * 2049, (1, 8)),
        ("recog_folder", {"model": "resnet18"}, 11_689_512 - 992 * 513, (1, 8)),
        ("recog_cifar10", {"model": "resnet18"}, 11_689_512 - 992 * 513 - 64 * 120, (1, 8)),
    ],
)
def test_published_networks(name, settings, parameters, shape, tmp_path, monkeypatch):
    """The networks that --sample replaces are built and answer with the right shape."""
    monkeypatch.chdir(tmp_path)
    function = load_recipe(ROOT / "recipes" / f"{name}.py")
    known = inspect.signature(function).parameters
    weights = {"pretrained": False} if "pretrained" in known else {}
    recipe = build(function, {**weights, **settings, "sample": True})
    if parameters is not None:
        assert sum(p.numel() for p in recipe.model.parameters()) == parameters
    with torch.no_grad():
        outputs = recipe.model.eval()(torch.zeros(1, 3, 64, 64))
    assert (outputs["out"] if isinstance(outputs, dict) else outputs).shape == shape


def test_augmentation_and_test_resolution_are_settings(tmp_path, monkeypatch):
    """Ten crops of another size than in training, and every ingredient at once."""
    monkeypatch.chdir(tmp_path)
    words = [
        "--eval-size",
        "40",
        "--crop-fraction",
        "0.9",
        "--ten-crop",
        "--cutmix",
        "1.0",
        "--jitter",
        "0.4",
        "0.4",
        "0.4",
    ]
    words += [
        "--lighting",
        "0.1",
        "--erase",
        "0.25",
        "--auto-augment",
        "svhn",
        "--vflip",
        "0.5",
        "--epochs",
        "0.2",
        "--warmup-epochs",
        "0",
    ]
    path = ROOT / "recipes" / "recog_imagenet.py"
    assert main([str(path), "--sample", *words, "--workers", "0"]) == 0
    recipe = build(
        load_recipe(path),
        {"sample": True, "model": "small", "eval_size": 40, "ten_crop": True, "cutmix": 1.0},
    )
    assert recipe.val_data[0][0].shape == (10, 3, 40, 40) and len(recipe.mix.mixings) == 2
    assert (
        0
        <= json.loads((tmp_path / "runs/recog_imagenet/summary.json").read_text())["final"]["top1"]
        <= 1
    )


def test_settings_of_segmentation(tmp_path, monkeypatch, capsys):
    """Losses, crops and the protocol of evaluations.

    Centre crops are called so wherever their results stand.
    """
    monkeypatch.chdir(tmp_path)
    path, crop = (
        ROOT / "recipes" / "seg_folder.py",
        "centre crop of 64 of image and mask, seen whole, scale 1",
    )
    common = [str(path), "--sample", "--workers", "0"]
    words = [
        "--loss",
        "ohem",
        "dice",
        "--photometric",
        "--cat-max-ratio",
        "0.9",
        *("--mosaic", "0.5", "--copy-paste", "0.5", "--vflip", "0.5", "--rotate90", "0.75"),
        *("--cutmix", "1"),
        "--epochs",
        "0.2",
        "--out",
        "run",
    ]
    assert main([*common, *words, "--log-every", "1", "--eval-crop", "64"]) == 0
    assert f"protocol {crop}" in capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(
        row["loss_ohem"] > 0 and row["loss_dice"] > 0 for row in log if row["event"] == "step"
    )
    assert [row["protocol"] for row in log if row["event"] == "evaluate"] == [crop]
    found = {}
    for name, more in (
        ("crop", []),
        ("whole", ["--eval-crop", "None"]),
        ("windows", ["--eval-window", "64", "48"]),
    ):
        assert main(["evaluate", *common, "--weights", "run", *more]) == 0
        found[name] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (
        found["crop"]["mIoU"]
        == json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["mIoU"]
    )
    assert [each["protocol"] for each in found.values()] == [
        crop, "long side 112, seen whole, scale 1",
        crop.replace("seen whole", "windows of 64 every 48")
    ]  # fmt: skip
    assert all(each["split"] == "val" and each["num_images"] == 24 for each in found.values())
    assert torch.tensor(found["crop"]["confusion"]).sum() <= 24 * 64 * 64
    # no images
    assert (
        main(["predict", *common[:2], str(ROOT / "docs"), "--weights", "run", "--out", "out"]) == 2
    )
    image = next((Path(os.environ["XDG_CACHE_HOME"]) / "trainkit/sample").rglob("*.jpg"))
    assert main(["predict", *common[:2], str(image), "--weights", "run", "--out", "out"]) == 2
    assert (
        "segmentation masks are of whole images: predict with --as-stored"
        in capsys.readouterr().err
    )


BY_MASKS = ROOT / "recipes" / "seg_ade20k_eomt.py"  # whose losses and windows are its own
OVERLAPPING = ROOT / "recipes" / "seg_multilabel.py"  # whose losses are others


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.stem.startswith("seg_") and path not in (BY_MASKS, OVERLAPPING)
    ],
    ids=lambda path: path.stem,
)
def test_segmentation_recipes_have_the_same_settings(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = load_recipe(path)
    assert inspect.signature(function).parameters["sync_batch_norm"].default is True
    # so that two processes on CPUs can try it
    assert function.sample_settings()["sync_batch_norm"] is False
    asked = {
        "loss": ("focal", "lovasz"),
        "photometric": True,
        "cat_max_ratio": 0.5,
        "eval_window": (48, 32),
    }
    recipe = build(
        function, {**function.sample_settings(), **asked, "sync_batch_norm": True, "sample": True}
    )
    assert recipe.task.terms[:2] == ("focal", "lovasz") and recipe.sync_batch_norm
    assert (
        recipe.protocol
        == f"long side {function.sample_settings()['long_side']}, windows of 48 every 32, scale 1"
        + (", filled up to sides divisible by 16" if path.stem == "seg_ade20k_dinov3" else "")
    )
    steps = opened(recipe.train_data).transform.transforms
    names = [type(step).__name__ for step in steps]
    assert names == ["RandomScaleCrop", "RandomPhotometricDistort"]
    assert steps[0].cat_max_ratio == 0.5 and steps[0].hflip_prob == 0.5


def test_the_recipe_of_mask_classification(tmp_path, monkeypatch):
    """Its encoder waits for the new layers, its windows are of the crops' size."""
    monkeypatch.chdir(tmp_path)
    function = load_recipe(BY_MASKS)

    def made(**asked):
        return build(function, {**function.sample_settings(), **asked, "sample": True})

    recipe = made(warmup_steps=(500, 1000))
    assert recipe.protocol == "short side 96, windows of 96 every 64, scale 1"
    assert recipe.task.terms == ("class", "mask", "dice") and recipe.model.image_size == (96, 96)
    waiting = {id(weight) for weight in recipe.model.encoder_parameters()}
    for group, curve in zip(recipe.optimizer.param_groups, recipe.schedule, strict=True):
        kinds = {id(weight) in waiting for weight in group["params"]}
        assert len(kinds) == 1
        found = [curve(step, 4000) for step in (250, 500, 1000, 1500)]
        decayed = (1 - 1000 / 3500) ** 0.9
        assert found == pytest.approx(
            [0, 0, 0.5, 1] if kinds == {True} else [0.5, 1, (1 - 500 / 3500) ** 0.9, decayed]
        )
    assert made(warmup_epochs=0.5).schedule(5, 100, 20) == 0.5
    with pytest.raises(UserError, match="has losses of its own: leave loss and class_weights out"):
        made(loss=("focal",))
    with pytest.raises(UserError, match="96 x 96 alone, and crop is 96 and an evaluation has win"):
        made(eval_window=(48, 32))


def test_class_weights_repeats_and_layer_decay_are_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def built(name, **asked):
        function = load_recipe(ROOT / "recipes" / f"{name}.py")
        return build(function, {**function.sample_settings(), **asked, "sample": True})

    num_classes = built("seg_folder").task.num_classes
    weights = tuple(range(1, num_classes + 1))
    task = built("seg_folder", loss=("cross_entropy", "dice"), class_weights=weights).task
    assert task.loss[0].weight == weights and task.terms == ("cross_entropy", "dice")
    with pytest.raises(
        ValueError, match="class weights are of cross_entropy and focal, and the loss is ohem"
    ):
        built("seg_folder", loss=("ohem",), class_weights=weights)
    one, three = (
        built("recog_imagenet"),
        built("recog_imagenet", repeats=3, image_sizes="40:0,48:1"),
    )
    assert len(three.train_data) == 3 * len(one.train_data)
    assert opened(three.train_data).in_epoch(1, 0)[0].shape == (3, 48, 48)
    lrs = [
        {group["lr"] for group in built("recog_folder", layer_decay=d).optimizer.param_groups}
        for d in (1.0, 0.5)
    ]
    assert len(lrs[0]) == 1 and max(lrs[1]) == max(lrs[0]) and min(lrs[1]) <= 0.25 * max(lrs[1])


def test_what_parity_names_is_there():
    """Options, files and functions in the right column of docs/from-pytorch-encoding.md."""
    rows = [
        line.split(" | ", 1)[1]
        for line in (ROOT / "docs" / "from-pytorch-encoding.md").read_text().splitlines()
        if " | " in line
    ]
    message = " ".join(part for row in rows for part in re.findall("`(.*?)`", row))
    known = {name for path in FILES for name in inspect.signature(load_recipe(path)).parameters}
    kinds = (Options, EvaluateOptions, PredictOptions, ExportOptions)
    known |= {field.name for kind in kinds for field in dataclasses.fields(kind)}
    flags = set(re.findall(r"--([a-z-]+)", message))
    assert (
        len(rows) > 40 and len(flags) > 40 and {flag.replace("-", "_") for flag in flags} <= known
    ), flags
    recipes = set(re.findall(r"\b(?:recog|seg)_\w+", message))
    assert len(recipes) >= 10 and recipes <= {path.stem for path in FILES}
    files = set(re.findall(r"[\w/]+\.py\b", message))
    assert len(files) >= 5 and all((ROOT / "trainkit" / file).is_file() for file in files), files
    assert (
        len(set(re.findall(r"\btrainkit\.[\w.]+", message))) >= 9
    )  # test_docs.py finds each of them


@pytest.mark.parametrize(
    "name, asked, message",
    [
        (
            "seg_voc",
            {"split": "trainval"},
            "split is trainval, and VOC-aug has none: give --no-augmented",
        ),
        (
            "seg_ade20k_encnet",
            {"model": "pspnet", "se_weight": 0.5},
            "se_weight is 0.5, and pspnet has no semantic-enc",
        ),
        ("seg_cityscapes", {"se_weight": 0.2}, "se_weight is 0.2, and deeplabv3 has no"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(name, asked, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = load_recipe(ROOT / "recipes" / f"{name}.py")
    with pytest.raises(ValueError, match=message):
        build(function, {**function.sample_settings(), "sample": True, **asked})


def test_parity_has_every_option_of_the_references_scripts():
    text = (ROOT / "docs" / "from-pytorch-encoding.md").read_text()
    sections = dict(zip(("recognition", "segmentation"), text.split("\n## ")[1:3]))
    common = (
        "dataset base-size crop-size model batch-size test-batch-size epochs start_epoch workers lr"
        " lr-scheduler momentum weight-decay seed resume checkname rectify world-size rank dist-url"
        " dist-backend"
    )
    own = {
        "recognition": (
            "label-smoothing mixup rand-aug pretrained last-gamma dropblock-prob final-drop"
            " warmup-epochs no-bn-wd lr-step"
        ),
        "segmentation": (
            "backbone rectify-avg train-split aux aux-weight se-loss se-weight model-zoo ft eval"
            " test-val test-folder acc-bn export no-val"
        ),
    }
    for name, section in sections.items():
        left = " ".join(row.split(" | ")[0] for row in section.splitlines() if row.startswith("| "))
        options = {
            option
            for row in re.findall("`(.*?)`", left)
            for option in re.findall(r"--([\w-]+)", row)
        }
        assert options >= set(f"{common} {own[name]}".split()), name


def test_last_gammas_start_from_zero(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build(load_recipe(ROOT / "recipes" / "recog_imagenet.py"), {"sample": True}).model
    assert all(block.bn3.weight.abs().max() == 0 for block in model.layer3)


def test_a_recipe_is_the_same_in_every_process(tmp_path, monkeypatch):
    """Initial weights follow from the seed, which the command sets before it builds the recipe."""
    monkeypatch.chdir(tmp_path)
    function, settings = (
        load_recipe(ROOT / "recipes" / "recog_folder.py"),
        {"sample": True, "model": "small", "pretrained": False},
    )
    models = []
    for seed in (Options().seed, Options().seed, 1):
        seed_host(seed)
        models.append(build(function, settings).model.state_dict()["head.2.weight"])
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


@pytest.mark.parametrize("name", ["seg_folder", "depth_folder"])
def test_a_small_network_starts_at_random_whether_or_not_it_is_asked_to(name):
    """Nobody published weights of it: one learning rate for all of it, as of --no-pretrained."""
    recipe_file = load_recipe(ROOT / "recipes" / f"{name}.py")
    sample = {**recipe_file.sample_settings(), "sample": True, "head_lr_mult": 10.0}
    built = []
    for pretrained in (True, False):
        seed_host(0)
        built.append(build(recipe_file, {**sample, "pretrained": pretrained}))
    weights, same = (recipe.model.state_dict() for recipe in built)
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    rates = [[group["lr"] for group in recipe.optimizer.param_groups] for recipe in built]
    assert rates[0] == rates[1] and len(set(rates[0])) == 1
