"""Networks from outside keep what they have.

Synchronised, checkpointed, frozen, and whatever they return.
"""

import copy
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from helpers.logs import rows, weights
from helpers.toy_recipes import CLASSES, Maps, recognition, segmentation
from trainkit import Options, Recipe, freeze, train
from trainkit.commands.check import check
from trainkit.data.to_device import ToDevice
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.activation_checkpointing import blocks, checkpoint_activations
from trainkit.engine.evaluation import evaluate
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.probe import unchanged
from trainkit.engine.sync_batch_norm import synchronised
from trainkit.engine.task_module import TaskModule
from trainkit.models.outputs import main_logits, resized_to_targets, size_divisor
from trainkit.models.recognition import classifier, fine_tuned
from trainkit.models.segmentation import segmenter
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

# what `synchronised` asks of an accelerator
GPUS = SimpleNamespace(device=torch.device("cuda"), num_processes=2)

# Side of an image -> a small network of each of some families that take it.
FEW = {
    64: (
        "timm:lcnet_050 timm:efficientvit_b0 timm:regnety_002 mobilenet_v3_small shufflenet_v2_x0_5"
        " regnet_x_400mf"
    ),
}
WITHOUT_BLOCKS = {"alexnet", "vgg11_bn"}  # which activation checkpointing refuses by name
MANY = {
    64: (
        """
    timm:mobileone_s0 timm:convmixer_768_32 timm:convnextv2_atto timm:cspresnet50 timm:densenet121
    timm:dpn68 timm:edgenext_xx_small timm:efficientnet_lite0 timm:tf_efficientnetv2_b0
    timm:fasternet_t0 timm:fastvit_t8 timm:focalnet_tiny_srf timm:ghostnet_050 timm:hardcorenas_a
    timm:hgnetv2_b0 timm:hrnet_w18_small timm:inception_next_atto timm:mambaout_femto
    timm:poolformer_s12 timm:mobilenetv3_small_050 timm:mobilevit_xxs timm:mobilevitv2_050
    timm:nf_regnet_b0 timm:pvt_v2_b0 timm:repghostnet_050 timm:repvit_m0_9 timm:repvgg_a0
    timm:res2net50_14w_8s timm:resnest14d timm:resnet10t timm:resnetv2_18 timm:rexnet_100
    timm:selecsls42 timm:legacy_seresnet18 timm:shvit_s1 timm:skresnet18 timm:starnet_s1
    timm:tresnet_m timm:twins_pcpvt_small timm:ese_vovnet19b_dw timm:xception41 timm:legacy_xception
    timm:dla34 convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2
    regnet_y_400mf resnet18 resnext50_32x4d squeezenet1_0 swin_t swin_v2_t alexnet vgg11_bn
    """
    ),
    32: (
        """
    timm:rdnet_tiny
    """
    ),
    96: (
        """
    timm:inception_v3 timm:inception_v4 inception_v3
    """
    ),
    224: (
        """
    timm:vit_tiny_patch16_224 timm:cait_xxs24_224 timm:coat_lite_tiny timm:convit_tiny
    timm:davit_tiny timm:deit_tiny_patch16_224 timm:eva02_tiny_patch14_224 timm:efficientformerv2_s0
    timm:efficientvit_m0 timm:levit_128s timm:swin_tiny_patch4_window7_224 vit_b_16 maxvit_t
    """
    ),
}


def each(families: dict[int, str]) -> list[tuple[str, int]]:
    return [(name, side) for side, names in families.items() for name in names.split()]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"), num_classes=10)
    extra = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )
    return get_model(name, weights=None, num_classes=10, **extra)


def passed(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, gradients, buffers and the state of the random numbers after one training pass."""
    torch.manual_seed(7)
    model.train().zero_grad()
    outputs = model(images)
    outputs.square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [
        outputs.detach(),
        *gradients,
        *(buffer.clone() for buffer in model.buffers()),
        torch.get_rng_state(),
    ]


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def keeps_its_modules(name: str, side: int) -> None:
    images, model = (
        torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)),
        network(name),
    )
    with torch.no_grad():
        before = model.eval()(images)
    ways = {
        "plain": model,
        "synchronised": copy.deepcopy(model),
        "checkpointed": copy.deepcopy(model),
    }
    names = list(model.state_dict())
    synchronised(ways["synchronised"], GPUS)
    assert not [
        m for m in ways["synchronised"].modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))
    ]
    assert list(ways["synchronised"].state_dict()) == names
    with torch.no_grad():
        assert torch.equal(ways["synchronised"].eval()(images), before)
    expected = passed(model, images)
    assert_equal(passed(ways["synchronised"], images), expected)
    if name in WITHOUT_BLOCKS:
        return
    assert checkpoint_activations(ways["checkpointed"]) > 1
    assert_equal(passed(ways["checkpointed"], images), expected)


@pytest.mark.parametrize(("name", "side"), each(FEW))
def test_networks_keep_their_modules(name, side):
    """Synchronised and computed twice.

    Outputs, gradients, statistics and random numbers of the network as it was.
    """
    keeps_its_modules(name, side)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "side"), each(MANY))
def test_many_networks_keep_their_modules(name, side):
    keeps_its_modules(name, side)


class Doubled(nn.BatchNorm2d):
    """Computes something of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.BatchNorm2d):
    """Torch's under another name."""


def test_what_cannot_be_synchronised_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Doubled(4))
    with pytest.raises(
        ValueError,
        match=(
            "1 is a test_external_networks.Doubled, which computes otherwise .*--no-sync-batch-norm"
        ),
    ):
        synchronised(model, GPUS)
    assert type(model[1]) is Doubled, "nothing is changed where something is refused"
    norm = Named(4)
    norm.register_forward_hook(lambda module, inputs, output: output + 1)
    images = torch.randn(2, 4, 3, 3)
    expected = norm.eval()(images)
    assert torch.equal(synchronised(norm, GPUS)(images), expected)
    would_change = pytest.raises(
        ValueError, match="sync_batch_norm is on, and would change what Sequential gives"
    )
    with would_change, unchanged(model, torch.randn(1, 3, 4, 4), "sync_batch_norm"):
        model[1].__class__ = nn.SyncBatchNorm


class Keywords(nn.Module):
    """A block that is called with keywords, and given a list that grows afterwards."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, found: list, *, scale: torch.Tensor):
        return scale * self.body(sum(found))


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Keywords() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        found = [x * self.scale]
        for layer in self.layers:
            found.append(layer(found, scale=self.scale))
        return found[-1]


def test_blocks_with_keywords_and_lists():
    torch.manual_seed(0)
    model, images = Growing(), torch.randn(2, 4, 5, 5)
    again, both = copy.deepcopy(model), synchronised(copy.deepcopy(model), GPUS)
    assert checkpoint_activations(again) == checkpoint_activations(both) == 3
    expected = passed(model, images)
    assert_equal(passed(again, images), expected)
    assert_equal(passed(both, images), expected)


def test_blocks_that_change_their_input_are_refused():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1))

        def forward(self, x):
            return self.body(x.mul_(2))

    model = nn.Sequential(nn.Conv2d(4, 4, 1), InPlace(), InPlace())
    checkpoint_activations(model)
    with pytest.raises(ValueError, match=r"the block 1 \(InPlace\) changes its input in place"):
        model(torch.randn(2, 4, 5, 5))


@pytest.mark.nightly
def test_blocks_are_not_stages_nor_whole_backbones():
    """What is computed again at once is a block, however deep it stands, and whatever a stage is
    made of."""
    for name, kind, number in (
        ("convnext_tiny", "ConvNeXtBlock", 18),
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12),
        ("regnety_008", "Bottleneck", 13),  # and the first stage, of one
        ("resnet50", "Bottleneck", 16),
        # in stages with convolutions of more than a quarter of their weights
        ("cspresnet50", "BottleneckBlock", 13),
    ):
        with torch.device("meta"):
            model = timm.create_model(name)
        for wrapped in (
            model,
            nn.Sequential(model, nn.Linear(1000, 3)),
            nn.ModuleDict({"backbone": model}),
        ):
            assert [type(block).__name__ for block in blocks(wrapped)].count(kind) == number, name
            assert len(blocks(wrapped)) <= number + 3


class Pooled(nn.Module):
    """Batch norm on a map of one pixel, and dropout behind it."""

    def __init__(self, dense: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, CLASSES, 1)
        self.dense = dense

    def forward(self, x):
        x = self.stem(x)
        x = x * self.pool(x).sigmoid()
        return self.head(x) if self.dense else self.head(x).mean((2, 3))


def of(model: nn.Module, build=recognition, **changes) -> Recipe:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    return build(
        **{"model": model, "optimizer": optimizer, "epochs": 1, "clip_norm": None, **changes}
    )


def options(folder, **changes) -> Options:
    return Options(**{"out": folder, "workers": 0, "log_every": 1, **changes})


def test_batch_norm_with_one_value_is_refused_before_the_first_step(tmp_path):
    """The last batch of one image, a pass of one, and of a batch a rest of one."""
    for images, batch, changes, step in (
        (9, 8, {}, 2),
        (8, 8, {"micro_batch": 1}, 1),
        (8, 5, {"micro_batch": 2}, 1),
    ):
        with pytest.raises(
            ValueError,
            match=rf"step {step} has a forward pass of one image .* norm pool.2 then has one",
        ):
            train(
                of(Pooled(), num_images=images, batch_size=batch),
                options(tmp_path / "run", **changes),
            )
        assert not (tmp_path / "run" / "log.jsonl").exists()
    train(of(Pooled(), num_images=9, batch_size=8, drop_last=True), options(tmp_path / "dropped"))
    # it never comes
    train(of(Pooled(), num_images=9, batch_size=8, epochs=0.5), options(tmp_path / "half"))
    model = Pooled()
    freeze(model.pool)
    train(of(model, num_images=9, batch_size=8), options(tmp_path / "frozen"))


class Later(Pooled):
    """Pools from the second training pass on: nothing that one image through the network shows."""

    passes = 0

    def forward(self, x):
        self.passes += self.training
        return super().forward(x) if self.passes == 2 else self.head(self.stem(x)).mean((2, 3))


def test_batch_norm_with_one_value_at_run_time_saves_the_steps_before(tmp_path):
    with pytest.raises(ValueError, match="Later has one value per channel, .* drop_last=True"):
        train(of(Later(), num_images=9, batch_size=8), options(tmp_path / "run"))
    saved = weights(tmp_path / "run")
    expected = of(Later(), num_images=9, batch_size=8, epochs=0.5)
    expected.model.load_state_dict(saved)
    assert saved["stem.1.num_batches_tracked"] == 1, "the step that failed has counted nothing"


def test_freeze(tmp_path):
    """No gradient, no statistics, no dropout, through copies and `train()`; the names stay."""
    model = Pooled()
    names = list(model.state_dict())
    freeze(model, but=[model.head])
    model.train()
    assert model.head.training and not any(m.training for m in (model, *model.stem, *model.pool))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.train()
        assert (
            other.head.training
            and not other.stem[1].training
            and other.stem[1].train() is other.stem[1]
        )
        other.eval()
        assert not other.head.training and model.head.training
    before = copy.deepcopy(model.state_dict())
    train(
        of(model, ema=0.9), options(tmp_path / "run", precise_bn=16, activation_checkpointing=False)
    )
    assert list(model.state_dict()) == names
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert moved == ["head.weight", "head.bias"]
    with pytest.raises(TypeError, match="freeze takes modules, and got str"):
        freeze("stem")
    with pytest.raises(ValueError, match="but names a Linear that is not inside Pooled"):
        freeze(model, but=nn.Linear(2, 2))


def test_precise_statistics_leave_frozen_ones_alone():
    model = Pooled()
    freeze(model.stem)
    with torch.no_grad():
        model.stem[1].running_mean.fill_(3.0)
    recipe, accelerator = of(model, num_images=32), start_accelerator()
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
    task_module = TaskModule(model, recipe.task).eval()
    evaluator = Evaluator(recipe, task_module, accelerator, to_device, 5, 0, None, precise_bn=32)
    with PreciseBatchNorm(evaluator).estimated():
        assert model.stem[1].running_mean.eq(3).all() and not model.pool[2].running_mean.eq(0).any()


def test_check_tells_statistics_of_frozen_layers_that_move():
    model = Pooled()
    model.stem.requires_grad_(False)
    message = (
        "1 batch norms of frozen layers (stem.1) still count their statistics: freeze them with"
        " trainkit.freeze"
    )
    assert any(message in line for line in check(of(model), options(None))["warnings"])
    freeze(model.stem)
    assert not any("frozen" in line for line in check(of(model), options(None))["warnings"])


class Returns(nn.Module):
    """Logits at a part of the image's size, put into what networks return."""

    def __init__(self, wrap=lambda logits: logits, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, max(1, stride), stride)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


def test_what_networks_return():
    """Tensor, torchvision's dict, transformers' outputs, a tuple with `logits`.

    Anything else by its type.
    """
    from torchvision.models import GoogLeNetOutputs
    from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput

    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 8, 8), torch.randint(CLASSES, (2, 8, 8))
    task, model = Segmentation(CLASSES), Returns()
    plain = model(images)
    expected = F.cross_entropy(plain, targets, reduction="sum")
    for wrap in (
        lambda x: x,
        lambda x: {"out": x},
        lambda x: {"logits": x},
        lambda x: SemanticSegmenterOutput(logits=x),
    ):
        torch.testing.assert_close(task.losses(wrap(plain), targets)[0], expected)
        assert torch.equal(task.predict(wrap(plain), targets), plain.argmax(1))
        assert torch.equal(task.scores(wrap(plain), images), plain.softmax(1))
    whole, ids = plain.mean((2, 3)), torch.tensor([1, 3])
    for wrap in (
        lambda x: x,
        lambda x: ImageClassifierOutput(logits=x),
        lambda x: GoogLeNetOutputs(x, None, None),
    ):
        torch.testing.assert_close(
            Recognition(CLASSES).losses(wrap(whole), ids)[0],
            F.cross_entropy(whole, ids, reduction="sum"),
        )
        assert torch.equal(Recognition(CLASSES).predict(wrap(whole), ids), whole)
    with pytest.raises(
        ValueError, match="returned a tuple of Tensor, Tensor, and a task takes a tensor of logits"
    ):
        task.losses((plain, plain), targets)
    with pytest.raises(
        ValueError, match="returned a dict of .'masks', 'queries'.*as 'out' or 'logits'"
    ):
        main_logits({"queries": plain, "masks": plain})
    with pytest.raises(ValueError, match=r"logits of shape \(2, 7\), and segmentation takes"):
        task.losses(whole, targets)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 7, 8, 8\), and recognition takes"):
        Recognition(CLASSES).predict(plain, ids)


def test_logits_smaller_than_the_targets_are_resized_in_training(tmp_path):
    """As transformers does it; larger ones are refused."""
    images, targets = torch.randn(2, 3, 12, 12), torch.randint(CLASSES, (2, 12, 12))
    logits = Returns(stride=4)(images)
    upsampled = F.interpolate(logits, size=(12, 12), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, targets, reduction="sum")
    task = Segmentation(CLASSES, aux_weight=0.5)
    losses = task.losses({"logits": logits, "aux": logits}, targets)
    torch.testing.assert_close(losses, torch.stack([expected, 0.5 * expected]))
    with pytest.raises(
        ValueError, match="logits of 12 x 12 for targets of 6 x 6: smaller ones are resized"
    ):
        resized_to_targets(upsampled, targets[:, :6, :6])
    train(of(Returns(stride=4), segmentation), options(tmp_path / "run"))
    assert rows(tmp_path / "run")[-1]["loss"] > 0


class Divisible(Returns):
    """Takes sides divisible by 8 alone, and keeps what it was given."""

    size_divisor = 8

    def forward(self, x):
        assert x.shape[-2] % 8 == 0 and x.shape[-1] % 8 == 0, x.shape
        if not self.training:
            self.given = x
        return super().forward(x)


def test_images_are_filled_up_to_what_a_network_takes():
    """Bottom and right with the mean colour.

    what comes out is cut: as if done by hand, and nothing where it fits.
    """
    task, model = Segmentation(CLASSES), Divisible(stride=4)
    task_module = TaskModule(model, task).eval()
    images, targets = torch.randn(2, 3, 12, 13), torch.zeros(2, 12, 13)
    by_hand = torch.zeros(2, 3, 16, 16)
    by_hand[:, :, :12, :13] = images
    logits = F.interpolate(
        model.conv(by_hand), size=(16, 16), mode="bilinear", align_corners=False
    )[..., :12, :13]
    torch.testing.assert_close(task_module(images, None), logits.softmax(1))
    assert torch.equal(model.given, by_hand)
    assert torch.equal(task_module(images, targets), logits.argmax(1))
    whole = torch.randn(2, 3, 8, 16)
    task_module(whole, None)
    assert model.given is whole
    with pytest.raises(ValueError, match="size_divisor of Divisible is 1.5; it is a whole number"):
        model.size_divisor = 1.5
        size_divisor(model)


class Odd(Maps):
    """Images whose sides nothing divides."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image[:, :11, : 5 + index % 4], target[:11, : 5 + index % 4]


def test_filling_up_is_reported_in_the_protocol(tmp_path):
    recipe = of(
        Divisible(stride=4),
        segmentation,
        train_data=Cropped8(16),
        val_data=Odd(13, augment=False),
        epochs=1,
    )
    train(recipe, options(tmp_path / "run"))
    assert rows(tmp_path / "run", "evaluate")[-1]["protocol"].endswith(
        "filled up to sides divisible by 8"
    )
    recipe.model.size_divisor = 1
    assert "filled" not in recipe.protocol
    recipe.model.size_divisor = 8
    found = evaluate(recipe, tmp_path / "run", workers=0, seed=0)
    assert found["mIoU"] == rows(tmp_path / "run", "evaluate")[-1]["mIoU"]


class Cropped8(Maps):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image[:, :8, :8], target[:8, :8]


def test_networks_of_segmentation_models_say_what_they_take():
    import segmentation_models_pytorch as smp

    with torch.device("meta"):
        assert size_divisor(smp.Segformer("resnet18", encoder_weights=None, classes=3)) == 32
        assert (
            size_divisor(
                nn.ModuleDict({"net": smp.FPN("resnet18", encoder_weights=None, classes=3)})
            )
            == 32
        )
        assert (
            size_divisor(
                smp.DeepLabV3Plus("resnet18", encoder_weights=None, encoder_output_stride=16)
            )
            == 16
        )
        assert size_divisor(get_model("resnet18")) == 1


def test_a_network_of_another_size_is_one_message(tmp_path):
    """Raised by a library: reported with the remedy; by the user's own network: as it is."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, depth=1, img_size=32)
    with pytest.raises(
        ValueError, match="VisionTransformer does not take images like these: .*height.*img_size"
    ):
        train(of(model), options(tmp_path / "run"))
    with pytest.raises(AssertionError):
        train(of(Divisible(), segmentation, train_data=Maps(16)), options(tmp_path / "own"))


def test_networks_of_a_fixed_size_are_built_for_the_images():
    """timm's and torchvision's vision transformers; for several sizes where they can.

    Else one message.
    """
    images = torch.zeros(1, 3, 112, 112)
    for name in ("timm:vit_tiny_patch16_224", "vit_b_32"):
        small = {"sizes": [96]} if name == "vit_b_32" else {"sizes": [96, 112]}
        model = classifier(name, 3, **small).eval()
        assert model(images[..., :96, :96]).shape == (1, 3)
        assert "sizes" not in small or len(small["sizes"]) == 1 or model(images).shape == (1, 3)
    assert fine_tuned("timm:vit_tiny_patch16_224", 3, False, [112])(images).shape == (1, 3)
    with pytest.raises(
        ValueError, match="cuts images into patches of 16 x 16, and would leave out .* sides of 100"
    ):
        fine_tuned("timm:vit_tiny_patch16_224", 3, False, [100])
    with pytest.raises(
        ValueError, match="vit_b_32 takes images of one size, divisible by 32, and not 96, 100"
    ):
        classifier("vit_b_32", 3, sizes=[96, 100])
    with pytest.raises(
        ValueError, match="timm:mixer_s32_224 is built for images of 224 x 224 and not for 224, 96"
    ):
        classifier("timm:mixer_s32_224", 3, sizes=[224, 96])


def test_swin_under_a_head_takes_images_of_any_size():
    """Filled up to its patches of 4; windows inside it are timm's affair."""
    torch.manual_seed(0)
    model = segmenter(
        "upernet", 5, "timm:swin_tiny_patch4_window7_224", False, aux=False, channels=8
    )
    assert size_divisor(model) == 4
    task_module = TaskModule(model, Segmentation(5)).eval()
    with torch.no_grad():
        assert task_module(torch.randn(1, 3, 61, 38), torch.zeros(1, 61, 38)).shape == (1, 61, 38)
