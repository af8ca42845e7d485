"""A run or a published folder is enough: no recipe is called, no dataset opened or fetched."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import nn

import trainkit
from helpers.image_files import picture
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.predict import predict
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.image_io import read_image
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.models.pretrained import without_pretrained
from trainkit.models.recognition import fine_tuned
from trainkit.options import PredictOptions
from trainkit.prediction.images import Picture
from trainkit.prediction.loading import Source
from trainkit.prediction.model_info import ModelInfo, scored
from trainkit.settings.rebuildable import built_by
from trainkit.storage.weights import read_weights
from trainkit.tasks.base import Task

# A recipe that can be called while it trains alone.
ONCE = """
import os
from pathlib import Path
from {base} import *
from {base} import recipe as original, SAMPLE
from trainkit.settings.variants import variant

@variant(original)
def recipe(**settings):
    '''The same.'''
    assert "TRAINS" in os.environ, "the recipe was called"
    return original(**settings)
"""
SHORT = ("--sample", "--workers", "0", "--epochs", "0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with three short runs, of recipes that can be called while they train alone."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRAINS", "1")
        more = {
            "recog_folder": ("--warmup-epochs", "0"),
            "seg_folder": ("--crop", "64"),
            "recog_cifar10": ("--warmup-epochs", "0", "--epochs", "0.2"),
        }
        for base, words in more.items():
            Path(f"{base}_once.py").write_text(ONCE.format(base=base))
            out = f"runs/{base}"
            assert main([f"{base}_once.py", *SHORT, *words, "--out", out]) == 0
            assert main(["push", out, f"me/{base}", "--folder", f"published/{base}"]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.delenv("TRAINS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield trained
    assert not (tmp_path / "torch").exists(), "weights were fetched"


def photos(folder: Path, number: int = 3) -> list[Path]:
    """Images of sizes of their own."""
    for index in range(number):
        picture(folder / f"{index}.png", 90 + 10 * index, 70, index)
    return sorted(folder.glob("*.png"))


def by_hand(name: str, file: Path) -> torch.Tensor:
    """Logits of an image, by the recipe's network and transform, put together anew."""
    recipe = trainkit_recipe(name)
    (weights,) = Path(f"runs/{name}/checkpoints").iterdir()
    recipe.model.load_state_dict(read_weights(weights)[0])
    transform = DatasetInfo.of(recipe.val_data).transform
    image = read_image(file) if transform is None else transform(read_image(file))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (recipe.mean, recipe.std))
    with torch.no_grad():
        outputs = recipe.model.eval()(((image / 255 - mean) / std)[None])
    return outputs["out"] if isinstance(outputs, dict) else outputs


def trainkit_recipe(name: str):
    from trainkit.commands.recipe_file import build, load_recipe

    file = load_recipe(ROOT / "recipes" / f"{name}.py")
    return build(file, {**file.sample_settings(), "sample": True})


def test_classes_from_a_run(here, tmp_path, capsys):
    files = photos(tmp_path / "photos")
    words = ["predict", "runs/recog_folder", str(tmp_path / "photos"), "--workers", "0"]
    words += ["--out", str(tmp_path / "out"), "--top-k", "2", "--overlay", "--probabilities"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    rows = [
        json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    ]
    stored = np.load(tmp_path / "out/probabilities.npz")
    model, info = trainkit.load("runs/recog_folder")
    found = info.predict(tmp_path / "photos", top_k=2)
    for number, file in enumerate(files):
        expected = by_hand("recog_folder", file).softmax(1)[0]
        with torch.no_grad():
            same = model(info.preprocess(file)).softmax(1)[0]
        torch.testing.assert_close(same, expected)
        torch.testing.assert_close(torch.from_numpy(stored["probabilities"][number]), expected)
        values, ids = expected.topk(2)
        for row in (rows[number], found[number]):
            assert row["file"] == str(file)
            assert [each["class"] for each in row["top"]] == ids.tolist()
            assert [each["name"] for each in row["top"]] == [info.classes[i] for i in ids]
            assert [each["probability"] for each in row["top"]] == pytest.approx(values.tolist())
        line = f"{file}  {info.classes[ids[0]]} {100 * values[0]:.1f} %, "
        assert line in printed
        with Image.open(tmp_path / "out/overlay" / f"{number}.jpg") as drawn:
            corner = np.array(drawn)[2:12, 2:30]
            assert drawn.size == read_image(file).shape[:0:-1]
            assert corner.min() < 60 and corner.max() > 200, "white on black"
    assert stored["files"].tolist() == list(map(str, files))
    assert stored["classes"].tolist() == info.classes and not model.training


def test_masks_from_a_run(here, tmp_path, capsys):
    files = photos(tmp_path / "photos", number=2)
    words = ["predict", "runs/seg_folder", *map(str, files), "--workers", "0"]
    words += ["--out", str(tmp_path / "out"), "--top-k", "20"]
    assert main([*words, "--probabilities"]) == 0
    printed = capsys.readouterr().out
    rows = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    _, info = trainkit.load("runs/seg_folder")
    for file, line, row in zip(files, rows, info.predict(files)):
        logits = by_hand("seg_folder", file)
        size = read_image(file).shape[-2:]
        logits = torch.nn.functional.interpolate(
            logits, size, mode="bilinear", align_corners=False
        )[0]
        with Image.open(tmp_path / "out/colour" / file.name) as image:
            colour = np.array(image)
        assert np.array_equal(colour, logits.argmax(0).numpy())
        assert np.array_equal(row["mask"].numpy(), colour)
        half = np.load(tmp_path / "out/probabilities" / f"{file.stem}.npz")["probabilities"]
        assert np.abs(half - logits.softmax(0).numpy()).max() < 1e-3
        ids, counts = np.unique(colour, return_counts=True)
        largest = json.loads(line)["classes"]
        shares = {each["class"]: each["share"] for each in largest}
        assert shares == pytest.approx(dict(zip(ids.tolist(), counts / colour.size)))
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert f"{file}  {largest[0]['name']} {100 * largest[0]['share']:.1f} %" in printed


@pytest.mark.parametrize("kind", ["checkpoint", "published"])
def test_other_places_say_the_same(here, tmp_path, kind):
    (file,) = photos(tmp_path, number=1)
    (checkpoint,) = Path("runs/recog_folder/checkpoints").iterdir()
    place = {"checkpoint": checkpoint, "published": "published/recog_folder"}[kind]
    expected = trainkit.load("runs/recog_folder")[1].predict(file)
    assert trainkit.load(place)[1].predict([file]) == expected


def test_images_in_memory_are_read_as_files_are(here, tmp_path):
    (file,) = photos(tmp_path, number=1)
    _, info = trainkit.load("runs/recog_folder")
    expected = info.preprocess(file)
    assert expected.shape == (1, 3, 56, 56)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    for other in (str(file), image, np.asarray(image), read_image(file)):
        assert torch.equal(info.preprocess(other), expected)
    assert info.predict(image)[0]["file"] is None
    for wrong in (np.zeros((5, 5)), torch.zeros(3, 5, 5), 7):
        with pytest.raises(ValueError, match="an image is of type .*: give a file, a PIL image"):
            info.preprocess(wrong)


@pytest.mark.parametrize("name", ["recog_folder", "seg_folder"])
def test_files_are_exported_from_a_run(here, tmp_path, name, capsys, monkeypatch):
    out = tmp_path / "m.safetensors"
    assert main(["export", f"runs/{name}", "--out", str(out)]) == 0
    assert "on 4 generated images: 0" in capsys.readouterr().out
    monkeypatch.setenv("TRAINS", "1")  # to measure takes the data, and so the recipe
    assert main(["export", f"runs/{name}", "--half", "--out", str(out)]) == 0
    before, after = re.search(
        r"(?:top1|mIoU) on \d+ validation images: (\S+); in float16: (\S+)", capsys.readouterr().out
    ).groups()
    (final,) = (json.loads(Path(f"runs/{name}/summary.json").read_text())["final"],)
    assert float(before) == pytest.approx(final.get("top1", final.get("mIoU")), abs=1e-6)
    assert abs(float(after) - float(before)) < 0.05
    dtypes = {each.dtype for each in trainkit_weights(out).values()}
    assert dtypes == {torch.float16, torch.int64}


def trainkit_weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_a_network_of_the_recipes_own_takes_its_code(here, tmp_path, capsys):
    """From a run it is run; from a published folder only if trusted, or one of trainkit's."""
    (file,) = photos(tmp_path, number=1)
    expected = by_hand("recog_cifar10", file).softmax(1).topk(3).values[0].tolist()
    found = trainkit.load("runs/recog_cifar10")[1].predict(file, top_k=3)[0]["top"]
    assert [each["probability"] for each in found] == pytest.approx(expected)
    words = ["published/recog_cifar10", str(file), "--workers", "0", "--out", str(tmp_path / "o")]
    assert Source.at(Path(words[0])).described["network"]["recipe"] == "recog_cifar10.py"
    assert main(["predict", *words]) == 0, "byte for byte a recipe that comes with trainkit"
    code = Path("published/recog_cifar10/recog_cifar10.py")
    code.write_text(code.read_text() + "\nPath('executed').touch()\n")
    capsys.readouterr()
    assert main(["predict", *words]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "its network is built by code of its own, in published/recog_cifar10/recog_" in message
    assert "would run with all your rights. Read it, and give --trust-recipe" in message
    code.write_text(code.read_text().replace("Path(", "__import__('pathlib').Path("))
    assert not Path("executed").exists()
    assert main(["predict", *words, "--trust-recipe"]) == 0 and Path("executed").exists()
    with pytest.raises(ValueError, match="give --trust-recipe .in Python: trust_recipe=True."):
        trainkit.load("published/recog_cifar10")


@pytest.fixture
def hub(here, tmp_path, monkeypatch):
    """The Hub's cache with two published models, one named as people do; no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("recog_folder", "seg_folder"):
        repository = tmp_path / "cache" / f"models--me--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        shutil.copytree(f"published/{name}", repository / "snapshots" / ("a" * 40))
    return tmp_path / "cache"


def test_names_on_the_hub(hub, tmp_path, capsys, monkeypatch):
    """Of predict, export, load, --init-from, push; for evaluate the recipe is named or trusted."""
    (file,) = photos(tmp_path, number=1)
    expected = trainkit.load("runs/recog_folder")[1].predict(file)
    assert trainkit.load("me/recog_folder")[1].predict(file) == expected
    words = [str(file), "--workers", "0", "--out", str(tmp_path / "out")]
    assert main(["predict", "me/recog_folder", *words]) == 0
    assert main(["export", "me/recog_folder", "--out", str(tmp_path / "w.safetensors")]) == 0
    assert main(["push", "me/recog_folder", "you/copy", "--folder", str(tmp_path / "copy")]) == 0
    (snapshot,) = hub.glob("models--me--recog_folder/snapshots/*")
    assert (tmp_path / "copy/model.json").read_bytes() == (snapshot / "model.json").read_bytes()
    before = sorted(hub.rglob("*"))
    recipe = str(ROOT / "recipes" / "recog_folder.py")
    out = ("--out", str(tmp_path / "evaluated"), "--workers", "0")
    assert main(["evaluate", recipe, "--weights", "me/recog_folder", "--sample", *out]) == 0
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert (
        results["top1"]
        == json.loads(Path("runs/recog_folder/summary.json").read_text())["final"]["top1"]
    )
    capsys.readouterr()
    assert main(["evaluate", "me/recog_folder", "--workers", "0"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "me/recog_folder: evaluate takes the data, and the task, from its recipe, in " in message
    monkeypatch.setenv("TRAINS", "1")
    assert main(["evaluate", "me/recog_folder", "--workers", "0", "--trust-recipe"]) == 0
    assert sorted(hub.rglob("*")) == before, "nothing is written into the cache"
    begun = [recipe, *SHORT, "--warmup-epochs", "0", "--init-from", "me/recog_folder"]
    assert main([*begun, "--epochs", "0.1", "--out", str(tmp_path / "tuned")]) == 0
    assert "starting from the weights in " in capsys.readouterr().out
    for name, what in (("me/nothing", "nothing at me/nothing; as a model on the Hugging Face Hub"),
                       ("runs/recog_foldr", "did you mean runs/recog_folder?")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=re.escape(what)):
            trainkit.load(name)


def test_what_has_no_description_is_predicted_by_its_recipe(here, tmp_path, capsys, monkeypatch):
    """As what was published by earlier versions: where the recipe is given, or is the run's own."""
    old = tmp_path / "old"
    shutil.copytree("published/recog_folder", old)
    (old / "model.json").unlink()
    (file,) = photos(tmp_path, number=1)
    words = [str(file), "--workers", "0", "--out"]
    recipe = str(ROOT / "recipes" / "recog_folder.py")
    given = ["predict", recipe, "--weights", str(old)]
    assert main([*given, *words, str(tmp_path / "one"), "--sample"]) == 0
    assert main(["predict", "runs/recog_folder", *words, str(tmp_path / "two")]) == 0
    one, two = ((tmp_path / each / "predictions.csv").read_text() for each in ("one", "two"))
    assert one == two
    with pytest.raises(
        ValueError, match="cannot be loaded without its recipe: there is no model.j"
    ):
        trainkit.load(old)
    assert main(["predict", str(old), *words, str(tmp_path / "three")]) == 2
    assert "give --trust-recipe" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setenv("TRAINS", "1")
    assert main(["predict", str(old), *words, str(tmp_path / "three"), "--trust-recipe"]) == 0
    assert (
        "the recipe is called, and its data opened: there is no model.json"
        in capsys.readouterr().out
    )


def test_options_that_are_a_recipes_are_refused(here, tmp_path, capsys):
    words = ["predict", "runs/recog_folder", "photos", "--out", str(tmp_path)]
    for more, message in (
        (["--data", "x"], "--data is no option of predict: runs/recog_folder says itself"),
        (["--toop-k", "3"], "--toop-k is no option of predict: did you mean --top-k? "),
        (["--weights", "x"], "--weights is x, and runs/recog_folder is no recipe: leave it out"),
        (["--flip"], "task Recognition has no scores to put together: windows, scales and flips"),
        (["--as-stored"], "--as-stored is for segmentation"),
    ):
        assert main([*words, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split()), more


def test_windows_and_flips_are_those_of_an_evaluation(here, tmp_path):
    """Asked for on the command line, and put together by hand."""
    (file,) = photos(tmp_path, number=1)
    words = ["predict", "runs/seg_folder", str(file), "--workers", "0", "--as-stored", "--flip"]
    assert main([*words, "--window", "48", "--stride", "40", "--out", str(tmp_path / "o")]) == 0
    model, info = trainkit.load("runs/seg_folder")
    pixels = info.to_device()(read_image(file).as_subclass(torch.Tensor)[None], torch.empty(1))[0]
    sums, seen = torch.zeros(16, 70, 90), torch.zeros(70, 90)
    with torch.no_grad():
        for top in (0, 22):
            for left in (0, 40, 42):
                part = pixels[..., top : top + 48, left : left + 48]
                for flip in (False, True):
                    logits = model(part.flip(-1) if flip else part)["out"]
                    scores = logits.softmax(1)[0]
                    place = slice(top, top + 48), slice(left, left + 48)
                    sums[:, *place] += scores.flip(-1) if flip else scores
                    seen[place] += 1
    with Image.open(tmp_path / "o/colour/0.png") as image:
        assert np.array_equal(np.array(image), (sums / seen).argmax(0).numpy())


@pytest.mark.parametrize("flip", [False, True])
def test_large_images_are_seen_block_by_block(here, tmp_path, flip):
    """The same mask as of scores of the whole image, whatever the size of the blocks."""
    (file,) = photos(tmp_path, number=1)
    _, info = trainkit.load("runs/seg_folder")
    seen = Inference(window=32, stride=20, flip=flip, window_batch=3)
    info = replace(info, transform=None, inference=seen)
    assert not info.blocks().are_needed((70, 90))
    whole = info.predict(file)[0]["mask"]
    image = read_image(file).as_subclass(torch.Tensor)
    large = Picture(file, Path(file.name), image, (70, 90))
    for side in (33, 50, 64):
        blocks = replace(info.blocks(), scores_at_once=16 * side * side)
        assert blocks.are_needed((70, 90)) and not blocks.are_needed((20, 900))
        assert torch.equal(blocks.mask(image), whole)
        ((pictures, outputs),) = scored([[large]], info.infer(), info, blocks)
        assert torch.equal(info.records(pictures, outputs, 1)[0]["mask"], whole)


class Counts(Task):
    """A task of one's own: how many pixels are brighter than the mean."""

    terms, headline, higher_is_better = ("x",), "x", True
    counts = losses = metrics = predict = None

    def records(self, outputs, sizes):
        return [
            {"bright": int((each > 0).sum()), "height": height}
            for each, (height, _) in zip(outputs, sizes)
        ]


def test_a_task_of_ones_own_by_one_method(tmp_path, capsys):
    files = photos(tmp_path / "photos", number=2)
    info = ModelInfo(model=nn.Identity(), task=Counts(), transform=None)
    expected = [int((info.preprocess(file) > 0).sum()) for file in files]
    torch.save({}, tmp_path / "w.pth")
    found = info.predict(files)
    assert [(each["bright"], each["height"]) for each in found] == [(n, 70) for n in expected]
    info = replace(info, model=nn.Conv2d(3, 3, 1))
    with torch.no_grad():
        info.model.weight.copy_(torch.eye(3)[..., None, None])
        info.model.bias.zero_()
    torch.save(info.model.state_dict(), tmp_path / "w.pth")
    asked = PredictOptions(paths=tuple(files), out=tmp_path / "out", workers=0)
    predict(info, tmp_path / "w.pth", asked)
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["bright"] for line in lines] == expected
    assert f"{files[0]}  bright {expected[0]}, height 70" in capsys.readouterr().out
    with pytest.raises(ValueError, match="task Counts writes predictions.jsonl alone"):
        predict(info, tmp_path / "w.pth", replace(asked, overlay=True))


def test_an_evaluation_opens_the_validation_images_alone(here, tmp_path, monkeypatch):
    """Of a folder with `val/` and nothing else, and of some of the classes; nothing is fetched."""
    _, info = trainkit.load("runs/recog_folder")
    files, right = [], 0
    for number, name in enumerate(info.classes[:3]):
        photos(tmp_path / "data" / "val" / name, number=2 + number)
        files += sorted((tmp_path / "data" / "val" / name).iterdir())
        found = info.predict(files[-2 - number :])
        right += sum(each["top"][0]["name"] == name for each in found)
    monkeypatch.setenv("TRAINS", "1")
    words = ["--data", str(tmp_path / "data"), "--no-sample", "--workers", "0"]
    assert main(["evaluate", "runs/recog_folder", *words, "--out", str(tmp_path / "r")]) == 0
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["num_images"] == 9 and results["top1"] == pytest.approx(right / 9)


def test_published_weights_are_not_fetched_where_others_come():
    """Torch's and timm's, which no machine without a network has."""
    for name in ("resnet18", "timm:resnet18"):
        with without_pretrained():
            network = fine_tuned(name, 3, pretrained=True)
        assert built_by(network)["arguments"]["pretrained"] is True
    with pytest.raises(UserError, match="cannot get the pretrained weights"):
        fine_tuned("resnet18", 3, pretrained=True)


def test_a_checkpoint_and_a_published_folder_are_published(here, tmp_path):
    """With the same weights and files, but for the card's title; a checkpoint's are its own."""
    (checkpoint,) = Path("runs/seg_folder/checkpoints").iterdir()
    for source, name in ((checkpoint, "a"), (Path("published/seg_folder"), "b")):
        assert main(["push", str(source), f"you/{name}", "--folder", str(tmp_path / name)]) == 0
        for file in Path("published/seg_folder").iterdir():
            same = (tmp_path / name / file.name).read_text(errors="replace")
            other = file.read_text(errors="replace").replace("me/seg_folder", f"you/{name}")
            if file.name == "README.md":
                other = re.sub("^model-index.*?^---", "", other, flags=re.M | re.S)
                same = re.sub("^model-index.*?^---", "", same, flags=re.M | re.S)
                # of the training, which stays with the run
                machine = r"^\| (?:processes|training, s|images/s|memory of a process, GiB) .*\n"
                same, other = (re.sub(machine, "", text, flags=re.M) for text in (same, other))
                other = other.replace("# seg_folder", f"# {name}").replace(
                    "--local-dir seg_folder\ncd seg_folder", f"--local-dir {name}\ncd {name}"
                )
            assert same == other, file


def test_failed_steps_are_of_a_run(here, capsys):
    (checkpoint,) = Path("runs/seg_folder/checkpoints").iterdir()
    for place, message in (
        (checkpoint, "no step of the run in runs/seg_folder is kept as failed"),
        ("published/seg_folder", "was published: failed steps stay in the run's own folder"),
        ("nowhere", "nowhere is not a run"),
    ):
        assert main(["replay", str(place)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
