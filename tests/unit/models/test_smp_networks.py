"""Networks of segmentation_models_pytorch by name, against the library's own."""

import inspect
import shutil
import sys

import pytest
import torch

from helpers.cases import at_night
from helpers.logs import assert_bit_equal
from helpers.processes import run as command
from helpers.toy_recipes import CLASSES, Maps, segmentation
from trainkit import Options, train
from trainkit.errors import UserError
from trainkit.models.outputs import size_divisor
from trainkit.models.rebuild import network_from
from trainkit.models.segmentation import Segmenter, has_aux, segmenter
from trainkit.models.smp_networks import DECODERS
from trainkit.optim import param_groups
from trainkit.settings.rebuildable import built_by
from trainkit.storage.checkpoint import list_checkpoints

smp = pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("timm")

# each decoder once, and encoders of both libraries
PAIRS = {
    "unet": "resnet18",
    "unetplusplus": "timm:mobilenetv3_small_050",
    "fpn": "timm:regnety_002",
    "manet": "resnet18",
    "linknet": "resnet18",
    "pan": "timm:mobilenetv3_small_050",
    "deeplabv3plus": "resnet18",
    "segformer": "mit_b0",
    "dpt": "tu-vit_tiny_patch16_224",
}
DAY = ("unet", "deeplabv3plus")


@pytest.mark.parametrize("name", at_night(*DECODERS, day=DAY))
def test_it_is_the_librarys_network(name):
    """Of its class, with its names of weights, the same weights for a seed and the same logits."""
    encoder = PAIRS[name]
    torch.manual_seed(0)
    network = segmenter(name, 3, encoder, False, image_channels=4)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    more = {"dynamic_img_size": True} if name == "dpt" else {}
    own = getattr(smp, DECODERS[name])(
        encoder.replace("timm:", "tu-"), encoder_weights=None, classes=3, in_channels=4, **more
    )
    assert torch.equal(state, torch.get_rng_state()), "trying it draws nothing"
    expected = own.state_dict()
    assert type(network) is type(own) and network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    images = torch.rand(1, 4, 128, 160)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), own.eval()(images))


@pytest.mark.parametrize("name", at_night("unet", "dpt", day=DAY))
def test_its_head_is_all_but_the_encoder(name):
    network = segmenter(name, 3, PAIRS[name], False)
    groups = param_groups(network, lr=0.1, weight_decay=0.0, head_lr_mult=10.0)
    fast = {id(each) for group in groups if group["lr"] == 1.0 for each in group["params"]}
    slow = {id(each) for group in groups if group["lr"] == 0.1 for each in group["params"]}
    assert slow == {id(each) for each in network.encoder.parameters()}
    assert fast == {id(each) for each in network.parameters()} - slow


@pytest.mark.nightly
def test_sides_that_they_take():
    assert size_divisor(segmenter("fpn", 2, "resnet18", False)) == 32
    assert size_divisor(segmenter("dpt", 2, PAIRS["dpt"], False)) == 32
    swin = segmenter("unet", 2, "timm:swin_tiny_patch4_window7_224", False).eval()
    assert size_divisor(swin) == 4
    with torch.no_grad():
        assert swin(torch.zeros(1, 3, 68, 100)).shape == (1, 2, 68, 100)


@pytest.mark.parametrize(
    ("name", "encoder", "match"),
    [
        ("unet", "small", "backbone small is none that unet takes"),
        ("unet", "resnet81", "no encoder 'resnet81'; did you mean resnet18"),
        ("unet", "timm:resnet1", "timm .* has no 'resnet1'"),
        ("unet", "timm:vit_tiny_patch16_224", "unet .* does not take .*vit_tiny.*downsampling"),
        ("unet", "timm:coatnet_0_rw_224", "unet .* does not take the backbone timm:coatnet_0_rw"),
        ("dpt", "resnet18", "dpt .* does not take the backbone resnet18"),
        ("deeplabv3plus", "vgg11", "deeplabv3plus .* does not take the backbone vgg11"),
        ("linknet", "mit_b0", "linknet .* does not take the backbone mit_b0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, encoder, match):
    with pytest.raises(UserError, match=match):
        segmenter(name, 3, encoder, False)


@pytest.mark.nightly
def test_weights_that_cannot_be_had_are_one_message(tmp_path):
    script = (
        "from trainkit.models.segmentation import segmenter\n"
        "from trainkit.errors import UserError\n"
        "for name in ('resnet18', 'timm:resnet18'):\n"
        "    try: segmenter('unet', 3, name)\n"
        "    except UserError as error: print(error)\n"
    )
    done = command(sys.executable, "-c", script, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("with --no-pretrained" in line for line in lines)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)  # as where it is not
    with pytest.raises(UserError, match=r'unet needs .*pip install "trainkit\[smp\]"'):
        segmenter("unet", 3, "resnet18", False)


def test_every_decoder_of_the_library_has_a_name():
    """But for those of which trainkit has its own by that name."""
    networks = {
        name
        for name, each in vars(smp).items()
        if inspect.isclass(each) and issubclass(each, smp.base.SegmentationModel)
    }
    assert networks - set(DECODERS.values()) == {"DeepLabV3", "PSPNet", "UPerNet"}
    assert all(not has_aux(name) for name in DECODERS)
    assert set(DECODERS) < set(Segmenter.__args__)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["unet", "dpt"])
def test_a_training_resumes_bit_equal(name, tmp_path):
    """Evaluated on images whose sides its patches do not divide, and rebuilt from model.json."""

    def recipe():
        torch.manual_seed(0)
        network = segmenter(name, CLASSES, PAIRS[name], False)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        data = Larger(8)
        return segmentation(
            model=network, optimizer=optimizer, train_data=data, val_data=Odd(3, augment=False),
            batch_size=4, epochs=2, clip_norm=None,
        )  # fmt: skip

    options = {"workers": 0, "log_every": 1, "report": False, "pictures": False}
    train(recipe(), Options(out=tmp_path / "one", **options))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(list_checkpoints(tmp_path / "two" / "checkpoints")[-1])
    (tmp_path / "two" / "summary.json").unlink()
    train(recipe(), Options(out=tmp_path / "two", **options))
    assert_bit_equal(tmp_path / "one", tmp_path / "two")
    described = {"network": built_by(recipe().model)}
    assert type(network_from(described)) is type(recipe().model)


class Larger(Maps):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image.repeat(1, 8, 8)[:, :64, :64], target.repeat(8, 8)[:64, :64]


class Odd(Maps):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image.repeat(1, 8, 8)[:, :67, :93], target.repeat(8, 8)[:67, :93]
