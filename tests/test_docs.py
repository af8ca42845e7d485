"""The docs hold what their sources say: tables made from results, links that lead somewhere."""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.logs import rows
from helpers.processes import ROOT, forked
from trainkit.cli import main
from trainkit.data.reader import Reader
from trainkit.data.seeding import IMAGE, fold
from trainkit.data.spawning import load_file
from trainkit.options import EvaluateOptions, Options

sys.path.insert(0, str(ROOT / "benchmarks"))
import tables

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_made_from_the_results(page):
    text = page.read_text()
    assert tables.rendered(text) == text, "run `python benchmarks/tables.py`"


def test_every_result_is_shown():
    shown = {
        name
        for page in PAGES
        for block in re.findall(r"<!-- table: (.*?) -->", page.read_text())
        for name in block.split(", ")
    }
    assert shown == {file.stem for file in tables.RESULTS.glob("*.json")} and len(shown) >= 30


def test_a_changed_result_changes_the_page(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    for file in (tmp_path / "benchmarks/results").glob("*.json"):
        file.write_text(file.read_text().replace('"median": 3.172', '"median": 2.5'))
    copied = load_file("copied_tables", tmp_path / "benchmarks/tables.py")
    page = (ROOT / "docs/results/step-overhead.md").read_text()
    assert "| 3.172 (2.744 to 3.544), 1.05 × |" in page
    assert "| 2.5 (2.744 to 3.544), 1.05 × |" in copied.rendered(page)


def test_a_claim_says_whether_its_target_is_met():
    """Worked out by hand from the numbers of the files."""
    names = ("step of 0.7 ms", "image and mask, 683")
    lines = [line for line in tables.claims() if any(name in line for name in names)]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["1.43 × bare PyTorch", "≤ 1.5", "yes"],
        ["1.36 × bare PyTorch", "≤ 1.5", "yes"],
        ["3.84 × the speed of torchvision's references", "≥ 4.7", "**no**"],
    ]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks/README.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_pictures_are_small_and_shown():
    """Those of the docs are made by a program that stands beside them, and each is in a page."""
    pictures = ROOT / "docs/pictures"
    made = load_file("make_pictures", pictures / "make.py")
    names = {f"{name}.webp" for name in (*made.DRAWN, *made.SHOTS)}
    assert {path.name for path in pictures.glob("*.*")} == {"make.py", *names}
    text = "".join(page.read_text() for page in PAGES)
    for name in names:
        with Image.open(pictures / name) as picture:
            assert picture.format == "WEBP" and picture.width <= made.WIDEST
        assert (pictures / name).stat().st_size < 100_000
        assert f"pictures/{name})" in text, name


def resolved(name: str) -> object:
    """trainkit.losses.pixelwise.Focal: the module, then what is in it."""
    module, rest = "trainkit", name.split(".")[1:]
    found = importlib.import_module(module)
    while rest and hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{rest[0]}"):
        module = f"{module}.{rest.pop(0)}"
        found = importlib.import_module(module)
    for part in rest:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_the_docs_are_there(page):
    text = page.read_text()
    names = set(re.findall(r"(?<![\w/.-])trainkit(?:\.[A-Za-z_]\w*)+", text))
    for module, imported in re.findall(r"^from (trainkit[\w.]*) import (.+)$", text, re.MULTILINE):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    for name in names:
        resolved(name)


def test_a_name_that_is_not_there_is_found():
    with pytest.raises(AttributeError):
        resolved("trainkit.losses.pixelwise.Nothing")


@pytest.mark.parametrize("options", [Options, EvaluateOptions])
def test_every_option_is_in_the_docs(options):
    text = (ROOT / "docs/commands.md").read_text()
    flags = [field.name.replace("_", "-") for field in fields(options)]
    assert not [flag for flag in flags if not re.search(rf"`--(no-)?{flag}\b", text)]


def test_the_recipe_of_the_docs_runs(tmp_path):
    """As a user would type it off the page: built, on two images."""
    (code,) = re.findall(
        r"```python\n(\"\"\"Small FCN.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL
    )
    (tmp_path / "streets.py").write_text(code)
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            folder = tmp_path / "streets" / kind / split
            folder.mkdir(parents=True)
            Image.new(mode, (240, 180)).save(folder / "one.png")
    done = forked("check", "streets.py", cwd=tmp_path)
    assert "of 3 classes" in done.stdout and not done.stderr


@pytest.mark.parametrize("prune", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_the_sweep_of_the_docs_runs(tmp_path, monkeypatch, prune):
    """On generated images, with shorter rungs; a trial that is pruned has trained the first one."""
    pytest.importorskip("optuna")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.S)
    (code,) = (block for block in blocks if "optuna" in block)
    for shown, tried in (
        ('"data": "my_images"', '"sample": True'),
        ("(1, 3, 9)", "(1, 2)"),
        ("n_trials=20", "n_trials=1"),
        ("print(study.best_params, study.best_value)", ""),
        ("SuccessiveHalvingPruner()", "ThresholdPruner(lower=2)" if prune else "NopPruner()"),
    ):
        assert shown in code
        code = code.replace(shown, tried)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "sweep", "exec"), names)
    (trial,) = names["study"].trials
    assert trial.state.name == ("PRUNED" if prune else "COMPLETE")
    assert list(trial.intermediate_values) == ([1] if prune else [1, 2])
    log = (tmp_path / "sweep/0/log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, log) if row["event"] == "evaluate"]
    assert [row["epoch"] for row in rows] == ([1] if prune else [1, 2])


def test_the_python_api_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """Its blocks one after another, on drawn images, but for the one with several processes."""
    text = (ROOT / "docs/python-api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    rng = np.random.default_rng(0)
    for number in range(12):
        split, name = ("train", "val")[number > 7], ("cat", "dog")[number % 2]
        for file in (f"my_images/{split}/{name}/{number:04}.png", f"my_photos/{number:04}.png"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / file)
    own = "from helpers import toy_recipes\n\n\ndef recipe(lr: float = 0.1):\n"
    own += "    return toy_recipes.recognition(epochs=1)\n"
    (tmp_path / "my_recipe.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    small = 'epochs=2,\n    model="small",\n    size=16,\n    batch_size=4,'
    assert sum("epochs=2," in block for block in blocks) == 1
    for block in blocks:
        if "notebook_launcher" not in block:
            exec(compile(block.replace("epochs=2,", small), "python-api.md", "exec"), names)
    assert len(names["found"]) == 12 and names["logits"].shape == (1, 2)
    assert names["results"]["num_images"] == 4
    sys.modules.pop("my_recipe")


def test_the_task_of_the_docs_learns(tmp_path):
    """The variance of the targets is 1 / 48, which a constant would leave."""
    (code,) = re.findall(
        r"```python\n(\"\"\"The mean.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL
    )
    (tmp_path / "brightness.py").write_text(code)
    words = ["--out", str(tmp_path / "run"), "--workers", "0", "--evaluate-every", "30"]
    assert main([str(tmp_path / "brightness.py"), *words]) == 0
    assert rows(tmp_path / "run", "evaluate")[-1]["error"] < 1 / 48 / 10


def test_the_ordinal_task_of_the_docs_learns(tmp_path):
    """One grade for all would be 1.2 off, and a fifth right."""
    page = (ROOT / "docs/tasks.md").read_text()
    blocks = re.findall(r"```python\n(\"\"\"(?:The mean|Brightness).*?)```", page, re.DOTALL)
    for name, code in zip(("brightness", "grades"), blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(code)
    words = ["--out", str(tmp_path / "run"), "--workers", "0", "--evaluate-every", "60"]
    assert main([str(tmp_path / "grades.py"), *words]) == 0
    found = rows(tmp_path / "run", "evaluate")[-1]
    assert found["grades_off"] < 0.3 and found["right"] > 0.7


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """The example of docs/extending.md, each block in its file, trained on 24 images."""
    folder = tmp_path_factory.mktemp("leaves")
    page = (ROOT / "docs/extending.md").read_text()
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(code)
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("val", 9)):
        (folder / "leaves" / split).mkdir(parents=True)
        for index in range(number):
            species = ("maple", "oak")[index % 3 == 0]
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "leaves" / split / f"{species}_{index:04d}.png")
    words = ["--data", str(folder / "leaves"), "--out", str(folder / "run"), "--workers", "0"]
    assert main([str(folder / "leaves.py"), *words, "--log-every", "1"]) == 0
    return folder


def test_the_schedule_of_the_docs_is_followed(leaves):
    """4 steps with a peak of 0.05 in the middle: 0, 0.025, 0.05, 0.025."""
    assert [row["lr"] for row in rows(leaves / "run")] == pytest.approx([0, 0.025, 0.05, 0.025])


def test_the_metric_of_the_docs_chooses_the_best(leaves):
    """Recounted from the predictions of each image."""
    words = ["--out", str(leaves / "predictions"), "--workers", "0"]
    assert main(["predict", str(leaves / "run"), str(leaves / "leaves" / "val"), *words]) == 0
    lines = (leaves / "predictions" / "predictions.jsonl").read_text().splitlines()
    right = {"maple": [], "oak": []}
    for line in map(json.loads, lines):
        species = line["file"].split("/")[-1].split("_")[0]
        right[species].append(line["top"][0]["name"] == species)
    assert [len(hits) for hits in right.values()] == [6, 3]
    assert rows(leaves / "run", "evaluate")[-1]["best"] == pytest.approx(
        np.mean([np.mean(hits) for hits in right.values()])
    )


def test_the_loss_of_the_docs_is_a_sum_over_valid_targets(leaves, monkeypatch):
    """By hand: p = 1/2 each, so ln 2 + 1/2; and p = 3/4."""
    monkeypatch.syspath_prepend(leaves)
    loss = importlib.import_module("leaves_loss").Poly1()
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)], [5.0, 0.0]])
    targets = torch.tensor([0, 1, -1])
    assert loss(logits, targets, -1).item() == pytest.approx(np.log(2) + 0.5 + np.log(4 / 3) + 0.25)
    assert loss.count(targets, -1, 2) == 2
    masks = loss(logits.T[None, :, None], torch.tensor([[[0, 1, 255]]], dtype=torch.uint8), 255)
    assert masks.item() == pytest.approx(np.log(2) + 0.5 + np.log(4 / 3) + 0.25)


def test_the_albumentations_of_the_docs_are_seeded_by_image(tmp_path):
    """Pixels are those that the pipeline itself gives under the image's seed, masks with images."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    (block,) = re.findall(r"  ```python\n(  # flowers\.py\n.*?)  ```", text, flags=re.DOTALL)
    (tmp_path / "flowers.py").write_text(re.sub("^  ", "", block, flags=re.MULTILINE))
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):  # the third is smaller than the crop
        labels = draw.integers(0, 3, (40 if number == 2 else 70, 64), dtype=np.uint8)
        photo = np.stack([labels * 80, draw.integers(0, 255, labels.shape), labels], -1)
        Image.fromarray(photo.astype(np.uint8)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(labels).save(tmp_path / f"masks/{number}.png")
    data = load_file("flowers", tmp_path / "flowers.py").training_images(tmp_path)
    reader = Reader(data, seed=5)
    first = [reader[epoch, index] for epoch in (0, 1) for index in range(4)]
    again = [reader[epoch, index] for epoch in (1, 0) for index in (3, 2, 1, 0)]
    for (image, mask, _), (image_again, mask_again, _) in zip(first, reversed(again)):
        assert torch.equal(image, image_again) and torch.equal(mask, mask_again)
        assert image.dtype == mask.dtype == torch.uint8 and image.shape[1:] == mask.shape == (
            48,
            48,
        )
        assert set(mask.unique().tolist()) <= {0, 1, 2, 255}
        # the blue channel is the label: neither noise nor another place; but for its brightness
        shown = mask != 255
        assert all(len(image[2][shown & (mask == label)].unique()) <= 2 for label in range(3))
    assert (first[2][1] == 255).sum() >= 8 * 48
    stored, labels = data.read(1)
    pipeline = data.transform.pipeline
    pipeline.set_random_seed(fold(5, IMAGE, 1, 1, 0) & 0x7FFFFFFF)
    found = pipeline(image=stored.permute(1, 2, 0).numpy(), mask=labels.numpy())
    assert np.array_equal(first[5][0].permute(1, 2, 0), found["image"])
    assert np.array_equal(first[5][1], found["mask"])
