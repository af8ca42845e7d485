"""Networks for recognition by name, from random and from published weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, get_model, resnet18

from trainkit.models.classifiers import classifier, fine_tuned, normalisation
from trainkit.models.pretrained import load_pretrained
from trainkit.optim import depths


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
    with pytest.raises(ValueError, match=r"no model 'resnet5'; did you mean resnet50\?"):
        classifier("resnet5", 10)
    with pytest.raises(ValueError, match=r"has no 'resnest5'; did you mean resnest50d"):
        classifier("timm:resnest5", 10)
    monkeypatch.setitem(sys.modules, "timm", None)  # as good as not installed
    with pytest.raises(ValueError, match=r'timm:resnest50d needs timm: pip install "trainkit\[timm\]"'):
        classifier("timm:resnest50d", 10)


@pytest.mark.parametrize(
    "name, last",
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("efficientnet_b0", "classifier.1"),
     ("convnext_tiny", "classifier.2"), ("vit_b_32", "heads.head")],
)  # fmt: skip
def test_a_new_last_layer(name, last):
    """With the published last layer as its head, the network answers as torchvision's does."""
    torch.manual_seed(0)
    published, images = get_model(name, weights=None).eval(), torch.randn(2, 3, 224, 224)
    for module in published.modules():
        if isinstance(module, nn.Linear):  # some last layers start from zeros
            nn.init.normal_(module.weight, std=0.02)
    ours = fine_tuned(name, 1000, pretrained=False).eval()
    missing, unexpected = ours.backbone.load_state_dict(published.state_dict(), strict=False)
    assert not missing and unexpected == [f"{last}.weight", f"{last}.bias"]
    ours.head.load_state_dict(published.get_submodule(last).state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images), published(images))
    assert max(depths(ours).values()) == depths(ours)["head.weight"] > 5
    assert fine_tuned(name, 7, pretrained=False)(images).shape == (2, 7)


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224"])
def test_a_new_last_layer_on_timms(name):
    pytest.importorskip("timm")
    network = fine_tuned(name, 7, pretrained=False)
    assert network.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of that ViT, trained by Google
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert normalisation(network) == (half if "vit" in name else imagenet)


def test_torchvisions_weights_have_the_default_mean_and_std():
    assert normalisation(fine_tuned("resnet18", 7, pretrained=False)) == {}


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
    with pytest.raises(ValueError, match="cannot get the pretrained weights of timm:resnet18.*--no-pretrained"):
        fine_tuned("timm:resnet18", 10)
