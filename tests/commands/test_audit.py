"""trainkit audit in real processes: killed, resumed, on two of them, and in other interpreters."""

import json
import tempfile

import pytest

from helpers.processes import TESTS
from helpers.teachers import write_teacher
from trainkit.cli import main

RECIPE = str(TESTS / "helpers" / "audited_recipes.py")


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    """The recipe imports helpers; temporary folders lie where the test looks for what is left."""
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def audited(*words: str, code: int, fault: str = "none") -> dict:
    """What an audit finds, by the name of the comparison."""
    given = [RECIPE, "--fault", fault, "--steps", "6", "--workers", "0", "--json", "found.json"]
    assert main(["audit", *given, *words]) == code
    with open("found.json") as file:
        found = json.load(file)
    assert found["equal"] is (code == 0) and found["steps"] == 6
    return {each["name"]: each for each in found["comparisons"]}


@pytest.mark.nightly
def test_an_optimizer_whose_state_is_not_saved(tmp_path, capfd):
    """Killed after step 3, and resumed from step 2 by another process; all else is equal."""
    found = audited("--out", "kept", code=1, fault="optimizer")
    assert list(found) == ["again", "workers", "resume", "processes"]
    assert [each["equal"] for each in found.values()] == [True, True, False, True]
    difference = found["resume"]["difference"]
    assert difference["step"] == 3 and difference["kind"] == "parameter"
    two = found["processes"]
    assert 0 < two["loss"] < 1e-5 and 0 < two["parameters"] < 1e-5 and two["why"] is None
    shown = capfd.readouterr().out
    table = shown[: shown.index("┘")]
    assert max(map(len, table.splitlines())) <= 80 and "batches equal" in table
    assert "differs in step 3" in table
    assert "parameter backbone.0.weight; value [" in " ".join(shown.split())
    resumed = tmp_path / "kept" / "resume"
    starts = (resumed / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in starts] == [0, 2]
    assert not (resumed / "stopped.json").exists(), "no signal but SIGKILL"
    assert (tmp_path / "kept" / "first" / "recipe.py").is_file()


@pytest.mark.nightly
@pytest.mark.parametrize("words", [(), ("--dense",)])
def test_sound_recipes_of_both_tasks(tmp_path, words):
    found = audited(*words, code=0)
    assert all(each["equal"] and not each["difference"] for each in found.values())
    assert found["processes"]["why"] is None and len(found) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "temporary"]
    assert not list((tmp_path / "temporary").glob("trainkit*")), "no run is left"


@pytest.mark.nightly
@pytest.mark.parametrize("dense", [False, True])
def test_with_a_teacher(tmp_path, dense):
    """It is read again by each training, the resumed one and both processes too."""
    write_teacher(tmp_path / "teacher", dense)
    words = ("--dense",) if dense else ()
    found = audited(*words, "--teacher", "teacher", "--distill", "0.4", "--out", "kept", code=0)
    assert all(each["equal"] and not each["difference"] for each in found.values())
    assert len(found) == 4 and found["processes"]["why"] is None
    for name in ("first", *found):
        rows = map(json.loads, (tmp_path / "kept" / name / "log.jsonl").read_text().splitlines())
        losses = [row["loss_distillation"] for row in rows if row["event"] == "step"]
        assert len(losses) == 6 and min(losses) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("fault, compared, kind, step", [
    ("noise", "again", "image", None), ("set", "again", "parameter", 0),
    ("dropout", "resume", "output", 3), ("worker", "workers", "image", 2),
    ("order", "workers", "target", 2),
])  # fmt: skip
def test_planted_faults(fault, compared, kind, step):
    workers = ("--workers", "1") if compared == "workers" else ()
    found = audited("--compare", compared, *workers, code=1, fault=fault)[compared]["difference"]
    assert found["kind"] == kind and step in (None, found["step"])


@pytest.mark.nightly
def test_what_processes_may_and_may_not_change(capfd):
    """A loss that divides by a process's own images is a fault; BatchNorm and dropout see them."""
    (found,) = audited("--compare", "processes", code=1, fault="share").values()
    assert found["difference"] is None and "divide by their number" in found["why"]
    for fault, seen in (("norm", "BatchNorm"), ("drop", "torch's generator, as of dropout")):
        (found,) = audited("--compare", "processes", code=0, fault=fault).values()
        assert found["loss"] > 1e-4 and "no bound is promised" in found["why"]
        assert seen in found["why"]


@pytest.mark.parametrize("words, message", [
    (("--steps", "1"), "steps is 1; it must be at least 2"),
    (("--json", "none/found.json"), "there is no folder none"),
    (("--fault", "none", "--batch-size", "1"), "--batch-size"),
])  # fmt: skip
def test_user_errors(words, message, capsys):
    try:
        code = main(["audit", RECIPE, *words])
    except SystemExit as stopped:  # tyro's way
        code = stopped.code
    assert code == 2 and message in "".join(capsys.readouterr())


def test_not_under_a_launcher(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["audit", RECIPE]) == 2
    assert "without a launcher" in " ".join(capsys.readouterr().err.split())
