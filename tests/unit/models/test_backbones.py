"""Backbones by name: strides, channels, weights, and what is said where there is none."""

import sys

import pytest
import torch
import torchvision.models
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead

from trainkit.models.backbones import backbone
from trainkit.models.small import SmallResNet


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("resnet50", 8, (256, 512, 1024, 2048)),
        ("resnet50", 16, (256, 512, 1024, 2048)),
        ("resnext50_32x4d", 32, (256, 512, 1024, 2048)),
        ("wide_resnet50_2", 8, (256, 512, 1024, 2048)),
        ("resnet18", 32, (64, 128, 256, 512)),
        ("small", 8, (64, 128, 128, 256)),
        ("small", 16, (64, 128, 128, 256)),
        ("small", 32, (64, 128, 128, 256)),
    ],
)
def test_strides_and_channels_of_backbones(name, stride, channels):
    """An odd size: each halving rounds up."""
    with torch.device("meta"):
        net = backbone(name, pretrained=False, stride=stride)
        maps = net(torch.zeros(2, 3, 97, 130))
    assert net.channels == channels
    for i, wide in enumerate(channels):
        step = min(4 << i, stride)
        assert maps[f"c{i + 1}"].shape == (2, wide, -(-97 // step), -(-130 // step))
    assert (
        maps["out"] is maps["high"] is maps["c4"]
        and maps["aux"] is maps["c3"]
        and maps["low"] is maps["c1"]
    )


def test_published_weights_are_loaded(tmp_path, monkeypatch):
    """From torch's cache, where they are.

    The map is that of the whole network on the way to its classes.
    """
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), file)
    net, image = backbone("resnet18", pretrained=True, stride=32).eval(), torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(whole.fc(net(image)["c4"].mean((2, 3))), whole(image))


def test_torchvisions_models_take_the_backbones():
    net = SmallResNet((4, 8, 8, 12, 16))
    model = FCN(net, FCNHead(net.channels[-1], 3), FCNHead(net.channels[-2], 3)).eval()
    assert {name: each.shape for name, each in model(torch.rand(1, 3, 40, 33)).items()} == {
        "out": (1, 3, 40, 33), "aux": (1, 3, 40, 33),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnet18", False, 8),
            (
                "resnet18 is made of basic blocks.* its stride is 32, not 8. Take resnet50 or"
                " timm:resnet18"
            ),
        ),
        (("resnet34", False, 16), "its stride is 32, not 16"),
        (("resnet50", False, 4), "stride is 4; it must be 8, 16 or 32"),
        (("resnet5O", False), "no backbone 'resnet5O'; did you mean resnet50?"),
        (("vgg", False), r"no backbone 'vgg'; there are small, resnet101, .*, timm:NAME"),
    ],
)
def test_backbones_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone(*arguments)


def test_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as good as not installed
    with pytest.raises(
        ValueError, match=r'timm:resnest50d needs timm: pip install "trainkit\[timm\]"'
    ):
        backbone("timm:resnest50d", pretrained=False)


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("resnest14d", 8, (256, 512, 1024, 2048)),
        ("resnet10t", 16, (64, 128, 256, 512)),
        ("convnext_atto", 32, (40, 80, 160, 320)),
        ("swin_s3_tiny_224", 32, (96, 192, 384, 768)),
    ],
)
def test_timm_backbones(name, stride, channels):
    net = backbone(f"timm:{name}", pretrained=False, stride=stride).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, 224, 224))
    assert net.channels == channels
    for i, wide in enumerate(channels):
        assert maps[f"c{i + 1}"].shape == (1, wide, *2 * (224 // min(4 << i, stride),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnest50", False), "has no 'resnest50'; did you mean resnest50d?"),
        (
            ("swin_tiny_patch4_window7_224", False),
            "does not dilate to stride 8 in timm .*; take another",
        ),
        (
            ("pit_ti_224", False, 32),
            r"has maps of strides \[8, 16, 32\]; wanted are four",
        ),
        (("seresnet18", True, 32), "cannot get the pretrained weights of timm:seresnet18"),
    ],
)
def test_timm_backbones_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone(f"timm:{arguments[0]}", *arguments[1:])
