"""A network and its evaluation's transform, rebuilt from model.json, are those of the recipe.

No recipe is called.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from helpers.processes import ROOT
from helpers.toy_recipes import recognition
from trainkit.cli import main
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.spawning import load_file as load_python
from trainkit.errors import UserError
from trainkit.models.rebuild import network_from, transform_from
from trainkit.models.recognition import classifier, fine_tuned
from trainkit.models.segmentation import segmenter
from trainkit.models.small import SmallClassifier, SmallResNet, small_fcn, small_lraspp
from trainkit.prediction.loading import Source
from trainkit.prediction.model_info import ModelInfo
from trainkit.settings.rebuildable import built_by, rebuildable
from trainkit.storage import checkpoint
from trainkit.storage.model_json import FORMAT, model_json, read_model_json
from trainkit.storage.stored_model import task_from
from trainkit.tasks.recognition import Recognition

FILES = sorted((ROOT / "recipes").glob("*.py"))
DOORS = {
    "classifier": lambda: classifier("small", 7),
    "classifier, rates": lambda: classifier("convnext_tiny", 5, stochastic_depth=0.3),
    "classifier, blocks": lambda: classifier("resnet18", 5, drop_block=0.1),
    "classifier, sizes": lambda: classifier("vit_b_32", 5, sizes=[64]),
    "fine_tuned": lambda: fine_tuned("resnet18", num_classes=3, pretrained=False),
    "fcn": lambda: segmenter("fcn", 4, "small", False),
    "deeplabv3": lambda: segmenter("deeplabv3", 4, "small", False, aux=False),
    "encnet": lambda: segmenter("encnet", 4, "small", False, lateral=True, channels=16),
    "pspnet": lambda: segmenter("pspnet", 4, "small", False, channels=16),
    "upernet": lambda: segmenter("upernet", 4, "small", False, channels=16),
    "lraspp": lambda: segmenter("lraspp", 4, "small", False),
    "lraspp, mobile": lambda: segmenter("lraspp", 4, "mobilenet_v3_large", False),
    "small_fcn": lambda: small_fcn(4, aux_loss=True),
    "small_lraspp": lambda: small_lraspp(4, widths=(8, 16, 16, 16, 32)),
}

CROSS_ENTROPY = {
    "type": "CrossEntropy",
    "arguments": {"label_smoothing": 0.0, "weight": None, "factor": 1.0},
}


def same_outputs(network, twin) -> None:
    """Strictly the same names, and bit-equal outputs once the weights are loaded."""
    twin.load_state_dict(network.state_dict())
    only = getattr(network, "image_size", None)  # of EoMT
    sides = only if isinstance(only, tuple) else (64, 64)
    images = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, others = (each.eval()(images) for each in (network, twin))
    outputs, others = (each if isinstance(each, dict) else {"": each} for each in (outputs, others))
    assert outputs.keys() == others.keys()
    assert all(torch.equal(outputs[name], others[name]) for name in outputs)


def through_json(content):
    return json.loads(json.dumps(content))


@pytest.mark.parametrize("name", DOORS)
def test_what_a_door_builds_is_rebuilt(name):
    network = DOORS[name]()
    twin = network_from({"network": through_json(built_by(network))})
    assert type(twin) is type(network) and built_by(twin) == built_by(network)
    same_outputs(network, twin)


def test_published_weights_are_not_fetched_again(tmp_path, monkeypatch):
    """A network that began from published weights is rebuilt where these cannot be had."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    weights = resnet18().state_dict()
    torch.save(weights, file)
    network = fine_tuned("resnet18", 3, pretrained=True)
    assert torch.equal(network.state_dict()["conv1.weight"], weights["conv1.weight"])
    file.write_bytes(b"not the weights")
    with pytest.raises(UserError, match="cannot get the pretrained weights"):
        fine_tuned("resnet18", 3, pretrained=True)
    assert built_by(network)["arguments"]["pretrained"] is True
    same_outputs(network, network_from({"network": built_by(network)}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_network_of_every_recipe_is_rebuilt(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.stem.startswith("recog_imagenet_"):
        pytest.importorskip("timm")
    file = load_recipe(path)
    recipe = build(file, {**file.sample_settings(), "sample": True})
    described = through_json(model_json(recipe))
    if described["network"]["recipe"] is None:
        twin = network_from(described)
    else:
        assert described["network"]["recipe"] == path.name
        with pytest.raises(
            UserError, match=f"built by `network` in {path.name}, a recipe's own code"
        ):
            network_from(described)
        twin = network_from(described, load_python("elsewhere", path))
    same_outputs(recipe.model, twin)
    classes = recipe.task.known_classes
    names = list(classes) if isinstance(classes, (list, tuple)) else classes
    assert described["classes"] == names
    assert described["task"]["type"] == type(recipe.task).__name__
    assert (described["mean"], described["std"]) == (list(recipe.mean), list(recipe.std))
    transform = transform_from(described)
    if path.stem == "recog_cifar10":  # whose images are of the network's size
        assert transform is None
        return
    assert transform.label == recipe.val_data.transform.label
    if path.stem.startswith("recog"):
        pixels = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8)
        assert torch.equal(transform(pixels), recipe.val_data.transform(pixels))
        side = 80 if path.stem == "recog_multilabel" else 56
        assert described["size"] == side and described["interpolation"] in ("bilinear", "bicubic")
    elif path.stem.startswith("seg"):
        for name in ("raw_ids", "palette"):
            known = getattr(recipe.task, name, None)
            assert described[name] == (None if known is None else np.asarray(known).tolist())
        loss = CROSS_ENTROPY if path.stem == "seg_ade20k_eomt" else [CROSS_ENTROPY]
        if path.stem != "seg_multilabel":
            assert described["task"]["arguments"]["loss"] == loss
        rebuilt = task_from(described["task"])
        assert type(rebuilt) is type(recipe.task) and rebuilt.terms == recipe.task.terms


def test_checkpoints_have_it_and_it_is_hashed_and_published(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--sample", "--epochs", "0.2", "--warmup-epochs", "0", "--workers", "0"]
    words += ["--out", "run"]
    assert main([str(ROOT / "recipes" / "recog_imagenet_resnest.py"), *words]) == 0
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    described = read_model_json(path)
    assert described["network"]["function"] == "recognition.classifier"
    assert described["task"]["arguments"]["label_smoothing"] == 0.1
    network = network_from(described)
    network.load_state_dict(load_file(path / "model.safetensors"))
    assert main(["push", "run", "me/resnest", "--folder", "published"]) == 0
    published = {file.name for file in (tmp_path / "published").iterdir()}
    assert {"recipe.py", "recog_imagenet.py", "model.json"} <= published
    assert read_model_json(tmp_path / "published") == described
    (path / "model.json").write_text((path / "model.json").read_text().replace("small", "other"))
    assert "model.json is not what was written" in checkpoint.verify(path)
    (path / "model.json").write_text("{")
    with pytest.raises(UserError, match="model.json is damaged"):
        read_model_json(path)
    (path / "model.json").write_text(json.dumps({**described, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="of a newer trainkit"):
        read_model_json(path)
    (path / "model.json").unlink()
    assert read_model_json(path) is None  # as in checkpoints of earlier versions


DESCRIBED = {
    "format": FORMAT,
    "trainkit": "1",
    "type": "SmallClassifier",
    "network": {
        "function": "recognition.classifier",
        "recipe": None,
        "arguments": {"name": "small", "num_classes": 3},
    },
    "task": {"type": "Recognition", "arguments": {"classes": 3}, "of": "trainkit"},
    "transform": {"function": "as_stored", "arguments": {}},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "upright": True,
    "inference": {"scales": [1.0], "flip": False, "window": 64, "stride": None, "window_batch": 2},
    "batch_size": 4,
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"network": {}}, "in network, it has no function"),
        ({"network": {"function": "x", "recipe": None}}, "in network, it has no arguments"),
        ({"network": {"function": "x", "arguments": {}}}, "in network, it has no recipe"),
        ({"transform": {}}, "in transform, it has no function"),
        ({"transform": {"function": 3, "arguments": {}}}, "in transform, function is 3, and must"),
        ({"task": {"type": "Recognition", "of": "trainkit"}}, "in task, it has no arguments"),
        ({"task": {"arguments": {}, "of": "trainkit"}}, "in task, it has no type"),
        ({"inference": {}}, "in inference, it has no scales"),
        ({"inference": {"scales": [1.0], "window": "64"}}, 'in inference, window is "64"'),
        ({"channels": "3"}, 'channels is "3", and must be a whole number'),
        ({"bits": 12}, "bits is 12, and must be 8 or 16"),
        ({"mean": "x"}, 'mean is "x", and must be a list of numbers'),
        ({"std": [0.2, 0]}, "std is .0.2, 0., and must be a list of numbers above 0"),
    ],
)
def test_an_incomplete_model_json_is_refused_by_name(tmp_path, change, words):
    file = tmp_path / "model.json"
    file.write_text(json.dumps(DESCRIBED))
    save_file(classifier("small", 3).state_dict(), tmp_path / "model.safetensors")
    info = Source.at(tmp_path).info()
    assert (info.batch_size, info.inference.window, info.pixels.channels) == (4, 64, 3)
    file.write_text(json.dumps({**DESCRIBED, **change}))
    with pytest.raises(UserError, match=f"model.json is damaged: {words}"):
        Source.at(tmp_path)
    file.write_text(json.dumps({**DESCRIBED, **change, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="of a newer trainkit"):
        Source.at(tmp_path)


def test_predictions_leave_every_modules_mode():
    info = ModelInfo(classifier("small", 3), Recognition(3), None)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    for frozen in (False, True):
        info.model.train()
        norms = [each for each in info.model.modules() if isinstance(each, nn.BatchNorm2d)]
        assert norms
        for norm in norms if frozen else []:
            norm.eval()
        modes = [each.training for each in info.model.modules()]
        assert modes.count(False) == len(norms) * frozen
        assert len(info.predict(image)[0]["top"]) == 3
        assert [each.training for each in info.model.modules()] == modes
        with pytest.raises(UserError):
            info.predict([image, image[0, 0]])
        assert [each.training for each in info.model.modules()] == modes
    info.model.eval()
    info.predict(image)
    assert not any(each.training for each in info.model.modules())


def test_the_recipes_own_file_is_published_as_recipe_py(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "--sample",
        "--epochs",
        "0.2",
        "--warmup-epochs",
        "0",
        "--workers",
        "0",
        "--out",
        "run",
    ]
    assert main([str(ROOT / "recipes" / "recog_cifar10.py"), *words]) == 0
    assert main(["push", "run", "me/cifar", "--folder", "published"]) == 0
    described = read_model_json(tmp_path / "published")
    assert described["network"]["recipe"] == "recipe.py"
    own = load_python("published", tmp_path / "published" / "recipe.py")
    network = network_from(described, own)
    network.load_state_dict(load_file(tmp_path / "published" / "model.safetensors"))


def test_what_cannot_be_rebuilt_says_so():
    bare = SmallClassifier(3, SmallResNet((4, 8), (2,), (1,)))
    assert built_by(bare) is None
    with pytest.raises(UserError, match="does not say how SmallClassifier was built"):
        network_from({"network": None, "type": "SmallClassifier"})
    later = {"function": "recognition.detector", "recipe": None, "arguments": {}}
    with pytest.raises(
        UserError, match="names 'recognition.detector', which this trainkit does not"
    ):
        network_from({"network": later})
    with pytest.raises(UserError, match="does not say what an evaluation makes of an image"):
        transform_from({"transform": None})
    wrong = {"function": "recognition.classifier", "recipe": None, "arguments": {"width": 3}}
    with pytest.raises(UserError, match="gives recognition.classifier other arguments"):
        network_from({"network": wrong})
    with pytest.raises(UserError, match="backbone is of type SmallResNet, which model.json cannot"):
        rebuildable(SmallClassifier)(3, bare.backbone)


def test_a_network_that_a_recipe_changed_is_not_rebuilt():
    """Nor is it taken for what its door builds: predictions would be another network's."""

    def changed(change) -> dict:
        recipe = recognition(model=fine_tuned("resnet18", 7, pretrained=False))
        assert model_json(recipe)["network"]["function"] == "recognition.fine_tuned"
        network = fine_tuned("resnet18", 7, pretrained=False)
        change(network)
        return model_json(recognition(model=network))["network"]

    assert changed(lambda net: net.requires_grad_(False)) is not None, "the same function"
    assert changed(lambda net: net.set_submodule("relu", nn.SiLU())) is None
    assert changed(lambda net: setattr(net.layer1[0].bn1, "eps", 0.1)) is None
    assert changed(lambda net: net.register_forward_hook(lambda *_: None)) is None
    recipe = recognition(model=fine_tuned("resnet18", 7, pretrained=False))
    recipe.model.set_submodule("relu", nn.SiLU())  # as a training's own conversions do
    assert model_json(replace(recipe, epochs=3))["network"] is not None
