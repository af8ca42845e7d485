"""First convolutions for other channels, against timm's own."""

import pytest
import timm
import torch
from timm.models._manipulate import adapt_input_conv
from torch import nn

from trainkit.errors import UserError
from trainkit.models.image_channels import adapted, take_channels
from trainkit.models.recognition import classifier, fine_tuned
from trainkit.models.segmentation import segmenter


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 13])
def test_weights_are_those_of_timm(channels):
    weight = torch.randn(8, 3, 5, 5)
    assert torch.equal(adapted(weight, channels), adapt_input_conv(channels, weight.clone()))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_timm(channels):
    torch.manual_seed(0)
    ours = timm.create_model("resnet18", num_classes=4)
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    take_channels(ours, channels, pretrained=True)
    theirs = timm.create_model("resnet18", num_classes=4, in_chans=channels)
    state["conv1.weight"] = adapt_input_conv(channels, state["conv1.weight"])
    theirs.load_state_dict(state)
    images = torch.randn(2, channels, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_grey_images_are_seen_as_repeated_ones():
    torch.manual_seed(0)
    network = classifier("resnet18", 3).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        want = network(images.repeat(1, 3, 1, 1))
        take_channels(network, 1, pretrained=True)
        assert torch.allclose(network(images), want, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: classifier("small", 3, image_channels=5),
        lambda: classifier("convnext_tiny", 3, image_channels=5),
        lambda: fine_tuned("vit_b_32", 3, False, [64], 5),
        lambda: fine_tuned("timm:resnet18", 3, False, [64], 5),
        lambda: segmenter("lraspp", 3, "small", False, image_channels=5),
        lambda: segmenter("fcn", 3, "timm:resnet18", False, image_channels=5),
        lambda: segmenter("lraspp", 3, "mobilenet_v3_large", False, image_channels=5),
    ],
    ids=["small", "convnext", "vit", "timm", "lraspp", "fcn", "mobilenet"],
)
def test_networks_take_them(build):
    network = build().eval()
    with torch.no_grad():
        outputs = network(torch.randn(1, 5, 64, 64))
    outputs = outputs["out"] if isinstance(outputs, dict) else outputs
    assert outputs.shape[1] == 3
    assert network.built_by["arguments"]["image_channels"] == 5


def test_random_weights_are_as_widely_spread():
    torch.manual_seed(0)
    network = classifier("resnet18", 3)
    before = float(network.conv1.weight.detach().std())
    take_channels(network, 6, pretrained=False)
    assert float(network.conv1.weight.detach().std()) == pytest.approx(before, rel=0.05)
    weight = network.conv1.weight.detach()
    assert not torch.allclose(weight[:, :3], weight[:, 3:]), "each channel its own"


def test_other_networks_are_refused():
    for network in (nn.Linear(3, 4), nn.Conv2d(48, 4, 3), nn.Conv2d(3, 6, 3, groups=3)):
        with pytest.raises(UserError, match="does not begin with a convolution of three channels"):
            take_channels(network, 4, pretrained=True)
