"""Checkpoints: what goes in comes out, damage is found, and older ones go last."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import write_checkpoint

from trainkit import checkpoint

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
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
    assert checkpoint._unpack(json.loads(json.dumps(checkpoint._pack(state, tensors, "state"))), tensors) == state


def test_an_optimizer_comes_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = write_checkpoint(tmp_path, 7, model.state_dict(), {"optimizer": optimizer.state_dict(), "best": None})
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
    alone, copied = (checkpoint.Snapshot.of({"w": whole, "p": part}, {}, copy=copy).model for copy in (False, True))
    assert alone["w"].data_ptr() == whole.data_ptr() and copied["w"].data_ptr() != whole.data_ptr()
    columns = whole.view(2, 3).t()  # not as it lies in memory
    path = write_checkpoint(tmp_path, 1, {"w": whole, "p": part, "empty": torch.zeros(0)}, {"c": columns, "w": whole})
    weights, state = checkpoint.load(path)
    assert weights["p"].tolist() == [2, 3] and weights["w"].tolist() == whole.tolist()
    assert torch.equal(state["c"], columns) and torch.equal(state["w"], whole)


def test_the_manifest_tells_size_and_hash_of_each_file(tmp_path):
    """Two blocks of the hash and a part of one, by the plain definition."""
    path = write_checkpoint(tmp_path, 4, {"w": torch.randn(600_000)}, {"momentum": torch.randn(3), "step": 4})
    manifest = json.loads((path / "manifest.json").read_text())
    data = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    assert set(data) == {"model.safetensors", "state.safetensors", "state.json"} and manifest["step"] == 4
    told = {name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in data.items()}
    assert manifest["files"] == told


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
    paths = [write_checkpoint(tmp_path, step, {"w": torch.ones(1)}, {}) for step in (1, 2, 3, 10, 20)]
    checkpoint.rotate(tmp_path, 2, [paths[1]])
    assert checkpoint.list_checkpoints(tmp_path) == [paths[1], paths[3], paths[4]]


def test_only_plain_values(tmp_path):
    with pytest.raises(TypeError, match="state.x is a set"):
        write_checkpoint(tmp_path, 1, {}, {"x": {1}})
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_weights_files(tmp_path):
    weights = {"w": torch.arange(3.0)}
    torch.save(weights, tmp_path / "w.pth")
    path = write_checkpoint(tmp_path, 1, weights, {})
    for source in (tmp_path / "w.pth", path, path / "model.safetensors"):
        assert checkpoint.load_weights(source)["w"].tolist() == [0, 1, 2]


class Surprise:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("surprise",)


def test_files_that_would_run_code_are_refused(tmp_path, capsys):
    torch.save({"w": torch.ones(1), "x": Surprise()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth is not a file of plain tensors: to open it would run code"):
        checkpoint.load_weights(tmp_path / "w.pth")
    assert "surprise" not in capsys.readouterr().out
