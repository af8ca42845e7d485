"""trainkit evaluate of several runs: the numbers of separate calls, and the data read once."""

import json
import shutil

import pytest
import torch
from torch import nn

import trainkit
from helpers import toy_recipes
from helpers.processes import ROOT, TESTS, torchrun
from helpers.toy_recipes import Images, write_parquet
from trainkit.cli import main
from trainkit.commands.evaluate import LoadedOnce
from trainkit.commands.evaluate_several import run_several
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.trained import read_trained
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.likeness import difference
from trainkit.data.to_device import MEAN, STD, ToDevice
from trainkit.data.transforms.recognition import eval_transform
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.evaluating_together import Reading, parted, taking_turns
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.task_module import TaskModule
from trainkit.inference import Inference
from trainkit.storage.checkpoint import list_checkpoints

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit.models.recognition import classifier
from trainkit.recipe import Recipe


def recipe(lr: float = 0.05, num_val: int = 13, ema: float | None = 0.5) -> Recipe:
    network = classifier("small", CLASSES)
    return recognition(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9),
        train_data=Images(27, augment=False),
        val_data=Images(num_val),
        eval_batch_size=4,
        epochs=1,
        ema=ema,
    )
"""
QUIET = ("--workers", "0", "--no-report", "--no-pictures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    recipe = folder / "mine.py"
    recipe.write_text(RECIPE.format(tests=str(TESTS)))
    for name, *words in (
        ("x", "--checkpoint-every", "2", "--keep-checkpoints", "9"),
        ("y", "--lr", "0.2", "--ema", "None"),
        ("other", "--num-val", "5"),
    ):
        assert main([str(recipe), "--out", str(folder / name), *words, *QUIET]) == 0
    return folder


def alone(path):
    return json.loads(json.dumps(trainkit.evaluate(str(path), workers=0)))


def table(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_each_has_the_numbers_of_a_call_of_its_own(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        shutil.copytree(runs / name, tmp_path / name)
    last = list_checkpoints(runs / "x" / "checkpoints")[0]
    before = Images.reads
    expected = {"x": alone(runs / "x"), "y": alone(runs / "y")}
    apart = Images.reads - before
    expected[f"x/checkpoints/{last.name}"] = alone(last)

    before = Images.reads
    words = ["y", f"x/checkpoints/{last.name}", "--trust-recipe", *QUIET]
    assert main(["evaluate", "x", *words]) == 0
    # those of `x`, with EMA weights, are read twice, and nothing more by the others
    assert 2 * 13 <= Images.reads - before < apart
    found = table(tmp_path / "x")
    assert [row["name"] for row in found["rows"]] == ["x", "y", f"x/checkpoints/{last.name}"]
    for row in found["rows"]:
        whole = expected[row["name"]]
        assert row["read_with"] == 1 and row["differs"] is None
        assert row["top1"] == whole["top1"] and row["top1_95"] == whole["top1_95"]
        numbers = {name for name, value in whole.items() if isinstance(value, float)}
        assert numbers and {name: row[name] for name in numbers} == {n: whole[n] for n in numbers}
    # the whole results of each are left where a call of its own leaves them
    for name, of in (("y", "y"), ("x", f"x/checkpoints/{last.name}")):
        left = json.loads((tmp_path / name / "results.json").read_text())
        assert expected[of].items() <= left.items()
        assert left["sha256"] == next(r for r in found["rows"] if r["name"] == of)["sha256"]
    values = {row["name"]: row[row["headline"]] for row in found["rows"]}
    assert [row["headline"] for row in found["rows"]] == ["ema_top1", "top1", "ema_top1"]
    assert values[found["best"]] == max(values.values())
    shown = capsys.readouterr().out
    assert "best by top1 (*)" in shown and f"{found['best']} *" in " ".join(shown.split())
    assert "evaluated, the validation data read once: x, y, x/checkpoints" in shown


def test_weights_of_a_recipe_and_out(runs, tmp_path):
    weights = [runs / name / "best.safetensors" for name in ("x", "y")]
    words = ["--weights", *map(str, weights), "--ema", "None", "--out", str(tmp_path), *QUIET]
    assert main(["evaluate", str(runs / "mine.py"), *words]) == 0
    found = table(tmp_path)
    for row, name in zip(found["rows"], ("x", "y"), strict=True):
        left = json.loads((tmp_path / f"{name}-best.safetensors" / "results.json").read_text())
        assert row["name"] == str(runs / name / "best.safetensors")
        assert row["top1"] == left["top1"] == alone(runs / name)["top1"]


def test_other_validation_data_is_read_apart(runs, capsys):
    assert main(["evaluate", str(runs / "x"), str(runs / "other"), *QUIET]) == 0
    found = table(runs / "x")
    assert [row["read_with"] for row in found["rows"]] == [1, 2]
    assert found["rows"][1]["differs"] == "val_data.targets"
    assert found["best"] is None and "different validation images" in found["by"]
    assert found["rows"][1]["num_images"] == 5
    assert found["rows"][1]["top1"] == alone(runs / "other")["top1"]
    shown = capsys.readouterr().out
    assert "(val_data.targets differs)" in shown and f"evaluated: {runs / 'other'}" in shown


def test_networks_without_room_for_each_other_are_evaluated_one_by_one(runs, tmp_path):
    """They are built again then, and the numbers are the same."""
    first, words = str(runs / "x"), [str(runs / "y"), "--out", str(tmp_path), *QUIET]
    load = LoadedOnce()
    trained, asked = read_trained("evaluate", first, words, load=load)
    before = Images.reads
    assert run_several(first, words, trained, asked, load, share=0.0) == 0
    assert Images.reads - before >= 3 * 13  # of x twice, with its EMA weights
    for row, name in zip(table(tmp_path)["rows"], ("x", "y"), strict=True):
        assert row["top1"] == alone(runs / name)["top1"] and row["read_with"] == 1


def test_an_unreadable_one_is_refused_before_the_first_image(runs, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    before = Images.reads
    recipe, good = str(runs / "mine.py"), str(runs / "x" / "best.safetensors")
    words = ["evaluate", recipe, "--weights", good, str(broken), "--out", str(tmp_path / "out")]
    assert main([*words, *QUIET]) == 2
    assert "broken.safetensors" in capsys.readouterr().err
    assert main(["evaluate", str(runs / "x"), str(runs / "absent"), *QUIET]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    twice = ["evaluate", str(runs / "x"), str(runs / "x"), "--out", str(tmp_path / "out")]
    assert main([*twice, *QUIET]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert Images.reads == before and not (tmp_path / "out" / "comparison.json").exists()


@pytest.mark.nightly
def test_processes_agree(runs, tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("import sys\nfrom trainkit.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    paths = [str(runs / name) for name in ("x", "y", "other")]
    words = ["evaluate", *paths, "--out", "{}", *QUIET]
    assert main([word.format(tmp_path / "one") for word in words]) == 0
    torchrun(2, script, *(word.format(tmp_path / "two") for word in words))
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert one["best"] == two["best"] and one["by"] == two["by"]
    for ours, theirs in zip(one["rows"], two["rows"], strict=True):
        assert ours["top1"] == theirs["top1"] and ours["top1_95"] == theirs["top1_95"]
        numbers = {name: value for name, value in ours.items() if isinstance(value, float)}
        assert numbers == pytest.approx({name: theirs[name] for name in numbers}, rel=1e-6)


class Noisy(nn.Module):
    """Scores with noise that is drawn in the evaluation too."""

    def __init__(self, weight: float):
        super().__init__()
        self.layer = nn.Conv2d(3, toy_recipes.CLASSES, 1)
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, images):
        images += 0  # written in place
        return self.layer(images) + torch.randn(images.shape[-2:])


def test_turns_have_random_numbers_of_their_own():
    accelerator = start_accelerator()
    evaluators = []
    for weight in (0.1, -0.2, 0.3):
        model = Noisy(weight)
        recipe = toy_recipes.segmentation(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            inference=Inference(window=8, stride=4, window_batch=3),
        )
        evaluators.append(
            Evaluator(
                recipe=recipe,
                task_module=TaskModule(model, recipe.task),
                accelerator=accelerator,
                to_device=ToDevice(accelerator.device, MEAN, STD),
                seed=3,
                workers=0,
                ema=None,
                thorough=True,
            )
        )
    expected = [each.run() for each in evaluators]
    assert expected[0]["mIoU"] != expected[1]["mIoU"]
    found = taking_turns(evaluators, [lambda each: each.by_batches()] * 3)
    assert found == expected


def test_readings_are_compared():
    one, other = (Reading.of(toy_recipes.recognition(), 0) for _ in range(2))
    assert one.difference(other) is None
    other = Reading.of(toy_recipes.recognition(eval_batch_size=3), 0)
    assert one.difference(other) == "eval_batch_size"


@pytest.mark.parametrize("name", ["recog_imagenet", "seg_folder"])
def test_what_a_recipe_builds_twice_is_read_alike(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = load_recipe(ROOT / "recipes" / f"{name}.py")
    settings = {**file.sample_settings(), "sample": True}
    one, other = (Reading.of(build(file, settings), 0) for _ in range(2))
    assert one.val_data is not other.val_data and one.difference(other) is None


@pytest.mark.parametrize("stream", [None, 2])
def test_parquet_files_are_read_alike(stream, tmp_path):
    source = ClassSource(write_parquet(tmp_path), stream=stream)
    names = source.open("train").classes
    one, other, smaller = (source.open("val", eval_transform(n), names) for n in (32, 32, 24))
    assert difference(one, other, "val") is None
    assert difference(one, smaller, "val") == "val.transform.transforms[0].size[0]"


def test_parts_fit_the_room():
    assert parted([3, 4, 2, 9, 1, 1], room=7) == [[0, 1], [2], [3], [4, 5]]
    assert parted([], room=7) == []


def copies(runs, folder):
    """Two files of weights that are of no run."""
    weights = runs / "y" / "best.safetensors"
    return [shutil.copy(weights, folder / f"{name}.safetensors") for name in ("a", "b")]


def test_files_of_a_recipe_with_ema_have_one_set_of_weights(runs, tmp_path):
    weights = copies(runs, tmp_path)
    words = ["--weights", *map(str, weights), "--out", str(tmp_path / "out"), *QUIET]
    assert main(["evaluate", str(runs / "mine.py"), *words]) == 0
    found = table(tmp_path / "out")
    assert found["by"] == "best by top1" and found["best"] is not None
    assert [row["headline"] for row in found["rows"]] == ["top1", "top1"]


COUNTS_IMAGES = """
from trainkit.metrics.base import Counting
from trainkit.tasks.recognition import Recognition


class CountsImages(Counting):
    name = "counted"

    def __init__(self):
        self.counts = torch.zeros(1, dtype=torch.int64)

    def _count(self, predictions, references):
        return torch.tensor([len(references)])

    def _results(self):
        return {"counted": int(self.counts)}


METRIC = CountsImages()


"""


def test_what_a_recipe_makes_outside_of_its_function(runs, tmp_path, capsys):
    """One metric counts for each run alone; one model cannot have the weights of both."""
    text = RECIPE.format(tests=str(TESTS)).replace("def recipe(", f"{COUNTS_IMAGES}def recipe(")
    text = text.replace("epochs=1,", "epochs=1, task=Recognition(CLASSES, extra_metrics=[METRIC]),")
    for name, code in (
        ("metric", text),
        ("model", text.replace("METRIC =", 'NETWORK = classifier("small", CLASSES)\nMETRIC =')
            .replace('    network = classifier("small", CLASSES)\n', "    network = NETWORK\n")),
    ):  # fmt: skip
        file = tmp_path / f"{name}.py"
        file.write_text(code)
        words = list(map(str, copies(runs, tmp_path)))
        done = main(
            ["evaluate", str(file), "--weights", *words, "--out", str(tmp_path / "out"), *QUIET]
        )
        if name == "model":
            assert done == 2
            assert "have one model" in " ".join(capsys.readouterr().err.split())
        else:
            assert done == 0
            assert [row["counted"] for row in table(tmp_path / "out")["rows"]] == [13, 13]


def test_seeds_count_where_validation_images_are_drawn():
    still, drawn = Images(27, augment=False), Images(27)
    for data, expected in ((still, None), (drawn, "seed")):
        recipe = toy_recipes.recognition(val_data=data)
        one, other = (Reading.of(recipe, seed) for seed in (0, 1))
        assert one.difference(other) == expected
        assert one.difference(Reading.of(recipe, 0)) is None
