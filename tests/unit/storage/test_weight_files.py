"""Files of weights as other trainers write them.

Sets, what stands beside them, prefixes, and what is refused.
"""

import datetime
import pathlib
import pickle
import pickletools
import tarfile
import types
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers.toy_recipes import Net
from trainkit.storage.weight_files import load_weights
from trainkit.storage.weights import fit, load_model, start_from, take_weights

GOOD, BAD = (
    Net(False).state_dict(),
    {name: value * 0 for name, value in Net(False).state_dict().items()},
)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def saved(folder, content, **settings):
    torch.save(content, folder / "w.pth", **settings)
    return folder / "w.pth"


def is_good(tensors) -> bool:
    return tensors.keys() == GOOD.keys() and all(
        torch.equal(value, GOOD[name]) for name, value in tensors.items()
    )


SETS = {  # content, the set taken, those left
    "torchvision": (
        {"model": GOOD, "model_ema": BAD, "optimizer": OPTIMIZER, "epoch": 3},
        "model",
        "model_ema",
    ),
    "timm": (
        {"epoch": 3, "state_dict_ema": BAD, "state_dict": GOOD, "arch": "x"},
        "state_dict",
        "state_dict_ema",
    ),
    "mmengine": (
        {"meta": {}, "ema_state_dict": BAD, "state_dict": GOOD},
        "state_dict",
        "ema_state_dict",
    ),
    "wrapped": ({"ema": {"state_dict": BAD, "decay": 0.9}, "net": GOOD}, "net", "ema"),
    "both": ({"weights": BAD, "model": GOOD}, "model", "weights"),
    "only": (
        {"teacher": GOOD, "epoch": 3, "rng": {"torch": torch.get_rng_state()}},
        "teacher",
        None,
    ),
}


@pytest.mark.parametrize("kind", SETS)
def test_the_set_taken_and_those_left_are_named(tmp_path, kind):
    content, taken, left = SETS[kind]
    tensors, (line,) = load_weights(saved(tmp_path, content))
    assert is_good(tensors)
    others = f"; left: {left} (--weights-key takes another)" if left else ""
    assert line == f"w.pth: the weights under {taken} are taken{others}"
    if left:
        other, lines = load_weights(tmp_path / "w.pth", left)
        assert (
            lines == []
            and other.keys() == BAD.keys()
            and not any(value.any() for value in other.values())
        )


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict", "net", "weights"])
def test_a_single_set_is_taken_without_a_word(tmp_path, nest):
    tensors, lines = load_weights(
        saved(tmp_path, {nest: GOOD, "optimizer": OPTIMIZER, "best": 0.5})
    )
    assert is_good(tensors) and lines == []


def test_a_key(tmp_path):
    nested = {"a.b": {"x": {"state_dict": GOOD}}, "model": BAD, "epoch": 1}
    assert is_good(load_weights(saved(tmp_path, nested), "a.b.x")[0])
    assert is_good(load_weights(tmp_path / "w.pth", "a.b.x.state_dict")[0])
    for key in ("ema", "epoch", "model.none", "a", ""):
        if key:
            with pytest.raises(
                ValueError, match=rf"weights_key is '{key}', and .*w.pth has no weights there"
            ):
                load_weights(tmp_path / "w.pth", key)
    save_file(GOOD, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="holds a single set of weights: leave it out"):
        load_weights(tmp_path / "w.safetensors", "model")


def test_sets_of_which_none_is_known(tmp_path):
    with pytest.raises(
        ValueError, match="holds 2 sets of weights, student, teacher: choose one with --weights-key"
    ):
        load_weights(saved(tmp_path, {"student": BAD, "teacher": GOOD}))
    assert is_good(load_weights(tmp_path / "w.pth", "teacher")[0])


def test_averages_of_torch(tmp_path):
    averaged = AveragedModel(nn.Linear(2, 2))
    averaged.update_parameters(nn.Linear(2, 2))
    path = saved(tmp_path, averaged.state_dict())
    model = nn.Linear(2, 2)
    lines = take_weights(model, path)
    assert (
        "n_averaged stands beside the weights" in lines[0] and "'module.' was taken off" in lines[1]
    )
    assert torch.equal(model.weight, averaged.module.weight)


SIMPLE = {
    "numpy": np.float64(0.7),
    "numpy32": np.float32(0.7),
    "integer": np.int64(3),
    "flag": np.bool_(True),
    "array": np.arange(5.0),
    "objects": np.array(["a", None], dtype=object),
    "words": np.array(["a", "bc"]),
    "kind": np.dtype("float32"),
    "type": np.float32,
    "path": pathlib.Path("runs/x"),
    "windows": pathlib.PureWindowsPath("C:/x"),
    "default": defaultdict(list, {"loss": [1.0, 2.0]}),
    "deep": defaultdict(dict, {"a": {"b": np.float64(1)}}),
    "date": datetime.datetime(2020, 1, 2),
    "span": datetime.timedelta(seconds=3),
    "options": Namespace(lr=np.float64(0.1), out=pathlib.Path("x")),
    "count": Counter({1: 2}),
    "complex": 1j,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", SIMPLE)
def test_what_stands_beside_the_weights(tmp_path, beside, zipped):
    content = {"model": GOOD, "best": SIMPLE[beside]}
    assert is_good(load_weights(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))[0])


def test_weights_in_a_defaultdict(tmp_path):
    assert is_good(load_weights(saved(tmp_path, {"model": defaultdict(int, GOOD)}))[0])


def renamed_in_pickle(content, pairs) -> types.ModuleType:
    """A pickle module for torch.save that writes other names of modules, as other versions do."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            module = getattr(obj, "__module__", "")
            self.write(
                pickle.GLOBAL + f"{pairs.get(module, module)}\n{obj.__qualname__}\n".encode()
            )
            self.memoize(obj)

        dispatch = dict(pickle._Pickler.dispatch)
        dispatch[types.FunctionType] = dispatch[type] = dispatch[types.BuiltinFunctionType] = (
            save_global
        )

    found = types.ModuleType("renamed")
    found.Pickler, found.dump, found.dumps = Pickler, pickle.dump, pickle.dumps
    return found


@pytest.mark.parametrize("before", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_names_of_numpys_parts(tmp_path, before):
    names = dict.fromkeys(("numpy._core.multiarray", "numpy.core.multiarray"), before)
    content = {"model": GOOD, "best": np.float64(0.7), "all": np.arange(3)}
    path = saved(tmp_path, content, pickle_module=renamed_in_pickle(content, names))
    assert is_good(load_weights(path)[0])
    data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    written = {argument for code, argument, _ in pickletools.genops(data) if code.name == "GLOBAL"}
    assert f"{before} scalar" in written and f"{before} _reconstruct" in written


class Surprise:
    """Unpickling it would call print."""

    def __reduce__(self):
        return print, ("surprise",)


class Config:
    def __init__(self):
        self.lr = 0.1


def test_a_refusal_names_what_it_found(tmp_path, capsys):
    content = {"model": GOOD, "x": Surprise(), "config": Config(), "best": np.float64(1)}
    with pytest.raises(ValueError) as caught:
        load_weights(saved(tmp_path, content))
    assert (
        "w.pth is not read: it holds objects of builtins.print, test_weight_files.Config, and only"
        in str(caught.value)
    )
    assert "numpy" not in str(caught.value) and "run code" not in str(caught.value)
    # in the older format
    with pytest.raises(ValueError, match="it holds objects of print, and only"):
        load_weights(saved(tmp_path, content, _use_new_zipfile_serialization=False))
    assert "surprise" not in capsys.readouterr().out


class Bomb:
    """A NumPy dtype whose state says that plain bytes are pointers to objects."""

    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, 1)


def test_nothing_of_numpy_is_made(tmp_path):
    tensors, _ = load_weights(saved(tmp_path, {"model": GOOD, "bomb": Bomb()}))
    assert is_good(tensors)


def cyclic(name):
    content = {"epoch": 1}
    content[name] = content
    return content


def two_in_a_circle():
    one, two = {}, {}
    one["model"], two["state_dict"] = two, one
    return one


def quantized():
    with catch_warnings():
        simplefilter("ignore")  # torch will drop such tensors; files have them
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "content, message",
    [
        (cyclic("state_dict"), "what it holds contains itself"),
        (two_in_a_circle(), "what it holds contains itself"),
        (cyclic("other"), "holds no weights"),
        ({0: torch.ones(2), 1: torch.ones(2)},
            r"names its 2 tensors 0, 1, ..., and not as a state dict does"),
        ({"model": {("a", 1): torch.ones(2)}}, r"names its 1 tensors \('a', 1\)"),
        ({"w": torch.ones(2, device="meta"), "b": torch.ones(1)},
            "1 of the 2 tensors in .* are on the meta device"),
        ({"w": torch.ones(2, 2).to_sparse()}, "1 of the 1 tensors in .* are sparse: w. Save"),
        ({"w": quantized()}, "are quantized: w. Save"),
        ({"w": np.ones(2)}, "holds no weights: its values are of NumPy and no tensors"),
        ({"epoch": 1, "model": {"w": np.ones(2)}},
            "holds no weights: its values are of NumPy and no tensors"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_weights(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_weights(saved(tmp_path, content))


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool])
def test_types_that_the_model_would_not_hold(tmp_path, kind):
    model = nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2).to(kind), "bias": torch.ones(2)}
    with pytest.raises(
        ValueError, match=rf"1 of another type: weight \(file {kind}, model torch.float32\)\. Give"
    ):
        load_model(model, weights, "w.pth")
    before = model.weight.clone()
    load_model(model, weights, "w.pth", partial=True)
    assert torch.equal(model.weight, before) and torch.equal(model.bias, torch.ones(2))
    with pytest.raises(
        ValueError, match="none of its 1 names and shapes match .*1 of another type: weight"
    ):
        load_model(model, {"weight": weights["weight"]}, "w.pth", partial=True)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_held(kind):
    model = nn.Linear(2, 2)
    load_model(model, {"weight": torch.ones(2, 2).to(kind), "bias": torch.ones(2)}, "w.pth")
    assert model.weight.dtype == torch.float32 and model.weight.min() == 1


class Outer(nn.Module):
    """A network with a part of the name given."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, Net(False))


PREFIXES = [
    "module.",
    "model.",
    "backbone.",
    "_orig_mod.",
    "net.",
    "module._orig_mod.",
    "model.net.",
    "module.module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_and_put_before(tmp_path, prefix):
    path = saved(tmp_path, {"state_dict": {prefix + name: value for name, value in GOOD.items()}})
    model = Net(False)
    assert take_weights(model, path) == [f"w.pth: {prefix!r} was taken off the names in the file"]
    assert is_good(model.state_dict())
    model = Net(False)
    assert f"w.pth: {prefix!r} was taken off the names in the file" in start_from(model, path)
    assert is_good(model.state_dict())
    for name in ("module", "model", "backbone", "net"):
        outer = Outer(name)
        lines = take_weights(outer, path)
        assert is_good(getattr(outer, name).state_dict())
        if f"{name}." not in prefix:
            off, put = (
                f"{prefix!r} was taken off the names in the file",
                f"{name + '.'!r} was put before the names",
            )
            assert lines == [f"w.pth: {off}, and {put} in the file"]
    assert (
        take_weights(
            Outer("model"), saved(tmp_path, {"model." + name: v for name, v in GOOD.items()})
        )
        == []
    )


def test_a_prefix_of_some_names_alone_stays():
    """Two networks in one file are not made one."""
    mixed = {"model." + name: value for name, value in GOOD.items()} | {"teacher.x": torch.ones(1)}
    with pytest.raises(ValueError, match="none of its"):
        load_model(Net(False), mixed, "w.pth")
    half = {("module." if "head" in name else "") + name: value for name, value in GOOD.items()}
    found = fit(Net(False), half)
    assert found.renamed is None and found.unmatched == ["module.head.weight", "module.head.bias"]


def test_a_backbone_alone_begins_a_larger_model(tmp_path):
    bare = {n.removeprefix("backbone."): v for n, v in GOOD.items() if n.startswith("backbone.")}
    model = Net(False)
    head = model.head.weight.detach().clone()
    lines = start_from(model, saved(tmp_path, OrderedDict(bare)))
    assert lines[1:] == [
        "w.pth: 'backbone.' was put before the names in the file",
        "left as they are, 2 missing in the file: head.weight, head.bias",
    ]
    assert torch.equal(model.head.weight, head)
    assert all(
        torch.equal(value, bare[name]) for name, value in model.backbone.state_dict().items()
    )


def test_files_of_other_kinds(tmp_path):
    """Programs, archives and plain pickles.

    One message that says what it is, not torch's advice to trust it.
    """
    path = tmp_path / "w.pth"
    with catch_warnings():
        simplefilter("ignore")  # torch will drop such programs; files have them
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(
        ValueError, match=r"w.pth is a program of TorchScript, which is not read: save"
    ):
        load_weights(path)
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, arcname="x.py")
    with pytest.raises(ValueError, match="w.pth is a tar archive, or of PyTorch's oldest format"):
        load_weights(path)
    path.write_bytes(pickle.dumps({"w": torch.ones(2)}))
    with pytest.raises(
        ValueError, match="it holds what torch.save does not write, or it is damaged"
    ):
        load_weights(path)


@pytest.mark.parametrize("left", [0, 1, 4, 100, 0.5, 0.98])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_short(tmp_path, left, zipped):
    path = saved(tmp_path, GOOD, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    with pytest.raises(ValueError, match=r"w\.pth (cannot be read as weights|is not read)"):
        load_weights(path)
