"""Files that anybody may have written: values in model.json, names in a model card, places."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import trainkit
from trainkit.cli import main
from trainkit.commands.model_card import _code, _table
from trainkit.commands.plain_code import _network
from trainkit.errors import UserError
from trainkit.storage.foreign import require_usual

FAST = ("--workers", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a short run of each task, and what is published of it."""
    folder = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in {
            "recog_folder": ("--warmup-epochs", "0", "--epochs", "0.2"),
            "seg_folder": ("--crop", "64", "--epochs", "0.1"),
        }.items():
            assert main([name, "--sample", *FAST, *more, "--out", name]) == 0
            assert main(["push", name, f"me/{name}", "--folder", f"published/{name}"]) == 0
        Image.new("RGB", (60, 50)).save("photo.png")
    return folder


@pytest.fixture
def sent(home, tmp_path, monkeypatch):
    """Copies of the published folders, in one whose name has a sign that formats know."""
    monkeypatch.chdir(home)
    shutil.copytree("published", tmp_path / "sent%d")
    return tmp_path / "sent%d"


def put(folder: Path, place: str, value: object) -> None:
    """Change a value of model.json, at names with dots between."""
    file = folder / "model.json"
    content = json.loads(file.read_text())
    *parts, last = place.split(".")
    inside = content
    for name in parts:
        inside = inside[name]
    inside[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "task, place, value",
    [
        ("recog_folder", "network.arguments.num_classes", 10**12),
        ("recog_folder", "network.arguments.num_classes", "8"),
        ("recog_folder", "network.arguments.num_classes", 8.5),
        ("recog_folder", "network.arguments.num_classes", True),
        ("recog_folder", "network.arguments.name", ["small"]),
        ("recog_folder", "network.arguments.name", "x" * 100_000),
        ("recog_folder", "network.arguments.stochastic_depth", "0.1"),
        ("recog_folder", "network.arguments.sizes", [10**9]),
        ("recog_folder", "network.arguments.sizes", "224"),
        ("recog_folder", "network.arguments.image_channels", 10**8),
        ("recog_folder", "network.arguments.image_channels", -3),
        ("recog_folder", "transform.arguments.size", 10**7),
        ("recog_folder", "transform.arguments.size", None),
        ("recog_folder", "transform.arguments.crop_fraction", 1e-9),
        ("recog_folder", "transform.arguments.interpolation", "evil"),
        ("recog_folder", "transform.arguments.ten_crop", "yes"),
        ("recog_folder", "task.arguments.classes", "abcdefgh"),
        ("recog_folder", "task.arguments.classes", [1, 2]),
        ("recog_folder", "task.arguments.classes", 10**15),
        ("recog_folder", "task.arguments.label_smoothing", "0"),
        ("recog_folder", "batch_size", 10**10),
        ("recog_folder", "mean", [0.5] * 7),
        ("recog_folder", "channels", 10**6),
        ("seg_folder", "network.arguments.channels", 10**9),
        ("seg_folder", "network.arguments.backbone", 7),
        ("seg_folder", "transform.arguments.long_side", 10**8),
        ("seg_folder", "task.arguments.ignore", "255"),
        ("seg_folder", "task.arguments.palette", [[1, 2]]),
        ("seg_folder", "task.arguments.palette", [[1, 2, 999]] * 17),
        ("seg_folder", "task.arguments.raw_ids", [10**9] * 17),
        ("seg_folder", "inference", {"scales": [1e9]}),
        ("seg_folder", "inference", {"scales": [1.0], "window": 10**9}),
        ("seg_folder", "inference", {"scales": [1.0], "window": 64, "window_batch": 10**9}),
    ],
)
def test_values_are_refused_by_name(sent, task, place, value):
    """Before a network is built, and so before they take memory."""
    put(sent / task, place, value)
    name = place.rpartition(".")[2]
    with pytest.raises(UserError) as error:
        trainkit.load(sent / task)
    message = str(error.value)
    inner = next(reversed(value)) if isinstance(value, dict) else name
    assert inner in message and "damaged" in message


@pytest.mark.parametrize(
    "task, changed",
    [
        ("recog_folder", {"num_classes": 1_000_000, "name": "resnet50"}),  # 8 GB
        ("recog_folder", {"num_classes": 1_000_000, "name": "vgg16"}),  # 16 GB
        ("recog_folder", {"name": "timm:vit_large_patch16_224"}),  # 1.2 GB
        ("seg_folder", {"name": "upernet", "channels": 65_536, "backbone": "resnet50"}),
    ],
)
def test_a_network_far_larger_than_its_weights(sent, task, changed, capsys):
    """Each value may be one of a network; it is refused before its memory is written."""
    file = sent / task / "model.json"
    content = json.loads(file.read_text())
    content["network"]["arguments"] |= changed
    file.write_text(json.dumps(content))
    words = f"model.json of {sent / task} describes a network of more than"
    with pytest.raises(UserError, match=words) as error:
        trainkit.load(sent / task)
    assert re.search(r"and its weights, .*model.safetensors, are \d.\d MiB", str(error.value))
    if task == "seg_folder":
        out = ["--out", str(sent / "out")]
        for command in (["predict", str(sent / task), "photo.png"], ["export", str(sent / task)]):
            assert main([*command, *out]) == 2
            assert words in " ".join("".join(capsys.readouterr()).split())
        assert not (sent / "out").exists()


def test_an_evaluation_of_a_network_far_larger_than_its_weights(sent, capsys):
    """Settings of a run from elsewhere, by which its recipe builds the network."""
    file = sent / "recog_folder" / "settings.json"
    content = json.loads(file.read_text())
    content["settings"] |= {"model": "timm:vit_large_patch16_224"}
    file.write_text(json.dumps(content))
    assert main(["evaluate", str(sent / "recog_folder"), *FAST]) == 2
    shown = " ".join("".join(capsys.readouterr()).split())
    assert f"{file} describes a network of more than" in shown


@pytest.mark.parametrize("task", ["recog_folder", "seg_folder"])
def test_what_a_training_wrote_is_loaded(sent, task, tmp_path):
    trainkit.load(sent / task)
    words = ["predict", str(sent / task), "photo.png", *FAST, "--out", str(tmp_path / "out")]
    assert main(words) == 0


def test_numbers_that_are_none():
    def takes(factor: float, names: list[str]) -> None:
        """Nothing."""

    require_usual("it", takes, {"factor": 1, "names": ["a"]})
    for arguments in ({"factor": float("nan")}, {"factor": float("inf")}, {"names": "ab"}):
        with pytest.raises(UserError, match="model.json gives it (factor|names) = "):
            require_usual("it", takes, arguments)


def test_a_files_own_place_is_not_published(home, sent, tmp_path, capsys):
    """Of a run that was sent, whose settings name a place on this machine."""
    secret = tmp_path / "private"
    secret.mkdir()
    (secret / "keys.py").write_text("KEY = 'secret'\n")
    run = tmp_path / "run"
    shutil.copytree(home / "recog_folder", run)
    (run / "recipe.py").write_text("import keys\n" + (run / "recipe.py").read_text())
    settings = json.loads((run / "settings.json").read_text())
    settings["recipe"] = str(secret / "recipe.py")
    (run / "settings.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    assert main(["push", str(run), "me/it", "--folder", str(out)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"recipe.py imports {secret / 'keys.py'}, and nothing in your cache says" in message
    assert not list(tmp_path.glob("out/keys.py"))
    shutil.copy(secret / "keys.py", run)
    shutil.rmtree(out, ignore_errors=True)
    assert main(["push", str(run), "me/it", "--folder", str(out)]) == 0
    assert (out / "keys.py").is_file()


CRAFTED = ['a")\nimport os #', "a``` \n````\n# Heading", "<script>", "| x |\n| y |", "'\"\\"]


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_name_stays_a_name(name):
    """In generated code it is one string, in a table one cell, in a block of code inside it."""
    library, call = _network("recognition.classifier", {"name": name, "num_classes": 3})
    parsed = ast.parse(call, mode="eval").body
    assert isinstance(parsed, ast.Call) and ast.literal_eval(parsed.args[0]) == name
    assert library == "torchvision" and [each.arg for each in parsed.keywords] == ["num_classes"]
    table = _table({name: name}).splitlines()
    assert len(table) == 3 and len(re.findall(r"(?<!\\)\|", table[2])) == 3 and "<" not in table[2]
    block = _code("trainkit", name).splitlines()
    fence = block[-1]
    assert set(fence) == {"`"} and block[0] == f"{fence}bash"
    assert not any(line.strip().startswith(fence) for line in block[1:-1])


def test_a_crafted_network_is_one_line_of_the_card(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "recog_folder", run)
    settings = json.loads((run / "settings.json").read_text())
    settings["model"] = "Net\n\n# Download [this](http://evil)"
    (run / "settings.json").write_text(json.dumps(settings))
    assert main(["push", str(run), "me/it", "--folder", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [each for each in card.splitlines() if "trained by the recipe" in each]
    assert line.startswith("Net Download this ")
    assert "\n# Download" not in card and "](http://evil" not in card
