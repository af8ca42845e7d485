"""What a run reads back of its folder.

Whatever stands in a file, the run goes on rightly or one message names it.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass
from functools import partial

import pytest
from safetensors.torch import save_file

from helpers.processes import TESTS
from helpers.toy_recipes import recognition
from trainkit.cli import main
from trainkit.storage.checked_json import Fault
from trainkit.storage.recorded import TO_PUBLISH, is_run, read_recorded
from trainkit.storage.run_files import (
    parse_row,
    read_bad_images,
    read_memory,
    read_report,
    read_results,
    read_summary,
)
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.setting_values import require_all

RECIPE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.toy_recipes import recognition

def recipe(lr: float = 0.1, epochs: float = 1.5):
    return recognition(epochs=epochs)
"""
VALUES = (None, True, 7, -3, 10**30, 1.5, "zz", "", [], [1], {}, {"q": []})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with all that a run may hold, made once."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine.py").write_text(RECIPE)
    words = [
        str(folder / "mine.py"),
        "--workers",
        "0",
        "--log-every",
        "1",
        "--checkpoint-every",
        "1",
    ]
    assert main([*words, "--out", str(folder / "run")]) == 0
    assert main(["evaluate", words[0], "--weights", str(folder / "run"), "--workers", "0"]) == 0
    failure = folder / "run" / "failures" / "step-000000003"
    failure.mkdir(parents=True)
    report = {
        "step": 3,
        "num_processes": 1,
        "precision": "no",
        "checkpoint": None,
        "micro_batch": 4,
    }
    more = {"on_bad_image": "stop", "channels_last": False, "tf32": False}
    (failure / "report.json").write_text(json.dumps({**report, **more}))
    (folder / "run" / "memory.json").write_text(json.dumps({"micro_batch": 4, "asked": None}))
    (folder / "run" / "bad_images.txt").write_bytes(b"3, caf\xe9.jpg: torn\n")
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, in the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def ended(capsys, *words) -> tuple[int, str]:
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:  # tyro's way
        code = stopped.code
    return code, capsys.readouterr().err


def damages(content: dict):
    """What a JSON file may hold instead, each as bytes."""
    whole = json.dumps(content).encode()
    yield from (b"", b" ", b"\0" * 60, b"NaN", b"\xff\xfe", b"[" * 100_000, b"1" * 6000)
    yield from (whole[:-1], whole[: len(whole) // 2])
    yield from (json.dumps(value).encode() for value in VALUES)
    yield whole.replace(b": ", b": NaN, ", 1)
    for name in content:
        yield json.dumps({key: value for key, value in content.items() if key != name}).encode()
        yield from (json.dumps({**content, name: value}).encode() for value in VALUES)
    yield json.dumps({**content, "nan": float("nan"), "inf": float("inf")}).encode()


READERS = {
    "summary.json": read_summary,
    "memory.json": read_memory,
    "results.json": read_results,
    "settings.json": partial(read_recorded, needs=TO_PUBLISH),
    "failures/step-000000003/report.json": lambda run: read_report(
        run / "failures" / "step-000000003"
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_parser_takes_what_was_written_or_names_the_fault(run, name):
    file = run / name
    content = json.loads(file.read_bytes())
    assert READERS[name](run) == content
    refused, taken = 0, 0
    for data in damages(content):
        file.write_bytes(data)
        try:
            found = READERS[name](run)
        except ValueError as error:
            assert str(error).startswith(f"{file} is damaged") and str(error).count("\n") == 0
            refused += 1
        else:
            assert isinstance(found, dict) and found == json.loads(data)
            taken += 1
    assert refused >= 40 and taken, (refused, taken)
    for make in (
        os.mkdir,
        os.mkfifo,
        partial(os.symlink, "nowhere"),
        partial(os.symlink, "/dev/zero"),
    ):
        file.unlink()
        make(file)
        with pytest.raises(
            ValueError, match=f"{file.name} is damaged, or|{file.name} is damaged: it "
        ):
            READERS[name](run)
        if file.is_dir():
            file.rmdir()
            file.touch()


def test_numbers_of_another_kind_are_refused(run):
    """Those that would be used as they are: half a micro-batch, a step that is no number."""
    for name, key, value in (
        ("memory.json", "micro_batch", 2.5),
        ("memory.json", "micro_batch", 0),
        ("memory.json", "asked", True),
        ("summary.json", "steps", "6"),
        ("summary.json", "seconds", None),
        ("failures/step-000000003/report.json", "on_bad_image", "ignore"),
        ("failures/step-000000003/report.json", "tf32", 1),
        ("settings.json", "seed", 0.5),
        ("settings.json", "command", 'trainkit "mine.py'),
    ):
        content = json.loads((run / name).read_bytes())
        (run / name).write_text(json.dumps({**content, key: value}))
        with pytest.raises(ValueError, match=rf"is damaged.*{key} is "):
            READERS[name](run)
        (run / name).write_text(json.dumps(content))


def test_rows_of_the_log(run):
    """Each row comes back; cut anywhere it is none; a value of another kind is a fault."""
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    for line in lines:
        row = json.loads(line)
        assert parse_row(line) == row
        assert all(
            parse_row(line[:length]) is None
            for length in range(0, len(line) - 2)
            if line[length - 1] != 125
        )
        for name in {"event", "step"} | (
            {"best", "best_step", "epoch"} if row["event"] == "evaluate" else set()
        ):
            for value in (
                True,
                -3 if "step" in name else "",
                10**30 if "step" in name else [],
                [],
                {},
            ):
                with pytest.raises(Fault, match=f"{name} is |it has no"):
                    parse_row(
                        json.dumps(
                            {**row, name: value} if value != "" else {"event": row["event"]}
                        ).encode()
                    )
    assert parse_row(b"\0" * 50) is None and parse_row(b"\n") is None
    for other in (
        b"5",
        b"null",
        b"{}",
        b"[]",
        b'"event"',
        b"# a note",
        b"\xff",
        b'{"event": "step", "step": 1, NaN}\n',
    ):
        with pytest.raises(Fault):
            parse_row(other)


def test_a_log_that_is_none_is_not_cut(run, capsys):
    """A foreign line is named with its number and stays; what a crash left is dropped."""
    (run / "summary.json").unlink()
    log = run / "log.jsonl"
    good = log.read_bytes()
    for end in (b"{}\n", b"5", b"my notes\n", b'{"event": "step", "step": null}\n'):
        log.write_bytes(good + end)
        code, shown = ended(
            capsys,
            "mine.py",
            "--workers",
            "0",
            "--checkpoint-every",
            "1",
            "--log-every",
            "1",
            "--out",
            "run",
        )
        line = good.count(b"\n") + 1
        assert code == 2 and f"run/log.jsonl is damaged: line {line}: it" in shown.replace(
            "step is", "it"
        ), shown
        assert log.read_bytes() == good + end
    for end in (b'{"event": "st', b"\0" * 300, b'{"event": "evaluate", "step": 6, "epoch'):
        log.write_bytes(good + end)
        assert RunFolder(run).log.forget_after(6)["step"] == 6 and log.read_bytes().count(
            b"\n"
        ) <= good.count(b"\n")


COMMANDS = (
    ("mine.py", "--workers", "0", "--out", "run"),
    ("mine.py", "--workers", "0", "--out", "run", "--resume", "never"),
    ("evaluate", "mine.py", "--weights", "run", "--workers", "0"),
    ("evaluate", "mine.py", "--weights", "run/checkpoints/step-000000006", "--workers", "0"),
    ("predict", "mine.py", "nothing.png", "--weights", "run", "--out", "out"),
    ("export", "mine.py", "--weights", "run", "--out", "w.safetensors"),
    ("push", "run", "me/toy", "--folder", "pub"),
    ("replay", "run"),
)


def test_every_command_says_that_settings_are_damaged(run, capsys):
    """With one exit code, and before anything is changed."""
    whole = (run / "settings.json").read_bytes()
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    others = [
        "null",
        "5",
        "[]",
        "{}",
        '["settings", "seed", "recipe"]',
        '{"settings": null, "seed": 0, "recipe": null}',
    ]
    for text in (*others, '{"editor.fontSize": 12}', "// a comment", whole[:90].decode()):
        (run / "settings.json").write_text(text)
        for words in random.Random(text).sample(COMMANDS, 4):
            code, shown = ended(capsys, *words)
            assert code == 2 and "run/settings.json is damaged, or not of trainkit: " in shown, (
                words,
                shown,
            )
            assert shown.count("\n") == 1
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_settings_of_another_kind_are_not_given_to_the_recipe(run, capsys):
    content = json.loads((run / "settings.json").read_bytes())
    for value in ("many", None, True, [], {}):
        changed = {**content, "settings": {**content["settings"], "epochs": value}}
        (run / "settings.json").write_text(json.dumps(changed))
        code, shown = ended(capsys, *COMMANDS[2])
        assert code == 2 and f"trained with epochs={value!r}, which " in shown
        assert (
            "mine.py does not take: it must be a number. Give the recipe it was trained with"
            in shown
        )


def test_recorded_settings_that_the_recipe_lost_are_refused_by_name(run, capsys):
    """The default would be measured with, and nobody would know."""
    renamed = RECIPE.replace("epochs: float", "num_epochs: float").replace(
        "epochs=epochs", "epochs=num_epochs"
    )
    (run.parent / "other.py").write_text(renamed)
    for words in COMMANDS[2:6]:
        code, shown = ended(capsys, *[word.replace("mine.py", "other.py") for word in words])
        assert (
            code == 2
            and "other.py does not have: epochs=1.5. Give the recipe it was trained with" in shown
        )


@dataclass(frozen=True)
class Crop:
    """A setting of several values."""

    side: int = 4


def test_a_resume_without_a_recorded_setting_is_refused_by_name(run, capsys):
    """It would train on with whatever the recipe has in its place.

    Finished or not, nothing is changed.
    """
    renamed = RECIPE.replace("lr: float", "rate: float")
    (run.parent / "other.py").write_text(renamed)
    files = ("settings.json", "recipe.py", "log.jsonl")
    words = ("other.py", *COMMANDS[0][1:], "--checkpoint-every", "1", "--log-every", "1")
    for _ in range(2):
        before = [(run / name).read_bytes() for name in files]
        code, shown = ended(capsys, *words)
        assert (
            code == 2
            and "started with settings that the recipe does not have any more: lr=0.1. Give it"
            in shown
        )
        assert [(run / name).read_bytes() for name in files] == before
        (run / "summary.json").unlink(missing_ok=True)
    assert ended(capsys, *words, "--resume", "never")[0] == 0 and (run.parent / "run.1").is_dir()
    assert json.loads((run / "settings.json").read_text())["settings"] == {
        "rate": 0.1,
        "epochs": 1.5,
    }


def test_a_resume_without_a_field_of_a_setting_is_refused_by_name(tmp_path):
    recorded = {"lr": 0.1, "crop": {"side": 3, "stride": 2}, "plain": {"a": 1, "b": 2}}
    with pytest.raises(ValueError, match=r"does not have any more: crop\.stride=2\. Give"):
        require_all(recorded, {"lr": 0.2, "crop": Crop(), "plain": {"a": 1}, "new": 5}, tmp_path)
    require_all({"crop": {"side": 3}}, {"crop": Crop(), "more": Crop}, tmp_path)
    require_all({"crop": {"side": 3}}, {"crop": None}, tmp_path)  # another value, which is reported


def test_files_of_other_kinds_stop_a_run_before_it_begins(run, capsys):
    """A FIFO would be waited for, to read or to write."""
    (run / "summary.json").unlink()
    for name in (
        "log.jsonl",
        "bad_images.txt",
        "stopped.json",
        ".lock",
        "recipe.py",
        "summary.json",
        "checkpoints",
    ):
        kept = run.parent / "kept"
        if (run / name).exists():
            (run / name).rename(kept)
        os.mkfifo(run / name)
        code, shown = ended(capsys, *COMMANDS[0])
        what = "folder" if name == "checkpoints" else "regular file"
        assert code == 2 and f"run/{name} is not a {what}: move it elsewhere" in shown
        (run / name).unlink()
        if kept.exists():
            kept.rename(run / name)


def test_a_file_of_weights_is_no_fifo(run, capsys):
    os.mkfifo("weights.pth")
    code, shown = ended(capsys, "evaluate", "mine.py", "--weights", "weights.pth", "--workers", "0")
    assert code == 2 and "weights.pth is not a regular file" in shown


def test_bad_images_of_any_name(run):
    """Names of files need not be UTF-8, nor need what an older version wrote."""
    name = os.fsdecode(b"caf\xe9.jpg")
    assert read_bad_images(run) == {f"3, {name}: torn"}
    new = [f"4, {name}: torn", "5, été.jpg: torn"]
    assert RunFolder(run).list_bad_images(new) == [r"4, caf\udce9.jpg: torn", new[1]]
    assert RunFolder(run).list_bad_images(new) == []
    written = (run / "bad_images.txt").read_bytes().splitlines()
    assert written == [
        b"3, caf\xe9.jpg: torn",
        rb"4, caf\udce9.jpg: torn",
        "5, été.jpg: torn".encode(),
    ]


def test_somebody_elses_settings_make_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    project = tmp_path / "project"
    project.mkdir()
    for name, text in {"settings.json": '{"editor.fontSize": 12}', "thesis.tex": "..."}.items():
        (project / name).write_text(text)
    for more in ((), ("--resume", "never")):
        code, shown = ended(capsys, "mine.py", "--workers", "0", "--out", "project", *more)
        assert (
            code == 2
            and "project/settings.json is damaged, or not of trainkit: it has no settings" in shown
        )
        assert "--resume never" not in shown
    assert sorted(path.name for path in project.iterdir()) == ["settings.json", "thesis.tex"]
    save_file(recognition().model.state_dict(), project / "w.safetensors")
    assert not is_run(project)  # so that weights beside it are weights
    assert (
        ended(
            capsys, "evaluate", "mine.py", "--weights", "project/w.safetensors", "--workers", "0"
        )[0]
        == 0
    )
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".lock").write_text("the only copy")
    code, shown = ended(capsys, "mine.py", "--workers", "0", "--out", "hidden")
    assert code == 2 and "trainkit did not write hidden/.lock" in shown
    assert (hidden / ".lock").read_text() == "the only copy"


def test_only_a_runs_own_files_are_moved_aside(run, monkeypatch, capsys):
    words = ("mine.py", "--workers", "0", "--epochs", "0.75", "--resume", "never", "--out")
    for foreign in (
        "thesis.tex",
        ".git",
        "checkpoints/step-000000006.keep",
        "failures/notes",
        "data",
    ):
        (run / foreign).mkdir()
        code, shown = ended(capsys, *words, "run")
        assert code == 2 and f"trainkit did not write {foreign} in it. Move that elsewhere" in shown
        assert not (run.parent / "run.1").exists()
        (run / foreign).rmdir()
    (run / ".DS_Store").touch()
    monkeypatch.chdir(run / "checkpoints")
    for place in ("..", "../../run"):
        code, shown = ended(capsys, f"../../{words[0]}", *words[1:], place)
        assert code == 2 and "cannot be moved aside: this command runs inside it" in shown
    monkeypatch.chdir(run)
    code, shown = ended(capsys, f"../{words[0]}", *words[1:], ".")
    assert code == 2 and "cannot be moved aside: this command runs inside it" in shown
    monkeypatch.chdir(run.parent)
    (run.parent / "link").symlink_to("run")
    (run.parent / "run.1").symlink_to("nowhere")
    assert ended(capsys, *words, "link") == (0, "")
    assert (
        json.loads((run / "summary.json").read_text())["steps"] == 3
        and (run.parent / "link").is_symlink()
    )
    assert json.loads((run.parent / "run.2" / "summary.json").read_text())["steps"] == 6


def test_the_recipe_is_kept_whole(run, capsys):
    """One that was cut short, by a full disk of an older version, is put right.

    One that ran is not replaced.
    """
    whole = (run / "recipe.py").read_bytes()
    assert whole == (run.parent / "mine.py").read_bytes()
    for length in (0, 20, len(whole) - 1):
        (run / "recipe.py").write_bytes(whole[:length])
        assert ended(capsys, *COMMANDS[0])[0] == 0 and (run / "recipe.py").read_bytes() == whole
    (run.parent / "mine.py").write_bytes(whole + b"# changed since\n")
    (run / "recipe.py").write_bytes(b"# as it ran\n" + whole)
    assert ended(capsys, *COMMANDS[0])[0] == 0 and (run / "recipe.py").read_bytes().startswith(
        b"# as it ran"
    )
    (run / "recipe.py").write_bytes(whole[:-9] + b"(")
    for words in (COMMANDS[-2], ("evaluate", "run/recipe.py", "--weights", "run")):
        code, shown = ended(capsys, *words)
        assert (
            code == 2
            and "run/recipe.py" in shown
            and "is not Python: '(' was never closed" in shown
        )
        assert shown.count("\n") == 1 and "a whole copy in its place" in shown


def test_a_recipe_that_cannot_be_written_leaves_none(run, capsys, monkeypatch):
    import resource

    (run.parent / "big.py").write_text(RECIPE + "#" * 5000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, limits[1]))
    try:
        code, shown = ended(capsys, "big.py", "--workers", "0", "--out", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "new cannot be written: File too large" in shown
    assert not [
        path
        for path in (run.parent / "new").iterdir()
        if path.name.startswith((".recipe", "recipe"))
    ]
    # other total_steps
    assert ended(capsys, "big.py", "--workers", "0", "--epochs", "0.75", "--out", "new")[0] == 2
    assert ended(capsys, "big.py", "--workers", "0", "--out", "new")[0] == 0
    assert (run.parent / "new" / "recipe.py").read_bytes() == (run.parent / "big.py").read_bytes()


def test_a_stray_among_the_checkpoints_stops_no_run(run, capsys):
    """A copy that somebody keeps is neither resumed from nor removed, whatever else is there."""
    (run / "summary.json").unlink()
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-000000006", folder / "step-000000006.keep")
    shutil.copytree(folder / "step-000000006", folder / "step-000000099")
    (folder / "step-000000012.keep").mkdir()
    (folder / "README").touch()
    assert ended(capsys, *COMMANDS[0])[0] == 0
    assert {"step-000000006.keep", "step-000000099", "step-000000012.keep", "README"} <= {
        p.name for p in folder.iterdir()
    }
