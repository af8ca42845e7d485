"""`trainkit.train` and `trainkit.evaluate` do what the commands do, and refuse what these do."""

import functools
import importlib
import json
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from torch import nn

import trainkit
from helpers import toy_recipes
from helpers.image_files import picture
from helpers.logs import assert_bit_equal, rows, without_intervals
from helpers.processes import RECOG, TESTS, Script
from trainkit.cli import main
from trainkit.commands.recipe_file import load_recipe
from trainkit.data.seeding import seed_host
from trainkit.engine.stop_signal import Stopped
from trainkit.errors import MissingFileError, UserError
from trainkit.settings import OptimizerSettings, ScheduleSettings
from trainkit.tasks.recognition import Recognition

TOY = '''"""A toy."""
from pathlib import Path

from helpers import toy_recipes
from trainkit import Recipe
from trainkit.settings import OptimizerSettings

SAMPLE = {"epochs": 0.5}


def recipe(
    data: Path = Path("toys"),
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.1),
    epochs: float = 2.0,
    widths: tuple[float, ...] = (1, 2),
    sample: bool = False,
) -> Recipe:
    """A toy.

    Args:
        data: nothing is read there
        epochs: passes over the data
        widths: of nothing
        sample: half an epoch
    """
    assert isinstance(data, Path) and isinstance(widths, tuple)
    built = toy_recipes.recognition(epochs=epochs)
    for group in built.optimizer.param_groups:
        group["lr"] *= optimizer.lr / 0.1
    return built


def dropped(share: float = 0.5):
    """The same with dropout."""
    return toy_recipes.recognition(dropout=share)
'''
QUICK = {"workers": 0, "log_every": 1}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The module of a toy recipe in a file, in the folder to work in."""
    (tmp_path / "toy_file.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("toy_file")
    del sys.modules["toy_file"]


def settings_of(folder):
    return json.loads((Path(folder) / "settings.json").read_text())


def test_a_function_trains_as_the_command_does(toy):
    """Called by itself, by its file, and built by hand after the same seed: bit for bit."""
    words = ["--seed", "3", "--lr", "0.05", "--epochs", "1", "--workers", "0", "--log-every", "1"]
    assert main(["toy_file.py", *words, "--out", "command"]) == 0
    given = {"seed": 3, "lr": 0.05, "epochs": 1, **QUICK}
    trainkit.train(toy.recipe, out="function", **given)
    trainkit.train("toy_file.py", out=Path("file"), **given)
    trainkit.train(functools.partial(toy.recipe, optimizer=OptimizerSettings(lr=0.05)), epochs=1,
                   **QUICK, out="partial", seed=np.int64(3))  # fmt: skip
    seed_host(3)
    built = toy.recipe(optimizer=OptimizerSettings(lr=0.05), epochs=1)
    trainkit.train(built, trainkit.Options(out="built", seed=3, **QUICK))
    of_command = settings_of("command")
    for name in ("function", "file", "partial", "built"):
        assert_bit_equal(Path("command"), Path(name))
    for name in ("function", "file", "partial"):
        found = settings_of(name)
        assert found.pop("call")["keywords"]["out"] == name
        for each in ("command", "git_commit", "git_changed"):
            found.pop(each)
        found["options"]["out"] = "command"
        theirs = {key: value for key, value in of_command.items() if key in found}
        assert found == theirs and "weights_seed" not in found
        assert Path(name, "recipe.py").read_text() == TOY
    assert settings_of("built")["weights_seed"] is None, "unknown"
    assert not Path("built", "recipe.py").exists()
    assert settings_of("function")["call"]["recipe"] == "recipe"
    assert settings_of("file")["call"]["recipe"] == "'toy_file.py'"


def test_built_recipes_have_the_weights_they_were_built_with(toy):
    """Built twice they differ, whatever the run's seed; a function does not."""
    for number in range(2):
        trainkit.train(toy.recipe(epochs=0.5), out=f"built{number}", **QUICK)
        trainkit.train(toy.recipe, epochs=0.5, out=f"function{number}", **QUICK)
    losses = {path.name: rows(path)[0]["loss"] for path in Path().glob("*[01]")}
    assert losses["function0"] == losses["function1"]
    assert len({losses["built0"], losses["built1"], losses["function0"]}) == 3


def test_the_same_call_resumes(toy, monkeypatch):
    trainkit.train(toy.recipe, out="whole", **QUICK)
    read, times = toy_recipes.Images.__getitem__, []

    def interrupted(self, index):
        times.append(index)
        if len(times) == 40 + 13:  # in step 5, after an evaluation
            signal.raise_signal(signal.SIGTERM)
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(toy_recipes.Images, "__getitem__", interrupted)
        with pytest.raises(Stopped) as stopped:
            trainkit.train(toy.recipe, out="cut", **QUICK)
    assert stopped.value.code == 143 and not Path("cut", "summary.json").exists()
    summary = trainkit.train(toy.recipe, out="cut", **QUICK)
    assert summary["steps"] == rows(Path("whole"))[-1]["step"]
    assert_bit_equal(Path("whole"), Path("cut"))
    assert trainkit.train(toy.recipe, out="cut", **QUICK) == summary, "it is finished"


def test_a_function_of_another_name_is_kept_as_recipe(toy, capsys):
    """And the commands take the run; its folder is called after the function."""
    trainkit.train(toy.dropped, share=0.25, **QUICK)
    kept = Path("runs/dropped/recipe.py").read_text()
    assert kept.startswith(TOY) and kept.endswith(
        "recipe = dropped  # which trainkit.train was given\n"
    )
    assert main(["evaluate", "runs/dropped", "--workers", "0"]) == 0
    results = json.loads(Path("runs/dropped/results.json").read_text())
    assert results["settings"] == {"share": 0.25}
    assert trainkit.evaluate("runs/dropped", workers=0)["top1"] == results["top1"]
    trainkit.train(toy.recipe, sample=True, **QUICK)
    assert settings_of("runs/toy_file")["settings"]["epochs"] == 0.5


def test_evaluate_takes_a_run_a_function_or_a_recipe(toy):
    summary = trainkit.train(toy.recipe, out="run", lr=0.05, epochs=1, **QUICK)
    of_run = trainkit.evaluate("run", workers=0)
    assert without_intervals(of_run) == summary["final"]
    assert not Path("run/results.json").exists()
    of_function = trainkit.evaluate(toy.recipe, weights="run", workers=0, eval_batch=13)
    floats = ("val_loss", "calibration_error")  # sums in another order, of another batch size
    for name in floats:
        assert of_function.pop(name) == pytest.approx(of_run[name], rel=1e-5)
    assert of_function == {name: each for name, each in of_run.items() if name not in floats}
    assert trainkit.evaluate(toy.recipe(), "run", workers=0) == of_run
    assert trainkit.evaluate("toy_file.py", weights=Path("run"), workers=0, out="run") == of_run
    written = json.loads(Path("run/results.json").read_text())
    assert written["settings"]["lr"] == 0.05, "the run's"
    assert main(["evaluate", "run", "--workers", "0", "--eval-batch", "2"]) == 0
    assert json.loads(Path("run/results.json").read_text()) == written


def test_a_recipe_with_other_classes_is_refused(toy):
    """Built as the run's, but for the order of their names: class ids would mean others."""
    names = [f"kind {number}" for number in range(toy_recipes.CLASSES)]
    task = Recognition(names)
    trainkit.train(toy_recipes.recognition(epochs=0.5, task=task), out="run", **QUICK)
    assert trainkit.evaluate(toy_recipes.recognition(task=task), "run", workers=0)
    other = toy_recipes.recognition(task=Recognition(names[::-1]))
    with pytest.raises(UserError, match="class ids would be mapped to the wrong names"):
        trainkit.evaluate(other, "run", workers=0)


def test_a_run_of_no_file_says_so(toy, capsys):
    """Its source is kept; what needs the recipe is refused, with what to do."""

    def recipe(epochs: float = 1):
        return toy_recipes.recognition(epochs=epochs)

    trainkit.train(recipe, out="inner", **QUICK)
    assert (
        "at the top of no Python file (its source is kept as function.py" in capsys.readouterr().out
    )
    kept = Path("inner/function.py").read_text()
    assert kept.strip().startswith("def recipe(epochs") and not Path("inner/recipe.py").exists()
    trainkit.train(toy_recipes.recognition(epochs=1), out="built", **QUICK)
    for name in ("inner", "built"):
        for words in (["evaluate", name], ["replay", name], ["predict", name, "x", "--out", "y"]):
            assert main(words) == 2, words
            assert "Traceback" not in "".join(capsys.readouterr())
    with pytest.raises(MissingFileError, match=r"trainkit.evaluate\(recipe, weights='inner'\)"):
        trainkit.evaluate("inner")
    assert trainkit.evaluate(recipe, weights="inner", workers=0)["num_images"] == 13
    assert main(["push", "inner", "me/inner", "--folder", "sent"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "holds no recipe.py, and model.json does not say how its network" in message


def test_an_object_as_a_setting_is_recorded_by_its_class(toy, capsys):
    def with_data(data: object, epochs: float = 1):
        return toy_recipes.recognition(train_data=data, epochs=epochs)

    toy.with_data = with_data
    for _ in range(2):  # the second resumes, though it is another object
        trainkit.train(with_data, data=toy_recipes.Images(27), out="run", **QUICK)
    assert settings_of("run")["settings"]["data"] == "helpers.toy_recipes.Images"
    printed = capsys.readouterr().out
    assert "data is no plain value" in printed and "changed since" not in printed
    with pytest.raises(UserError, match=r"has no default for data: give data="):
        trainkit.train(with_data)


def test_a_run_from_python_can_be_published(tmp_path, monkeypatch, capsys):
    """Also where its recipe lies in no file: the model is rebuilt by model.json."""
    monkeypatch.chdir(tmp_path)
    for place in range(12):
        split = "val" if place > 7 else "train"
        picture(tmp_path / "my" / split / ("cat", "dog")[place % 2] / f"{place}.png", 16, 16, place)
    given = {"data": Path("my"), "model": "small", "size": 16, "epochs": 1, "batch_size": 4}
    given |= {"pretrained": False, "warmup_epochs": 0, **QUICK}
    shipped = load_recipe(Path(RECOG)).function

    def inner(data: str, model: str, size: int, epochs: float, batch_size: int, pretrained: bool):
        schedule = ScheduleSettings(epochs=epochs)
        return shipped(data, model=model, size=size, batch_size=batch_size, schedule=schedule)

    trainkit.train("recog_folder", out="named", **given)
    given.pop("warmup_epochs")
    trainkit.train(inner, out="inner", **given)
    for name, asked in (("named", True), ("inner", False)):
        assert main(["push", name, f"me/{name}", "--folder", f"sent/{name}"]) == 0
        files = {path.name for path in (tmp_path / "sent" / name).iterdir()}
        assert ("recipe.py" in files) is asked and ("function.py" in files) is not asked
        card = (tmp_path / "sent" / name / "README.md").read_text()
        assert str(tmp_path) not in card and "trainkit.train(" in card
        assert ("trainkit evaluate recipe.py" in card) is asked
        _, info = trainkit.load(f"sent/{name}")
        assert info.predict("my/val") is not None
        assert main(["predict", name, "my/val", "--out", f"found/{name}", "--workers", "0"]) == 0
    assert (
        "trainkit.train('recog_folder', out='named', data='my'"
        in (tmp_path / "sent/named/README.md").read_text()
    )


def refusals(toy):
    """A call that is wrong, and words of its message."""
    train, evaluate = trainkit.train, trainkit.evaluate
    return [
        (lambda: train(toy.recipe, "runs/x"), "second argument is 'runs/x'"),
        (lambda: train(toy.recipe, ouput="x"), "ouput is no setting of toy_file.py .*mean out"),
        (lambda: train(toy.recipe, lrr=1), "did you mean lr"),
        (lambda: train(toy.recipe, lr="high"), "lr is 'high': it must be a number"),
        (lambda: train(toy.recipe, lr=float("nan")), "lr is nan; it must be a finite number"),
        (lambda: train(toy.recipe, epochs=True), "epochs is True: it must be a number"),
        (lambda: train(toy.recipe, resume="nevr"), "resume is 'nevr': it must be one of 'auto'"),
        (lambda: train(toy.recipe, workers=-1), "workers is -1"),
        (lambda: train(toy.recipe, flip=True), "flip is an option of evaluate"),
        (lambda: train(toy.recipe, settings={"lr": 1}), "settings are for a Recipe"),
        (lambda: train(toy), "toy_file is a module: give the function in it, toy_file.recipe"),
        (lambda: train(nn.Linear(1, 1)), "a Linear is no recipe"),
        (lambda: train(7), "a int is no recipe"),
        (lambda: train("toy_fil.py"), "no recipe at toy_fil.py; did you mean toy_file.py"),
        (lambda: train("recog_foldr"), "did you mean recog_folder"),
        (lambda: train(lambda: 7, out="x"), "returned int; it must return a trainkit.Recipe"),
        (lambda: train(functools.partial(toy.recipe, "x")), "without names"),
        (lambda: train(toy.recipe()), "which folder"),
        (lambda: train(toy.recipe(), out="x", lr=1.0), r"train\(recipe, lr=...\), not"),
        (lambda: train(toy.recipe, config="none.yaml"), "there is no file none.yaml"),
        (lambda: train(toy.recipe(), out="x", config="none.yaml"), "there is no file none.yaml"),
        (
            lambda: train(toy.recipe, lr=0.3, optimizer=OptimizerSettings(lr=0.1)),
            "lr is given twice, by itself and as a field",
        ),
        (
            lambda: train(toy.recipe, optimizer=OptimizerSettings(lr=0.1), lr=0.3),
            "lr is given twice, by itself and as a field",
        ),
        (
            lambda: train(toy.recipe, schedule=ScheduleSettings(epochs=1)),
            "warmup_epochs is no setting of toy_file.py",
        ),
        (lambda: train(toy.recipe(), out="x", optimizer=OptimizerSettings(lr=1.0)), "no option lr"),
        (lambda: evaluate("nothing"), "no command, file or recipe nothing"),
        (lambda: evaluate("runs/nothing/at/all"), "no checkpoint at runs/nothing/at/all"),
        (lambda: evaluate(toy.recipe), r"which weights\? evaluate\(recipe, weights=PATH\)"),
        (lambda: evaluate(toy.recipe, "x.safetensors"), "no checkpoint at x.safetensors"),
        (lambda: evaluate(toy.recipe(), "x", micro_batch=2), "micro_batch is an option of train"),
        (lambda: evaluate(toy.recipe, "x", eval_batch=0), "eval_batch is 0"),
        (lambda: evaluate(toy.recipe, "x", flp=True), "did you mean flip"),
    ]


def test_what_cannot_work_is_refused_by_name(toy):
    for call, words in refusals(toy):
        with pytest.raises(UserError, match=words):
            call()
    assert not Path("runs").exists() and not Path("x").exists()


def test_a_config_goes_behind_keywords(toy):
    Path("run.yaml").write_text("lr: 0.02\nepochs: 1\nworkers: 0\nlog-every: 1\n")
    trainkit.train(toy.recipe, config="run.yaml", epochs=0.5, out="run")
    settings = settings_of("run")["settings"]
    assert settings["lr"] == 0.02 and settings["epochs"] == 0.5
    Path("options.yaml").write_text("workers: 0\nlog-every: 3\n")
    trainkit.train(toy.recipe(epochs=0.5), config="options.yaml", log_every=1, out="built")
    options = settings_of("built")["options"]
    assert options["workers"] == 0 and options["log_every"] == 1
    with pytest.raises(
        UserError, match=r"run.yaml: 2 of its 4 names are no settings here \(lr, epochs\)"
    ):
        trainkit.train(toy.recipe(), config="run.yaml", out="x")


def test_a_script_that_trains_on_loading_is_reported(toy, tmp_path):
    """Its run is evaluated by the script itself, which must not train again."""
    script = tmp_path / "script.py"
    script.write_text(TOY + f"\nimport trainkit\ntrainkit.train(recipe, out='run', **{QUICK})\n")
    Script(script.name, PYTHONPATH=f"{TESTS.parent}:{TESTS}").communicate()
    assert Path("run/recipe.py").read_text() == script.read_text()
    with pytest.raises(UserError, match="calls trainkit.train while it is loaded: put the call"):
        trainkit.evaluate("run")
    script.write_text(
        script.read_text().replace("trainkit.train(", 'if __name__ == "__main__": trainkit.train(')
    )
    trainkit.train("script.py", out="run", resume="never", **QUICK)
    assert trainkit.evaluate("run", workers=0)["num_images"] == 13


def state_of_process():
    handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
    handlers.pop(signal.SIGCHLD)  # torch's, of its data-loading workers
    return {
        "handlers": handlers,
        "threads": torch.get_num_threads(),
        "names of threads": {each.name for each in threading.enumerate()},
        "path": list(sys.path),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()),
        "accelerate": bool(PartialState._shared_state),
        "draws": (random.random(), np.random.rand(), torch.rand(1).item()),
        "gradients": torch.is_grad_enabled(),
    }


def test_trainings_leave_the_process_as_it_was(toy):
    """Two of them, of two tasks, with workers, and an evaluation."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = state_of_process()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    trainkit.train(toy.recipe, out="one", tf32=True, workers=1, epochs=1)
    trainkit.train(lambda: toy_recipes.segmentation(epochs=1), out="two", workers=1)
    trainkit.evaluate("one", workers=0, tf32=True)
    assert state_of_process() == before
    assert not torch.utils.data.get_worker_info()
