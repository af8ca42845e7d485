"""Checkpoints: what goes in comes out, damage is found, and older ones go last."""

import hashlib
import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.toy_recipes import write_checkpoint
from trainkit.storage import checkpoint
from trainkit.storage.packing import pack, unpack
from trainkit.storage.weights import read_weights

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text()
)
STATES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(STATES)
def test_structures_come_back(state):
    tensors = {}
    assert unpack(json.loads(json.dumps(pack(state, tensors, "state"))), tensors) == state


def test_an_optimizer_comes_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = write_checkpoint(
        tmp_path, 7, model.state_dict(), {"optimizer": optimizer.state_dict(), "best": None}
    )
    weights, state = checkpoint.load(path)
    assert path.name == "step-000000007" and checkpoint.list_checkpoints(tmp_path) == [path]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    again = torch.optim.AdamW(model.parameters(), lr=0.5)
    again.load_state_dict(state["optimizer"])
    assert str(again.state_dict()) == str(optimizer.state_dict())
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}, "nothing pickled"


def test_shared_weights_are_saved(tmp_path):
    weight = torch.ones(3)
    path = write_checkpoint(tmp_path, 1, {"a": weight, "b": weight, "c": weight[:2]}, {})
    assert checkpoint.load(path)[0]["c"].tolist() == [1, 1]


def test_copies_only_where_asked_or_shared(tmp_path):
    whole, part = torch.arange(6.0), torch.arange(8.0)[2:4]
    alone, copied = (
        checkpoint.Snapshot.of({"w": whole, "p": part}, {}, copy=copy).model
        for copy in (False, True)
    )
    assert alone["w"].data_ptr() == whole.data_ptr() and copied["w"].data_ptr() != whole.data_ptr()
    columns = whole.view(2, 3).t()  # not as it lies in memory
    path = write_checkpoint(
        tmp_path, 1, {"w": whole, "p": part, "empty": torch.zeros(0)}, {"c": columns, "w": whole}
    )
    weights, state = checkpoint.load(path)
    assert weights["p"].tolist() == [2, 3] and weights["w"].tolist() == whole.tolist()
    assert torch.equal(state["c"], columns) and torch.equal(state["w"], whole)


def test_the_manifest_tells_size_and_hash_of_each_file(tmp_path):
    """Two blocks of the hash and a part of one, by the plain definition."""
    path = write_checkpoint(
        tmp_path, 4, {"w": torch.randn(600_000)}, {"momentum": torch.randn(3), "step": 4}
    )
    manifest = json.loads((path / "manifest.json").read_text())
    data = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    assert (
        set(data) == {"model.safetensors", "state.safetensors", "state.json"}
        and manifest["step"] == 4
    )
    expected = {
        name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()}
        for name, each in data.items()
    }
    assert manifest["files"] == expected


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "no manifest"])
def test_damage_is_found(tmp_path, damage):
    path = write_checkpoint(tmp_path, 1, {"w": torch.ones(100)}, {"x": torch.zeros(5)})
    assert checkpoint.verify(path) is None
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-3] ^= 1
        file.write_bytes(data)
    else:
        (file if damage == "missing" else path / "manifest.json").unlink()
    assert checkpoint.verify(path)
    with pytest.raises(ValueError, match="step-000000001 is damaged"):
        checkpoint.load(path)


def test_rotation_keeps_the_newest_and_the_protected(tmp_path):
    paths = [
        write_checkpoint(tmp_path, step, {"w": torch.ones(1)}, {}) for step in (1, 2, 3, 10, 20)
    ]
    checkpoint.rotate(tmp_path, 2, [paths[1]])
    assert checkpoint.list_checkpoints(tmp_path) == [paths[1], paths[3], paths[4]]


def test_only_plain_values(tmp_path):
    with pytest.raises(TypeError, match="state.x is of type set"):
        write_checkpoint(tmp_path, 1, {}, {"x": {1}})
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_weights_files(tmp_path):
    weights = {"w": torch.arange(3.0)}
    torch.save(weights, tmp_path / "w.pth")
    path = write_checkpoint(tmp_path, 1, weights, {})
    for source in (tmp_path / "w.pth", path, path / "model.safetensors"):
        assert read_weights(source)[0]["w"].tolist() == [0, 1, 2]


class Surprise:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("surprise",)


def test_files_that_would_run_code_are_refused(tmp_path, capsys):
    torch.save({"w": torch.ones(1), "x": Surprise()}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match="w.pth is not read: it holds objects of builtins.print, and only tensors"
    ):
        read_weights(tmp_path / "w.pth")
    assert "surprise" not in capsys.readouterr().out


def whole(folder, step=1):
    return write_checkpoint(folder, step, {"w": torch.ones(100)}, {"x": torch.zeros(5)})


def manifests(path):
    """A manifest as somebody or something may have left it: as text, from the one that is right."""
    right = json.loads((path / "manifest.json").read_text())
    files = right["files"]
    one = files["state.json"]
    for content in (None, True, 5, -1.5, "files", [], ["files"], {}, {"step": 1}, {"files": files}):
        yield json.dumps(content)
    for step in (None, "1", 1.0, True, -1, 2, 10**30, [1]):
        yield json.dumps({**right, "step": step})
    for wrong in (None, 0, [], ["model.safetensors"], {}, "state.json", {"state.json": one}):
        yield json.dumps({**right, "files": wrong})
    for wrong in (
        None,
        3,
        [],
        "",
        {},
        {**one, "bytes": None},
        {**one, "bytes": 10**400},
        {**one, "sha256": 7},
    ):
        yield json.dumps({**right, "files": {**files, "state.json": wrong}})
    for name in ("../other", "/etc/hostname", "a/b", "..", "", "\0", "missing.json"):
        yield json.dumps({**right, "files": {**files, name: one}})
    for wrong in (0, "1", None, 1.5):
        yield json.dumps({**right, "format": wrong})
    yield from (
        "",
        " ",
        "\0" * 50,
        "{",
        "nan",
        "NaN",
        "1" * 6000,
        "[" * 100_000,
        json.dumps(right)[:-1],
        "\udcff",
    )


def test_a_manifest_of_any_content_is_damage(tmp_path):
    """Reported as such, and passed over by a run, whatever it holds.

    Nothing outside the folder is read.
    """
    path = whole(tmp_path)
    faults = []
    for text in manifests(path):
        (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        faults.append(checkpoint.verify(path))
    assert (
        len(faults) > 50
        and all(faults)
        and not [line for line in faults if "Error" in line and "File" not in line]
    )
    (path / "manifest.json").unlink()
    for make in (
        os.mkdir,
        os.mkfifo,
        lambda place: os.symlink("/dev/zero", place),
        lambda place: os.symlink("x", place),
    ):
        make(path / "manifest.json")
        assert "manifest.json is damaged: it " in checkpoint.verify(path)
        (path / "manifest.json").rmdir() if make is os.mkdir else (path / "manifest.json").unlink()


@pytest.mark.parametrize("what", [os.mkdir, os.mkfifo, partial(os.symlink, "/dev/zero")])
def test_only_regular_files_are_read(tmp_path, what):
    path = whole(tmp_path)
    (path / "state.json").unlink()
    what(path / "state.json")
    assert checkpoint.verify(path) == "state.json is not a regular file"


def test_a_manifest_may_give_its_format(tmp_path):
    path = whole(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    assert checkpoint.verify(path) is None


FOREIGN = (
    "step-000000002.keep",
    "step-2",
    "step-0000000002",
    "step-",
    "step-00000000x",
    "step-000000002 (copy)",
    "notes",
)


def test_only_what_was_written_here_is_removed(tmp_path):
    """Copies, other names, links, other people's files and unreadable manifests stay, and stop
    nothing."""
    for step in (1, 2, 3, 4):
        whole(tmp_path, step)
    for foreign in FOREIGN:
        shutil.copytree(tmp_path / "step-000000002", tmp_path / foreign)
    # of step 2, it says
    shutil.copytree(tmp_path / "step-000000002", tmp_path / "step-000000001", dirs_exist_ok=True)
    (tmp_path / "step-000000003" / "notes.txt").write_text("the good one")
    (tmp_path / "step-000000005").mkdir()
    (tmp_path / "step-000000006").write_text("a file")
    for hidden in (".writing-step-000000007", ".removing-step-000000001"):  # of a process that died
        shutil.copytree(tmp_path / "step-000000002", tmp_path / hidden)
    kept = [".writing-notes", ".removing-step-000000002.keep", ".removing-step-000000009"]
    for hidden in kept:
        (tmp_path / hidden).mkdir()
    (tmp_path / kept[-1] / "mine.txt").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".removing-step-000000008").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        f"step-{n:09d}" for n in (1, 2, 3, 4, 5)
    ]
    checkpoint.rotate(tmp_path, 1)
    stays = {*FOREIGN, *kept, "elsewhere", ".removing-step-000000008"}
    stays |= {f"step-{n:09d}" for n in (1, 3, 4, 5, 6)}
    assert {path.name for path in tmp_path.iterdir()} == stays


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    whole(tmp_path, 1)
    (tmp_path / "step-000000001" / "notes.txt").write_text("the good one")
    (tmp_path / "step-000000001" / "manifest.json").write_text("{}")
    with pytest.raises(
        OSError,
        match="step-000000001 could not be written: in its place is a folder with files that",
    ):
        whole(tmp_path, 1)
    assert (tmp_path / "step-000000001" / "notes.txt").read_text() == "the good one"
    (tmp_path / "step-000000001" / "notes.txt").unlink()
    assert checkpoint.verify(whole(tmp_path, 1)) is None


def test_killed_while_safetensors_writes(tmp_path):
    """What a killed process leaves, by whatever name the library begins a file.

    The next save takes it away.
    """
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # those of the parent are not in a fork, which would wait for them
        write_checkpoint(tmp_path, 4, {"w": torch.zeros(100_000_000)}, {})
        os._exit(0)
    begun = time.monotonic()
    while not list(tmp_path.glob(".writing-step-000000004/*")) and time.monotonic() - begun < 60:
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert list(tmp_path.glob(".writing-step-000000004/*")), "it was killed in the middle of a file"
    path = write_checkpoint(tmp_path, 4, {"w": torch.ones(3)}, {})
    assert checkpoint.verify(path) is None and [each.name for each in tmp_path.iterdir()] == [
        "step-000000004"
    ]
