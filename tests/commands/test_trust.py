"""Code of a folder that was not trained here runs only where the user trusts it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import trainkit
from helpers.image_files import picture
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.errors import UserError
from trainkit.storage.shipped import shipped
from trainkit.storage.trained_here import is_trained_here

EVIL = "\n__import__('pathlib').Path(r'{}').touch()\n"
METRIC = """
import datasets
import evaluate
class Evil(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"),
                                      "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)
    def _compute(self, predictions, references):
        return {"evil": 1.0}
"""
SHORT = ("--sample", "--workers", "0", "--epochs", "0.1", "--warmup-epochs", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run of a recipe with a network of its own, the same published, an image."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(ROOT / "recipes" / "recog_cifar10.py", "mine.py")
        Path("mine.py").write_text(Path("mine.py").read_text() + "\n# mine\n")
        assert main(["mine.py", *SHORT, "--out", "runs/mine"]) == 0
        assert main(["recog_cifar10", *SHORT, "--out", "runs/shipped"]) == 0
        for name in ("mine", "shipped"):
            words = ["push", f"runs/{name}", f"me/{name}", "--folder", f"published/{name}"]
            assert main(words) == 0
    picture(folder / "photo.png", 40, 40, 1)
    return folder


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """The folder to work in, with its own copy of what was published."""
    shutil.copytree(home / "published", tmp_path / "sent")
    monkeypatch.chdir(home)
    return tmp_path


def stderr(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def predicted(place: Path | str, out: Path, *more: str) -> int:
    return main(["predict", str(place), "photo.png", "--workers", "0", "--out", str(out), *more])


def changed(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def evil_network(sent: Path, name: str, function: str = "network") -> None:
    """Let model.json of a folder name a file and a function of it."""
    network = json.loads((sent / "model.json").read_text())["network"]
    changed(sent / "model.json", network={**network, "recipe": name, "function": function})


def test_what_was_trained_here_needs_no_flag(here, capsys):
    assert is_trained_here(Path("runs/mine"))
    assert predicted("runs/mine", here / "out") == 0
    assert main(["evaluate", "runs/mine", "--workers", "0", "--out", str(here / "e")]) == 0
    assert main(["export", "runs/mine", "--out", str(here / "m.safetensors")]) == 0
    link = here / "link"
    link.symlink_to(Path("runs").resolve())
    assert predicted(link / "mine", here / "linked") == 0
    trainkit.load("runs/mine")
    moved = here / "moved"
    shutil.copytree("runs/shipped", moved)
    assert predicted(moved, here / "two") == 0, "byte for byte a recipe of trainkit"


def test_a_mark_is_of_one_folder_and_its_code(here, capsys, monkeypatch):
    """A copy, another user and code that was put there later ask for the flag."""
    copy = here / "copy"
    shutil.copytree("runs/mine", copy)
    assert predicted(copy, here / "out") == 2 and "give --trust-recipe" in stderr(capsys)
    assert main(["evaluate", str(copy), "--workers", "0"]) == 2
    assert "give --trust-recipe" in stderr(capsys)
    assert predicted(copy, here / "out", "--trust-recipe") == 0
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(here / "elsewhere"))
        assert not is_trained_here(Path("runs/mine"))
    recipe = Path("runs/mine/recipe.py")
    before = recipe.read_text()
    recipe.write_text(before + EVIL.format(here / "ran"))
    assert predicted("runs/mine", here / "out2") == 2 and not (here / "ran").exists()
    recipe.write_text(before)


def test_a_folder_without_settings_runs_no_code(here, capsys):
    sent = here / "sent" / "mine"
    (sent / "settings.json").unlink()
    (sent / "evil.py").write_text((sent / "recipe.py").read_text() + EVIL.format(here / "ran"))
    evil_network(sent, "evil.py")
    assert predicted(sent, here / "out") == 2
    assert "its network is built by code of its own" in stderr(capsys)
    with pytest.raises(UserError, match="give --trust-recipe"):
        trainkit.load(sent)
    assert not (here / "ran").exists()
    trainkit.load(sent, trust_recipe=True)
    assert (here / "ran").exists()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_network_lies_in_its_own_folder(here, absolute):
    sent = here / "sent" / "mine"
    outside = here / "sent" / "outside.py"
    outside.write_text((sent / "recipe.py").read_text() + EVIL.format(here / "ran"))
    evil_network(sent, str(outside) if absolute else "../outside.py")
    with pytest.raises(UserError, match="as the file of its network, which is no name"):
        trainkit.load(sent, trust_recipe=True)
    assert not (here / "ran").exists()


def test_only_what_builds_a_network_is_called(here):
    """Of a recipe of trainkit too, which is run without asking."""
    sent = here / "sent" / "shipped"
    described = json.loads((sent / "model.json").read_text())
    for name in ("recipe", "Recipe"):
        network = {**described["network"], "function": name, "arguments": {}}
        changed(sent / "model.json", network=network)
        with pytest.raises(UserError, match="it has no @rebuildable"):
            trainkit.load(sent)


def test_checkpoints_in_a_sent_folder_make_it_no_run_of_here(here, capsys):
    sent = here / "sent" / "mine"
    recipe = sent / "recipe.py"
    recipe.write_text(recipe.read_text() + EVIL.format(here / "ran"))
    shutil.copytree("runs/mine/checkpoints", sent / "checkpoints")
    report = sent / "failures" / "step-000000001" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    out = ("--workers", "0")
    for words in (
        ["evaluate", str(sent), *out],
        ["evaluate", str(sent / "model.safetensors"), *out],
        ["export", str(sent), "--half", "--out", str(here / "x")],
        ["predict", str(sent), "photo.png", "--out", str(here / "p"), *out],
        ["replay", str(sent), *out],
    ):
        assert main(words) == 2, words
        assert "give --trust-recipe" in stderr(capsys), words
    assert not (here / "ran").exists()
    assert main(["replay", str(sent), "--workers", "0", "--trust-recipe"]) == 2
    assert (here / "ran").exists(), "and then its report is damaged"


def test_modules_beside_a_copy_of_a_shipped_recipe_are_not_imported(here):
    sent = here / "sent" / "shipped"
    for name in ("torch", "trainkit", "secrets", "recog_folder", "recog_cifar10"):
        (sent / f"{name}.py").write_text(EVIL.format(here / "ran"))
    changed(sent / "settings.json", recipe=str(shipped("recipes") / "recog_cifar10.py"))
    (sent / "checkpoints").mkdir()
    shutil.copytree("runs/shipped/checkpoints", sent / "checkpoints", dirs_exist_ok=True)
    assert main(["evaluate", str(sent), "--workers", "0"]) == 0
    assert not (here / "ran").exists() and str(sent) not in sys.path


def test_a_recorded_metric_with_a_script_is_refused(here, capsys):
    """Of a folder with a recipe of trainkit, and where the user names the recipe."""
    pytest.importorskip("evaluate")
    sent = here / "sent" / "shipped"
    script = here / "evil" / "evil.py"
    script.parent.mkdir()
    script.write_text(METRIC + EVIL.format(here / "ran"))
    settings = json.loads((sent / "settings.json").read_text())["settings"]
    metrics = ["torchmetrics:F1Score:average=macro", f" evaluate:{script}"]
    changed(sent / "settings.json", settings={**settings, "metrics": metrics})
    given = ["recog_cifar10", "--weights", str(sent)]
    more = ("--workers", "0", "--out", str(here / "e"))
    for words in ([str(sent)], given):
        assert main(["evaluate", *words, *more]) == 2
        message = stderr(capsys)
        assert f"has --metrics evaluate:{script}" in message and "give --trust-recipe" in message
        assert not (here / "ran").exists()
    other = ("--metrics", "torchmetrics:F1Score:average=macro")
    assert main(["evaluate", str(sent), *more, *other]) == 0
    assert not (here / "ran").exists()
    main(["evaluate", str(sent), *more, "--trust-recipe"])
    assert (here / "ran").exists()
