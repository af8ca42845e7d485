"""What a wheel installs, far from any clone: recipes by name, training, prediction, export."""

import os
import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

from helpers.processes import ROOT, run
from trainkit.commands.recipe_names import described

SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("trainkit", "recipes", "accelerate_configs")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

# One process: to import torch takes longer than most of what it does.
WAY = """
from pathlib import Path
import trainkit
from trainkit.cli import main

short = ["--sample", "--epochs", "0.2", "--workers", "0"]

def do(*words):
    assert main([str(word) for word in words]) == 0, words

do("recog_folder", *short, "--warmup-epochs", 0)
do("evaluate", "runs/recog_folder", "--workers", 0)
photo = next(Path("cache").rglob("class_folder*/val/*/*.jpg"))
do("predict", "runs/recog_folder", photo, "--out", "named", "--workers", 0)
do("export", "runs/recog_folder", "--out", "recognition.safetensors")
do("my_recipe.py", *short)
do("evaluate", "runs/my_recipe", "--workers", 0)
photo = next(Path("cache").rglob("mask_folder*/images/val/*.jpg"))
do("predict", "runs/my_recipe", photo, "--out", "masks", "--workers", 0)
do("export", "runs/my_recipe", "--out", "segmentation.safetensors")
print(trainkit.__file__)
"""


def test_all_packages_are_named():
    """And the folders of recipes and accelerate configs, which lie at the top of the repository."""
    text = (ROOT / "setup.cfg").read_text()
    listed = re.search(r"^packages =\n((?:    \S+\n)+)", text, re.MULTILINE)[1].split()
    found = find_packages(str(ROOT), include=["trainkit", "trainkit.*"])
    assert listed == [*sorted(found), "trainkit.recipes", "trainkit.accelerate_configs"]
    for name in ("recipes", "accelerate_configs"):
        assert f"    trainkit.{name} = {name}\n" in text


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes").glob("*.py")), ids=lambda file: file.stem
)
def test_a_recipe_says_what_it_trains_on_what(file):
    """In the first sentence of its docstring, from which `trainkit recipes` takes it."""
    about = described(file)
    assert (
        about.task in ("recognition", "segmentation", "regression")
        and about.networks
        and about.dataset
    )


def test_a_recipe_that_says_nothing_is_listed_by_its_name(tmp_path):
    (tmp_path / "mine.py").write_text("def recipe(:")
    assert described(tmp_path / "mine.py") == ("mine", "", "", "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as setuptools writes beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        kept_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=kept_out)
    run(sys.executable, "-c", BUILD, str(source), cwd=source, PYTHONWARNINGS="ignore")
    (file,) = source.glob("trainkit-*.whl")
    return file


def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    for folder, suffixes in (("recipes", (".py",)), ("accelerate_configs", (".yaml", ".sh"))):
        files = [file for file in (ROOT / folder).iterdir() if file.suffix in suffixes]
        assert {f"trainkit/{folder}/{file.name}" for file in files} <= names and len(files) > 6
    assert "trainkit/py.typed" in names and "trainkit/recipes/__init__.py" not in names
    assert "Classifier: Typing :: Typed\n" in text
    assert {"Documentation", "Changelog", "Issues"} <= set(re.findall(r"Project-URL: (\w+)", text))
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10 and all(link.startswith("https://") for link in links)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel alone, which sees torch and the rest through a .pth file."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place / "venv", symlinks=True)
    python = place / "venv" / "bin" / "python"
    words = ("--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, "-m", "pip", *words)
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv" / "bin"


def elsewhere(*words: object, cwd: Path) -> str:
    """What a command prints in an environment that knows nothing of the clone."""
    environment = {name: "" for name in os.environ if name.startswith("PYTHON")}
    environment["XDG_CACHE_HOME"] = str(cwd / "cache")
    return run(*map(str, words), cwd=cwd, **environment).stdout


def test_from_the_wheel_to_predictions(installed, tmp_path):
    command = installed / "trainkit"
    assert "trainkit recipes" in elsewhere(command, cwd=tmp_path)
    listed = elsewhere(command, "recipes", cwd=tmp_path)
    names = {line.split()[0] for line in listed.splitlines()[:-4]}
    assert names == {file.stem for file in (ROOT / "recipes").glob("*.py")}
    elsewhere(command, "new", "seg_folder", "my_recipe.py", cwd=tmp_path)
    printed = elsewhere(installed / "python", "-c", WAY, cwd=tmp_path)
    package = Path(printed.splitlines()[-1]).parent
    assert package.is_relative_to(installed.parent.resolve())
    assert f"They lie in {package / 'recipes'};" in listed
    assert len((tmp_path / "named" / "predictions.jsonl").read_text().splitlines()) == 1
    assert len(list((tmp_path / "masks" / "colour").iterdir())) == 1
    for name in ("recognition", "segmentation"):
        assert (tmp_path / f"{name}.safetensors").stat().st_size > 10_000
