"""Networks for recognition by name, from random and from published weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, get_model, resnet18

from helpers.processes import ROOT
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.models.pretrained import load_pretrained
from trainkit.models.recognition import classifier, fine_tuned, published_input
from trainkit.optim import depths, param_groups
from trainkit.storage.weights import load_model


@pytest.mark.parametrize(
    "name, parameters",
    [  # as torchvision publishes them for 1000 classes
        ("resnext50_32x4d", 25_028_904), ("convnext_tiny", 28_589_128), ("vit_b_16", 86_567_656),
        ("efficientnet_b0", 5_288_548),
    ],
)  # fmt: skip
def test_classifiers_by_name(name, parameters):
    with torch.device("meta"):
        model = classifier(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_classifier_that_is_not_known(monkeypatch):
    with pytest.raises(ValueError, match=r"no model 'resnet5'; did you mean resnet50\? There"):
        classifier("resnet5", 10)
    with pytest.raises(ValueError, match=r"no model 'smal'; did you mean small\? There are small"):
        classifier("smal", 10)
    with pytest.raises(ValueError, match=r"has no 'resnest5'; did you mean resnest50d"):
        classifier("timm:resnest5", 10)
    monkeypatch.setitem(sys.modules, "timm", None)  # as good as not installed
    with pytest.raises(
        ValueError, match=r'timm:resnest50d needs timm: pip install "trainkit\[timm\]"'
    ):
        classifier("timm:resnest50d", 10)


@pytest.mark.parametrize(
    "name, last",
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"),
        ("efficientnet_b0", "classifier.1"),
     ("convnext_tiny", "classifier.2"), ("vit_b_32", "heads.head"), ("maxvit_t", "classifier.5"),
     ("swin_t", "head"), ("densenet121", "classifier"), ("mnasnet0_5", "classifier.1"),
     ("shufflenet_v2_x0_5", "fc"), ("googlenet", "fc"), ("vgg11", "classifier.6")],
)  # fmt: skip
def test_torchvisions_networks_keep_their_names(name, last):
    """Weights go from torchvision to here and back, but for the last layer of other classes."""
    with torch.device("meta"):
        ours = fine_tuned(name, 7, pretrained=False)
        published = get_model(
            name,
            weights=None,
            **({"aux_logits": False, "init_weights": False} if name == "googlenet" else {}),
        )
    assert ours.head_names == (last,)
    assert [n for n, _ in ours.named_parameters() if n.startswith(f"{last}.")]
    expected = {n: tuple(value.shape) for n, value in published.state_dict().items()}
    found = {n: tuple(value.shape) for n, value in ours.state_dict().items()}
    assert {n: s for n, s in found.items() if not n.startswith(f"{last}.")} == {
        n: s for n, s in expected.items() if not n.startswith(f"{last}.")
    }
    assert found.keys() == expected.keys() and found[f"{last}.weight"] == (
        7,
        *expected[f"{last}.weight"][1:],
    )


def test_a_new_last_layer():
    """With the published last layer in its place, the network answers as torchvision's does."""
    torch.manual_seed(0)
    published, images = get_model("resnet18", weights=None).eval(), torch.randn(2, 3, 64, 64)
    ours = fine_tuned("resnet18", 1000, pretrained=False).eval()
    ours.load_state_dict(published.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images), published(images))
    assert max(depths(ours).values()) == depths(ours)["fc.weight"] == 9
    groups = param_groups(ours, 0.1, 0.0, head_lr_mult=10.0)
    assert {id(p) for g in groups if g["lr"] == 1.0 for p in g["params"]} == {
        id(p) for p in ours.fc.parameters()
    }


TIMMS = {
    "mobilenetv3_small_050": ("classifier",), "vit_tiny_patch16_224": ("head",),
    "resnet10t": ("fc",), "resnetv2_18": ("head.fc",), "levit_128s": ("head", "head_dist"),
    "regnety_002": ("head.fc",), "convnext_atto": ("head.fc",), "efficientnet_b0": ("classifier",),
    "swin_tiny_patch4_window7_224": ("head.fc",), "densenet121": ("classifier",),
    "vgg11": ("head.fc",), "xcit_nano_12_p8_224": ("head",),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMMS)
def test_timms_networks_keep_their_names(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = (
            fine_tuned(f"timm:{name}", 7, pretrained=False),
            timm.create_model(name, num_classes=7),
        )
    assert ours.head_names == TIMMS[name]
    shapes = [
        {n: tuple(value.shape) for n, value in net.state_dict().items()} for net in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224"])
def test_a_new_last_layer_on_timms(name):
    pytest.importorskip("timm")
    network = fine_tuned(name, 7, pretrained=False)
    assert network.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of that ViT, trained by Google
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    found = published_input(name, "bilinear")
    assert {"mean": found["mean"], "std": found["std"]} == (half if "vit" in name else imagenet)


class WithHead(nn.Sequential):
    """What `fine_tuned` made before: the network without its last layer, and a new one beside."""

    def __init__(self, name: str, num_classes: int):
        super().__init__()
        if name.startswith("timm:"):
            net = pytest.importorskip("timm").create_model(
                name.removeprefix("timm:"), num_classes=0
            )
            features = getattr(net, "head_hidden_size", None) or net.num_features
        else:
            net = get_model(name, weights=None)
            last = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)][
                -1
            ]
            features = net.get_submodule(last).in_features
            net.set_submodule(last, nn.Identity())
        self.add_module("backbone", net)
        self.add_module("head", nn.Linear(features, num_classes))


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "shufflenet_v2_x0_5", "timm:resnetv2_18", "timm:mobilenetv3_small_050",
        "timm:test_vit",
     "timm:test_convnext", "timm:test_efficientnet", "timm:test_byobnet", "timm:test_resnet"],
)  # fmt: skip
def test_weights_of_older_runs_fit(name):
    """Those called backbone and head are read by the names that the network has now.

    The answers are the same.
    """
    torch.manual_seed(0)
    old, new, images = (
        WithHead(name, 7).eval(),
        fine_tuned(name, 7, pretrained=False).eval(),
        torch.randn(1, 3, 224, 224),
    )
    found = load_model(new, old.state_dict(), Path("old"))
    assert (
        found.exact
        and found.renamed
        == "the names in the file are those of an older trainkit (backbone and head)"
    )
    with torch.no_grad():
        expected = old(images)
        torch.testing.assert_close(new(images), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0
    other = fine_tuned(name, 5, pretrained=False)
    lines = load_model(other, old.state_dict(), Path("old"), partial=True).lines()
    assert len(lines) == 1 and lines[0].startswith("2 of another shape: ")


def test_networks_with_other_ends():
    with pytest.raises(ValueError, match="squeezenet1_0 does not end in a linear layer"):
        fine_tuned("squeezenet1_0", 7, pretrained=False)
    with torch.device("meta"):
        assert classifier("googlenet", 7).train()(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


def test_missing_pretrained_weights_are_explained(tmp_path, monkeypatch):
    """No network here or no such file: torch's cache is empty and the address answers nothing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = ResNet18_Weights.IMAGENET1K_V1
    file = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not the weights")
    with pytest.raises(ValueError, match="cannot get the pretrained weights .*--no-pretrained"):
        load_pretrained(resnet18(), weights)
    with pytest.raises(ValueError, match="cannot get the pretrained weights .*--no-pretrained"):
        fine_tuned("resnet18", 10)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match="cannot get the pretrained weights of timm:resnet18.*--no-pretrained"
    ):
        fine_tuned("timm:resnet18", 10)


def test_imagenets_recipe_transforms_images_as_the_network_was_trained(tmp_path):
    """timm's own mean, std, interpolation and crop, or those given; in the protocol too."""
    timm = pytest.importorskip("timm")

    function = load_recipe(ROOT / "recipes" / "recog_imagenet.py")
    known = timm.models.get_pretrained_cfg("test_vit")
    assert known.mean == (0.5, 0.5, 0.5) and known.crop_pct == 0.95
    own = build(function, {"sample": True, "model": "timm:test_vit", "size": 160})
    assert (own.mean, own.std) == (known.mean, known.std)
    assert (
        own.protocol
        == "centre crop of 160, short side 168, bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    )
    asked = {
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "crop_fraction": 0.8,
    }
    other = build(function, {"sample": True, "model": "timm:test_vit", "size": 160, **asked})
    assert (
        other.protocol
        == "centre crop of 160, short side 200, bilinear, mean 0.1 0.2 0.3, std 1 1 1"
    )
    plain = build(function, {"sample": True, "model": "small", "size": 56})
    assert (plain.mean, plain.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert plain.protocol == "centre crop of 56, short side 64, bicubic"
