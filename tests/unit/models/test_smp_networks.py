"""Networks of segmentation_models_pytorch by name, against the library's own."""

import inspect
import json
import sys

import pytest
import torch

from helpers.cases import at_night
from helpers.families import DECODERS as ENCODERS
from helpers.processes import run as command
from helpers.toy_recipes import CLASSES
from trainkit.errors import UserError
from trainkit.models.outputs import size_divisor
from trainkit.models.rebuild import network_from
from trainkit.models.segmentation import Segmenter, has_aux, segmenter
from trainkit.models.smp_networks import DECODERS
from trainkit.optim import param_groups
from trainkit.settings.rebuildable import built_by

smp = pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("timm")

DAY = ("unet", "deeplabv3plus")


@pytest.mark.parametrize("name", at_night(*DECODERS, day=DAY))
def test_it_is_the_librarys_network(name):
    """Of its class, with its names of weights, the same weights for a seed and the same logits."""
    encoder = ENCODERS[name]
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
    network = segmenter(name, 3, ENCODERS[name], False)
    groups = param_groups(network, lr=0.1, weight_decay=0.0, head_lr_mult=10.0)
    fast = {id(each) for group in groups if group["lr"] == 1.0 for each in group["params"]}
    slow = {id(each) for group in groups if group["lr"] == 0.1 for each in group["params"]}
    trained = [each for each in network.encoder.parameters() if each.requires_grad]
    assert slow == {id(each) for each in trained}
    whole = {id(each) for each in network.encoder.parameters()}
    assert fast == {id(each) for each in network.parameters()} - whole


@pytest.mark.nightly
def test_sides_that_they_take():
    assert size_divisor(segmenter("fpn", 2, "resnet18", False)) == 32
    assert size_divisor(segmenter("dpt", 2, ENCODERS["dpt"], False)) == 32
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
@pytest.mark.parametrize("name", DECODERS)
def test_it_is_rebuilt(name):
    network = segmenter(name, CLASSES, ENCODERS[name], False)
    again = network_from(json.loads(json.dumps({"network": built_by(network)})))
    assert type(again) is type(network)
    again.load_state_dict(network.state_dict())


@pytest.mark.nightly
def test_what_no_output_depends_on_is_not_trained():
    """DDP would wait for its gradient."""
    rests = {
        name: [each for each, weight in network.named_parameters() if not weight.requires_grad]
        for name in ("unet", "dpt")
        for network in [segmenter(name, CLASSES, ENCODERS[name], False)]
    }
    parts = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert rests == {"unet": [], "dpt": [f"encoder.model.{part}" for part in parts]}
