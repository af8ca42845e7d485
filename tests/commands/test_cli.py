"""The command line as a newcomer meets it, mistakes included: real processes, exit codes, texts."""

import inspect
import json
import os
import re
import resource
import shutil
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from helpers.processes import RECOG, ROOT, TESTS, forked, run, trainkit
from trainkit.cli import main
from trainkit.commands import COMMANDS
from trainkit.commands.arguments import OPTIONS
from trainkit.commands.names_elsewhere import ELSEWHERE, name_here
from trainkit.commands.recipe_file import load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.commands.word_checks import check_flags
from trainkit.storage.shipped import shipped

SAMPLE = ROOT / "recipes" / "recog_folder.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which recog_folder.py was trained on generated data, one short epoch."""
    folder = tmp_path_factory.mktemp("trained")
    done = forked(
        SAMPLE, "--sample", "--epochs", 0.5, "--warmup-epochs", 0, "--workers", 0, cwd=folder
    )
    return folder, done


IMPORTED = """
import sys, time
from trainkit.cli import main
begun = time.perf_counter()
main({words})
loaded = [name for name in ("torch", "tyro", "rich") if name in sys.modules]
print(time.perf_counter() - begun, loaded)
"""


def test_help_without_torch():
    done = trainkit("--help")
    assert "trainkit RECIPE" in done.stdout and "trainkit evaluate RUN" in done.stdout
    assert trainkit("-h").stdout == done.stdout
    last = run(sys.executable, "-c", IMPORTED.format(words=["--help"])).stdout.splitlines()[-1]
    assert last.endswith(" []"), "neither torch nor tyro"
    assert float(last.split()[0]) < 2, "0.1 s on an idle machine"
    assert trainkit("--version").stdout.startswith("trainkit 0.")


@pytest.mark.parametrize(("command", "flags"), [
    ("train", ("RECIPE", "--resume {auto,never}", "--log-every INT")),
    ("audit", ("RECIPE", "--steps INT", "--json")),
    ("check", ("RECIPE", "--micro-batch")), ("doctor", ("RECIPE|FOLDER", "--workers")),
    ("pack", ("RECIPE", "--out PATH", "--encoding {original,jpeg,png,webp,raw}", "masks are")),
    ("evaluate", ("RUN", "--scales", "--weights PATH")),
    ("predict", ("RUN", "--out PATH", "--overlay", "images, and folders with images")),
    ("export", ("RUN", "--format")),
    ("average", ("RUN", "--out PATH", "--last", "RUN ...")),
    ("push", ("RUN", "--license", "of the model on the Hugging Face Hub")),
    ("replay", ("RUN", "--step")), ("new", ("RECIPE", "the Python file to be written")),
    ("recipes", ("[-h]",)),
])  # fmt: skip
def test_help_of_a_command_without_torch(command, flags):
    done = run(sys.executable, "-c", IMPORTED.format(words=[command, "--help"])).stdout
    seconds, _, imported = done.splitlines()[-1].partition(" ")
    assert "'torch'" not in imported and float(seconds) < 5, "0.3 s on an idle machine"
    text = " ".join(done.replace("│", " ").split())
    assert f"usage: trainkit {command} {flags[0]}" in text
    assert all(flag in text for flag in flags), text


def test_a_recipe_by_its_name(tmp_path, monkeypatch):
    """A file, else ./recipes, else those that come with the package.

    A word that is neither is named with the nearest.
    """
    monkeypatch.chdir(tmp_path)
    assert find_recipe("seg_folder") == shipped("recipes") / "seg_folder.py"
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    assert find_recipe("seg_folder") == Path("recipes/seg_folder.py")
    (tmp_path / "seg_folder").write_text("")
    assert find_recipe("seg_folder") == Path("seg_folder"), "an existing file comes first"
    for word, near in (("recog_foldr", "recog_folder"), ("evalute", "evaluate")):
        with pytest.raises(FileNotFoundError, match=f"recipe {word}; did you mean {near}?"):
            find_recipe(word)
    with pytest.raises(
        FileNotFoundError, match="recipe qqq; recipes: depth_folder, recog_cifar10, "
    ):
        find_recipe("qqq")


def test_a_copy_of_a_recipe(tmp_path, monkeypatch, capsys):
    """It finds the recipe that it varies, wherever it lies; nothing is overwritten."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "seg_voc", "own/my_recipe.py"]) == 0
    copy = Path("own/my_recipe.py")
    assert copy.read_text() == (ROOT / "recipes" / "seg_voc.py").read_text()
    assert "lr" in inspect.signature(load_recipe(copy)).parameters
    for words, message in (
        (("seg_voc", "own/my_recipe.py"), "own/my_recipe.py exists; give another name"),
        (("seg_voc", "mine"), "mine is no name of a Python file: end it with .py"),
        (("seg_voic", "x.py"), "no command, file or recipe seg_voic; did you mean seg_voc?"),
        (("a/seg_voic.py", "x.py"), "did you mean seg_voc, a recipe that comes with trainkit?"),
    ):
        assert main(["new", *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "own", tmp_path / "own" / "my_recipe.py"]


def test_commands_take_a_run(trained, tmp_path, monkeypatch, capsys):
    """Its folder, a checkpoint, its file of weights, or what push wrote.

    Each with the recipe that lies there.
    """
    monkeypatch.chdir(trained[0])
    run = Path("runs/recog_folder")
    assert main(["push", str(run), "me/mine", "--folder", str(tmp_path / "published")]) == 0
    (checkpoint,) = run.glob("checkpoints/step-*")
    found = {}
    for name, path in {
        "run": run,
        "checkpoint": checkpoint,
        "file": checkpoint / "model.safetensors",
        "published": tmp_path / "published",
    }.items():
        out = tmp_path / name
        assert main(["evaluate", str(path), "--workers", "0", "--out", str(out)]) == 0
        found[name] = json.loads((out / "results.json").read_text())["confusion"]
    assert found["run"] == found["checkpoint"] == found["file"] == found["published"]
    image = next(Path(os.environ["XDG_CACHE_HOME"]).rglob("val/car/*.jpg"))
    words = [str(image), "--out", str(tmp_path / "predictions"), "--workers", "0"]
    assert main(["predict", str(run), *words]) == 0
    assert (tmp_path / "predictions" / "predictions.jsonl").read_text().count("\n") == 1
    assert main(["export", str(run), "--out", str(tmp_path / "w.safetensors")]) == 0
    capsys.readouterr()
    for words, message in (
        (("evaluate", tmp_path / "w.safetensors"),
            "lies in no run, so that its recipe is not known"),
        (("evaluate", run, "--weights", run), "is no recipe: leave it out"),
        (("evaluate", RECOG), f"which weights? `trainkit evaluate {RECOG} --weights PATH`"),
        ((run,), "is a run, and this takes a recipe first;"),
        (("evaluate", "no/where/run"), "no checkpoint at no/where/run: give a run folder"),
        (("evaluate", "runs/recog_foldr"), "did you mean runs/recog_folder?"),
        (("predict", run, "--out", "p", "--data", "y"), "--data is no option of predict: "),
        (("predict", run, "--out", "p", "--conf", "1"), "--conf is no option of predict: here it"),
    ):  # fmt: skip
        assert main([str(word) for word in words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_lines_of_a_paragraph_are_joined_in_the_help_of_a_recipe(tmp_path):
    """Also before a digit, where tyro alone keeps the break; an indented command stays."""
    file = tmp_path / "mine.py"
    file.write_text(
        '"""A recipe.\n\nWith a long side of\n520, of\n[0.5, 2].\n\n    trainkit mine.py\n"""\n'
        'def recipe(lr: float = 0.1):\n    """Train.\n\n    Args:\n        lr: rate\n    """\n'
    )
    lines = [line.rstrip() for line in forked(file, "--help").stdout.splitlines()]
    assert "With a long side of 520, of [0.5, 2]." in lines
    assert "trainkit mine.py" in [line.strip() for line in lines]


def test_the_recipe_of_an_older_trainkit_is_not_run(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "settings.json").write_text('{"settings": {}, "seed": 0, "recipe": null}')
    (tmp_path / "recipe.py").write_text(
        "from pathlib import Path\nPath('executed').touch()\nfrom trainkit.models.segmenters"
        " import x\n"
    )
    assert main(["evaluate", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "written for an older trainkit: it imports trainkit.models.segmenters" in message
    assert f"trainkit evaluate RECIPE --weights {tmp_path}" in message
    assert not Path("executed").exists()


@pytest.mark.parametrize("command", [[], ["evaluate"]])
def test_help_of_a_recipe_touches_nothing(tmp_path, command):
    file = ROOT / "recipes" / "seg_ade20k.py"
    done = forked(*command, file, "--help", cwd=tmp_path, COLUMNS="80")
    text = " ".join(done.stdout.replace("│", " ").split())
    for words in (
        "--epochs FLOAT passes over the training images (default: 120)",
        "--lr FLOAT learning rate of the backbone, for 16 images a batch (default: 0.01)",
        "--seed INT" if command else "--seed INT", "--workers INT",
        "--out PATH",
        *(["--weights PATH"] if command else ["--resume {auto,never}", "--log-every INT",
            "--checkpoint-every"]), "--weights" if command else "--evaluate-every INT",
    ):  # fmt: skip
        assert words in text, words
    titles = re.findall(r"╭─ ([\w ]+?) ─", done.stdout)
    positional = ["positional arguments"] if command else []
    assert titles == [*positional, "options", "Recipe settings", "Run options"]
    settings, options = text.split("Run options")
    assert "--epochs FLOAT" in settings and "--workers" not in settings
    assert "--workers INT" in options and "--epochs" not in options
    assert "(default: None)" not in text, "what None means stands in the text of a flag"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    "words",
    [(name,) for name in COMMANDS]
    + [(), ("recog_folder",), ("seg_folder",), ("predict", "seg_voc"), ("check", "seg_coco")],
    ids=lambda words: "-".join(words) or "trainkit",
)
def test_help_is_no_wider_than_the_terminal(words, columns, monkeypatch, capsys):
    """No empty default stands in it, nor a None that need not be typed."""
    monkeypatch.setenv("COLUMNS", str(columns))
    try:
        assert main([*words, "--help"]) == 0
    except SystemExit as ended:  # of a recipe's
        assert ended.code == 0
    shown = capsys.readouterr().out
    if words:
        assert shown.startswith(f"usage: trainkit {' '.join(words)}")
        widest = max(len(line) for line in shown.splitlines() if not line.startswith("    "))
        assert widest <= columns
    else:  # one text for all, imported without a library
        assert max(map(len, shown.splitlines())) <= 80
    for words in ("(default: )", "(default: '')", "{None", "None}|", "[FLOAT"):
        assert words not in shown


@pytest.mark.parametrize("name", ["recog_folder", "seg_folder"])
def test_help_begins_with_the_data(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    listed = re.findall(r"^│ (--[\w-]+)", shown.split("Recipe settings")[1], flags=re.MULTILINE)
    assert listed[:2] == ["--data", "--classes"]
    assert re.search(r"on\W+a\W+laptop:[^-]*--model ", shown)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ("seg_folder", "--classes", "sky,", "building"),
            "--classes takes one value, and sky, building are 2: write a list without spaces"
            " (--classes sky,building), and a name that has one in quotes",
        ),
        (
            ("seg_folder", "--classes", "sky", "traffic", "light", "--epochs", "1"),
            "(--classes sky,traffic,light)",
        ),
        (("check", "seg_folder", "--mask-values", "0,", "255"), "(--mask-values 0,255)"),
        (("recog_folder", "--data", "my", "photos"), "(--data my,photos), and a name that has one"),
        (("recog_folder", "--val-share", "20%"), "--val-share is '20%': it must be a number"),
        (("recog_folder", "--lr=fast"), "--lr is 'fast': it must be a number"),
        (("check", "recog_folder", "--workers", "two"), "--workers is 'two': it must be a whole"),
        (("recog_folder", "my_photos"), "my_photos is given without a flag: settings and options"),
        (("check", "seg_folder", "x y"), "have one, such as --data 'x y'"),
        (
            ("recog_folder", "--data", "my", "-lr", "0.1"),
            "-lr has one hyphen: settings and",
        ),
        (("check", "seg_folder", "-epoch", "1"), "two, --epoch; did you mean --epochs?"),
        (("seg_folder", "--modle=small"), "--modle is no option; did you mean --model?"),
        (("recog_folder", "--on-nonfinite", "skp"), "has no choice 'skp'; did you mean skip?"),
        (("recog_folder", "--resume"), "--resume has no value: it is one of auto, never"),
        (("recog_folder", "--device", "cuda"), "--device is no option: a GPU is used where"),
        (("recog_folder", "--learning-rate", "1"), "--learning-rate is no option: here it is --lr"),
        (
            ("recog_folder", "--batchsize=8"),
            "--batchsize is no option: here it is --batch-size, the",
        ),
        (("seg_folder", "--max_epochs", "9"), "--max_epochs is no option: here it is --epochs"),
        (("seg_folder", "--img-size", "9"), "--img-size is no option: here it is --crop"),
        (("recog_folder", "--img-size", "9"), "--img-size is no option: here it is --size"),
        (
            ("check", "seg_folder", "--amp"),
            "--amp is no option: the launcher chooses the precision",
        ),
        (("doctor", "seg_folder", "--num-workers", "2"), "no option: here it is --workers"),
        (("train", "."), "no recipe at ., which is a folder; trainkit doctor . says how to train"),
    ],
)
def test_values_that_are_none_of_a_setting(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ours, others", ELSEWHERE.items())
def test_names_of_other_programs_lead_to_ours(ours, others):
    """Which is a flag somewhere; where a command has none such, or the other name, nothing is."""
    kinds = [each for kind in OPTIONS.values() for each in fields(kind)]
    known = {each.name for each in kinds}
    for name in ("recog_folder", "recog_imagenet", "seg_folder"):
        for setting in inspect.signature(load_recipe(find_recipe(name))).parameters.values():
            kind = setting.annotation
            known |= {each.name for each in fields(kind)} if is_dataclass(kind) else {setting.name}
    assert ours.removeprefix("--").removeprefix("no-").replace("-", "_") in known
    assert len(set(others)) == len(others)
    for other in others:
        for flag in (f"--{other}", f"--{other.replace('-', '_')}"):
            assert name_here(flag, ["--out-of", ours]).startswith(f"here it is {ours}")
            assert name_here(flag, [ours, f"--{other}"]) is None
            assert "here it is" not in str(name_here(flag, ["--out-of"]))


@pytest.mark.parametrize(
    "words, message",
    [
        (("evaluate", "runs"), "; in it are the runs runs/recog_folder"),
        (("evaluate", "recog_folder"), "; did you mean runs/recog_folder?"),
        (("report", "recog_folder"), "; did you mean runs/recog_folder?"),
        (("replay", "runs"), "; in it are the runs runs/recog_folder"),
        (
            ("doctor", "runs/recog_folder"),
            "is a run: give its data, or a recipe; `trainkit report runs/recog_folder` shows a run",
        ),
        (
            ("seg_folder", "--config", "runs/recog_folder/settings.json"),
            "names are no settings here (label_column, label_smoothing, ",
        ),
    ],
)
def test_a_run_meant_by_another_word(words, message, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    assert main(list(words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words, example",
    [
        (("predict", "runs/recog_folder", "data"), "predictions"),
        (("predict", "runs/recog_folder", "dota"), "predictions"),
        (("export", "runs/recog_folder"), "model.onnx"),
        (("average", "runs/recog_folder"), "averaged"),
        (("pack", "recog_folder", "--sample"), "packed"),
    ],
)
def test_a_command_that_lacks_where_to_write(words, example, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    assert main(list(words)) == 2
    expected = (
        f"trainkit {words[0]} is not told where to write: give --out, such as --out {example}"
    )
    assert expected in " ".join(capsys.readouterr().err.split())


def test_training_says_what_it_does(trained):
    folder, done = trained
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "trainkit" / "sample"
    assert f"generated data: shapes of 8 looks in {cache}/class_folder" in done.stdout
    assert not (folder / "data").exists()
    assert "step 7/8" not in done.stdout and "step 8/8  epoch 0.53  loss" in done.stdout
    assert "evaluation after epoch 0.5" in done.stdout and "top1" in done.stdout
    run = folder / "runs" / "recog_folder"
    assert "finished: 8 steps in about " in done.stdout
    assert "best top1: runs/recog_folder/checkpoints/step-000000008\n" in done.stdout
    assert "next: trainkit evaluate runs/recog_folder\n      trainkit predict " in done.stdout
    assert (
        "runs/recog_folder/train_batch.jpg: the first batch as the network gets it" in done.stdout
    )
    assert (run / "recipe.py").read_text() == SAMPLE.read_text()
    settings = json.loads((run / "settings.json").read_text())
    assert settings["settings"]["epochs"] == 0.5 and settings["settings"]["model"] == "small"
    assert settings["settings"]["batch_size"] == 32 and settings["command"].endswith("--workers 0")
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


def test_the_same_command_again_does_nothing(trained):
    done = forked(
        SAMPLE, "--sample", "--epochs", 0.5, "--warmup-epochs", 0, "--workers", 0, cwd=trained[0]
    )
    assert "runs/recog_folder is finished (8 steps)" in done.stdout


@pytest.mark.parametrize(
    "what", ["runs/recog_folder", "runs/recog_folder/checkpoints/step-000000008"]
)
def test_evaluate_takes_settings_from_the_run(trained, what):
    folder, _ = trained
    done = forked("evaluate", SAMPLE, "--weights", what, "--workers", 0, cwd=folder)
    assert done.stdout.endswith("\nresults: runs/recog_folder/results.json\n")
    results = json.loads((folder / "runs" / "recog_folder" / "results.json").read_text())
    summary = json.loads((folder / "runs" / "recog_folder" / "summary.json").read_text())
    assert {name: results[name] for name in summary["final"]} == summary["final"]
    assert (
        results["checkpoint"].endswith("step-000000008") and results["settings"]["sample"] is True
    )


def user_errors(folder):
    """Words -> what the one message must hold."""
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "number.py").write_text("def recipe(lr: float = 0.1): return 3\n")
    (folder / "notes.txt").write_text("hello")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("...")
    for name, text in {"empty": "{}", "torn": '{"settings": {'}.items():
        (folder / name / "failures" / "step-000000001").mkdir(parents=True)
        (folder / name / "failures" / "step-000000001" / "report.json").write_text("{}")
        (folder / name / "settings.json").write_text(text)
        (folder / name / "checkpoints").mkdir()
    (folder / "taken.py").write_text(
        "def recipe(seed: int = 1, lr: float = 0.1, window: int = 2): return 3\n"
    )
    (folder / "imports.py").write_text("import no_such.thing\n")
    (folder / "later.py").write_text("def recipe():\n    import no_such\n")
    imagenet, segmentation = (
        ROOT / "recipes" / "recog_imagenet.py",
        ROOT / "recipes" / "seg_folder.py",
    )
    built = "RandomErasing of torchvision.transforms.v2._augment, called in recognition.py, line"
    lacks = (
        "empty/settings.json is damaged, or not of trainkit: it has no settings. Put a whole copy"
        " in its place, or"
    )
    torn = (
        "torn/settings.json is damaged, or not of trainkit: it is not JSON (Expecting property name"
        " enclosed in"
    )
    ade = ROOT / "recipes" / "seg_ade20k.py"
    return {
        ("--hlep",): "takes it first; did you mean trainkit --help?",
        ("--epochs", "3"): "which recipe?",
        ("evaluate",): "trainkit evaluate RUN",
        ("nothing.py",): "no recipe at nothing.py",
        (ROOT / "recipes" / "seg_ade.py",): "did you mean",
        ("notes.txt",): "is not a Python file",
        ("empty.py",): "empty.py has no function `recipe`",
        ("number.py",): "recipe(...) returned int",
        (ade, "--epoch", "3"): "Perhaps you meant: --epochs",
        (ade, "--epochs", "many"): "--epochs is 'many': it must be a number",
        (ade, "--sample", "yes"): "--sample takes no value, and yes follows it",
        (ade,): "no ADE20K at",
        (
            ade,
            "--data",
            "elsewhere",
        ): "elsewhere (looked for images/validation and annotations/validation). Get http",
        (SAMPLE, "--sample", "--batch-size", "0"): "batch_size is 0",
        (SAMPLE, "--sample", "--workers", "-2"): "workers is -2",
        (SAMPLE, "--sample", "--out", "full"): "full is not empty and not a run",
        (SAMPLE, "--sample", "--warmup-epochs", "9"): "shorten the warm-up",
        ("evaluate", SAMPLE, "--weights", "nowhere"): "no checkpoint at nowhere",
        ("evaluate", SAMPLE, "--sample"): "--weights",
        ("replay",): "trainkit replay RUN",
        (SAMPLE, "--sample", "--out", "empty"): lacks,
        (SAMPLE, "--sample", "--out", "torn"): torn,
        ("evaluate", SAMPLE, "--weights", "empty"): lacks,
        ("evaluate", SAMPLE, "--weights", "torn/checkpoints"): torn,
        ("replay", "torn"): torn,
        ("taken.py",): (
            "settings named like options of trainkit: seed, window. Name them otherwise, such as"
            " my_seed"
        ),
        (
            "evaluate",
            "taken.py",
            "--weights",
            "nowhere",
        ): "settings named like options of trainkit: seed, window",
        ("imports.py",): (
            "imports.py needs the module no_such, which is not installed here: install the package"
            " that"
        ),
        ("later.py",): (
            "needs the module no_such, which is not installed here: install the package that has"
            " it, such"
        ),
        (
            SAMPLE,
            "--sample",
            "--lr",
            "-1",
        ): ", does not take what it was given: Invalid learning rate: -1.0.",
        (
            SAMPLE,
            "--sample",
            "--lr",
            "-2",
        ): "batch_size=32, lr=-2.0, epochs=6, size=56, sample=True; TRAINKIT_",
        (
            SAMPLE,
            "--sample",
            "--size",
            "0",
        ): "size is 0; it is the side of a crop in pixels, at least 1",
        (imagenet, "--sample", "--erase", "2"): built,
        (
            imagenet,
            "--sample",
            "--jitter",
            ".4",
            ".4",
            ".4",
            ".9",
        ): "hue values should be between (-0.5, 0.5)",
        (
            imagenet,
            "--sample",
            "--jitter",
            *"12345",
        ): "jitter is (1.0, 2.0, 3.0, 4.0, 5.0); give one to four: of",
        (
            imagenet,
            "--sample",
            "--rand-augment",
            "2",
            "90",
        ): "rand_augment is (2, 90); give how many changes, at least",
        (
            imagenet,
            "--sample",
            "--rand-augment",
            "0",
            "9",
        ): "and their magnitude, 0 to 30, such as 2 9",
        (
            imagenet,
            "--sample",
            "--smallest-crop",
            "-1",
        ): "scale is (-1.0, 1.0); give two shares of the image's area",
        (segmentation, "--sample", "--crop", "0"): "crop is 0; it is a side in pixels, at least 1",
        (
            segmentation,
            "--sample",
            "--long-side",
            "-3",
        ): "long_side is -3; it is a side in pixels, at least 1",
        ("replay", "full"): "full is not a run",
        (
            SAMPLE,
            "--sample",
            "--out",
            "notes.txt/run",
        ): "notes.txt/run cannot be written: Not a directory",
        (
            SAMPLE,
            "--on-nonfinite",
            "ignore",
        ): "no choice 'ignore'; there are stop, skip",
    }


def test_user_errors_are_reported_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for words, message in user_errors(tmp_path).items():
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:  # tyro's way
            code = stopped.code
        shown = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
        assert code == 2 and message in shown, (words, shown)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "..."


def test_a_user_error_ends_the_process_with_2_and_no_traceback(tmp_path):
    done = trainkit(ROOT / "recipes" / "seg_ade20k.py", cwd=tmp_path, code=2)
    assert (
        done.stderr.startswith("no ADE20K at ")
        and len(done.stderr.splitlines()) == 1
        and done.stdout == ""
    )


def test_a_bad_image_in_a_worker_is_reported_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forked(SAMPLE, "--sample", "--epochs", 0.1, "--warmup-epochs", 0, "--workers", 0, cwd=tmp_path)
    image = next((tmp_path / "cache").rglob("train/car/*.jpg"))
    image.write_bytes(image.read_bytes()[:30])
    for workers in (0, 1):
        done = forked(
            SAMPLE, "--sample", "--workers", workers, "--out", f"w{workers}", cwd=tmp_path, code=2
        )
        assert f"cannot read {image}" in done.stderr and "Traceback" not in done.stderr


def test_what_the_machine_lacks_ends_with_1(trained, monkeypatch, capsys):
    """Files may not grow beyond 20 kB here: no room for a checkpoint."""
    monkeypatch.chdir(trained[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        words = [
            "--sample",
            "--epochs",
            "0.1",
            "--warmup-epochs",
            "0",
            "--workers",
            "0",
            "--out",
            "full",
        ]
        code = main([str(SAMPLE), *words])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = capsys.readouterr().err
    assert (
        code == 1
        and "full/checkpoints/step-000000002 could not be written" in message
        and "Traceback" not in message
    )


def test_an_error_in_a_recipe_keeps_its_traceback(tmp_path):
    """Of what no library says about the values it is given: a bug, in the recipe or below it."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "helper.py").write_text("def fail(): raise KeyError('deep inside')\n")
    (tmp_path / "broken.py").write_text(
        "from packages.helper import fail\ndef recipe():\n    fail()\n"
    )
    (tmp_path / "misspelt.py").write_text(
        "def recipe(lr: float = 0.1):\n    return Recipe(lr=lr)\n"
    )
    (tmp_path / "called.py").write_text(
        "from torch.optim import SGD\ndef recipe():\n    return SGD(parms=[])\n"
    )
    for file, error in (
        ("broken.py", "KeyError"),
        ("misspelt.py", "NameError"),
        ("called.py", "TypeError"),
    ):
        done = forked(file, cwd=tmp_path, code=1)
        assert "Traceback" in done.stderr and file in done.stderr and error in done.stderr


def test_what_a_library_refuses_is_reported_in_one_message(tmp_path):
    """Also where the library lies below the recipe's folder, as in a virtual environment.

    The traceback is kept.
    """
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "helper.py").write_text(
        "def fail(lr): raise ValueError(f'not {lr}.')\n"
    )
    (tmp_path / "broken.py").write_text(
        "from packages.helper import fail\ndef recipe(lr: float = 0.1, epochs: int = 2):\n   "
        " fail(lr)\n"
    )
    done = forked("broken.py", "--lr", "3", cwd=tmp_path, code=2)
    message = (
        "fail of packages.helper, called in broken.py, line 3, does not take what it was given: not"
        " 3.0. The recipe"
    )
    assert done.stderr.startswith(f"{message} was built with lr=3.0; TRAINKIT_TRACEBACK=1")
    assert done.stderr.count("\n") == 1
    done = forked("broken.py", cwd=tmp_path, code=1, TRAINKIT_TRACEBACK="1")
    assert "built with its own settings" in done.stderr and "in fail\n" in done.stderr


MAT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.toy_recipes import Maps, segmentation
from trainkit.data.datasets.source_files import read_mat

class Mat(Maps):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], read_mat(Path("labels.mat"), "LabelMap")

def recipe():
    return segmentation(train_data=Mat(27))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [0, 1])
def test_a_package_that_reading_needs_is_reported(tmp_path, workers):
    """Of labels as MATLAB writes them, without scipy: an empty one is before the real one here."""
    (tmp_path / "empty" / "scipy").mkdir(parents=True)
    (tmp_path / "empty" / "scipy" / "__init__.py").write_text("")
    (tmp_path / "mat.py").write_text(MAT.format(tests=str(TESTS)))
    places = os.pathsep.join([str(tmp_path / "empty"), os.environ.get("PYTHONPATH", "")])
    done = trainkit("mat.py", "--workers", workers, cwd=tmp_path, code=2, PYTHONPATH=places)
    assert done.stderr == "labels.mat needs scipy: pip install scipy\n"


def test_settings_of_the_first_run_are_kept(trained):
    done = forked(
        SAMPLE,
        "--sample",
        "--epochs",
        0.5,
        "--warmup-epochs",
        0,
        "--lr",
        0.3,
        "--workers",
        0,
        cwd=trained[0],
        code=2,
    )
    assert "lr was 0.05 and is 0.3" in " ".join(done.stderr.split())


@pytest.mark.parametrize("value", sorted({name for names in ELSEWHERE.values() for name in names}))
def test_names_of_other_programs_are_values_too(value):
    check_flags({"data": str, "out": str}, ["--data", value, "--out", value])
