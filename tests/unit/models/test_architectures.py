"""Models that torchvision lacks.

Against formulas in float64, counts worked out by hand, and two steps of training.
"""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.logs import rows, weights
from helpers.toy_recipes import CLASSES, recognition, segmentation
from trainkit import Options, train
from trainkit.engine.activation_checkpointing import blocks
from trainkit.models.backbones import backbone
from trainkit.models.deepten import DeepTEN
from trainkit.models.encnet import ContextEncoding, EncNet
from trainkit.models.encoding import Encoding, encode
from trainkit.models.pspnet import PSPNet, PyramidPooling
from trainkit.models.segmentation import segmenter
from trainkit.models.small import SmallResNet
from trainkit.models.upernet import UPerNet
from trainkit.optim import param_groups
from trainkit.tasks.segmentation import Segmentation

WIDTHS = (4, 8, 8, 12, 16)
PYRAMID = {"strides": (2, 2, 2, 2), "dilations": (1, 1, 1, 1)}  # stride 32


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def residuals(x: np.ndarray, d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The paper's formula, term by term: (N, P, D), (K, D), (K,) -> (N, K, D)."""
    lacking = x[:, :, None] - d  # (N, P, K, D)
    scores = np.exp(-s * (lacking**2).sum(3))  # (N, P, K)
    return (scores[..., None] / scores.sum(2)[..., None, None] * lacking).sum(1)


# The encoding layer


def test_encoding_is_the_formula():
    x, d, s = 0.4 * numbers(3, 20, 6), 0.4 * numbers(5, 6, seed=1), numbers(5, seed=2).abs()
    expected = residuals(x.numpy(), d.numpy(), s.numpy())
    np.testing.assert_allclose(encode(x, d, s).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(
        encode(x.float(), d.float(), s.float()).numpy(), expected, rtol=1e-4, atol=1e-5
    )
    layer = Encoding(6, 5)
    with torch.no_grad():
        layer.codewords.copy_(d), layer.smoothing.copy_(s)
    image = x.float().transpose(1, 2).reshape(3, 6, 4, 5)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = layer(image.contiguous(memory_format=memory_format)).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_encoding_has_the_gradient_of_the_formula():
    inputs = (numbers(2, 5, 3), numbers(4, 3, seed=1), numbers(4, seed=2).abs())
    assert torch.autograd.gradcheck(encode, [each.requires_grad_() for each in inputs])


def test_encoding_of_features_far_from_zero():
    """Where float32 has few digits left for the distances the assignment still is right."""
    x, d, s = (
        10 + 0.1 * numbers(2, 9, 16),
        10 + 0.1 * numbers(3, 16, seed=1),
        torch.ones(3, dtype=torch.float64),
    )
    expected = residuals(x.numpy(), d.numpy(), s.numpy())
    np.testing.assert_allclose(
        encode(x.float(), d.float(), s.float()).numpy(), expected, rtol=0.02, atol=2e-3
    )


def test_encoding_keeps_nothing_of_size_positions_times_codewords_times_channels():
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes() // 4)
        return tensor

    layer = Encoding(16, 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.rand(2, 16, 10, 10, requires_grad=True))
    assert largest == 2 * 100 * 16


def test_encoding_does_not_lose_digits_to_autocast():
    layer, x = Encoding(16, 8), numbers(2, 16, 7, 7, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, layer(x.float()))


def test_encoding_starts_near_zero_and_smooth():
    layer = Encoding(64, 32)
    assert layer.codewords.abs().max() <= (32 * 64) ** -0.5 < 1.1 * layer.codewords.abs().max()
    assert layer.smoothing.min() >= 0 and layer.smoothing.max() <= 1 and layer.smoothing.std() > 0.1


# The heads


def test_context_weights_channels_by_the_formula():
    """In float64, with batch norms as they begin: x (1 + sigmoid(W mean_k relu(e_k) + b))."""
    context, x = ContextEncoding(6, 5).double().eval(), numbers(2, 6, 3, 4).relu()
    norm = 1 / np.sqrt(1 + 1e-5)
    weight, bias, mix, d, s = (
        each.detach().numpy()
        for each in (
            context.attention.weight, context.attention.bias, context.project[0].weight[:, :, 0, 0],
            context.encoding.codewords, context.encoding.smoothing,
        )
    )  # fmt: skip
    features = x.flatten(2).transpose(1, 2).numpy()  # (N, P, C)
    code = np.maximum(norm * residuals(np.maximum(norm * features @ mix.T, 0), d, s), 0).mean(1)
    gamma = 1 / (1 + np.exp(-(code @ weight.T + bias)))
    found, found_code = context(x)
    np.testing.assert_allclose(found_code.detach().numpy(), code, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(
        found.detach().numpy(), x.numpy() * (1 + gamma[:, :, None, None]), rtol=1e-8
    )


def test_pyramid_pooling_by_hand():
    """Narrowing that copies: means of the whole, of quarters and of 3x3 parts, beside the map."""
    pool, x = PyramidPooling(2, 2, (1, 2, 3)).eval(), torch.rand(1, 2, 6, 6)
    with torch.no_grad():
        for narrow in pool.narrow:
            narrow[0].weight.copy_(torch.eye(2)[:, :, None, None])
    found = pool(x)
    assert pool.out_channels == 8 and found.shape == (1, 8, 6, 6) and torch.equal(found[:, :2], x)
    torch.testing.assert_close(
        found[:, 2:4], x.mean((2, 3), keepdim=True).expand(1, 2, 6, 6), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(found[0, 4:6, 0, 5], x[0, :, :3, 3:].mean((1, 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[0, 6:8, 5, 0], x[0, :, 4:, :2].mean((1, 2)), rtol=1e-4, atol=0)


def test_upernet_reads_every_map_and_works_at_the_finest():
    head = UPerNet(SmallResNet(WIDTHS, **PYRAMID), CLASSES, channels=8).head.eval()
    maps = {
        f"c{i}": numbers(1, WIDTHS[i], 32 >> i, 48 >> i, dtype=torch.float32) for i in (1, 2, 3, 4)
    }
    before = head(maps)["out"]
    assert before.shape == (1, CLASSES, 16, 24)
    for name in maps:
        assert not torch.equal(head({**maps, name: maps[name] + 1})["out"], before)


def test_lateral_connections_read_c2_and_c3_at_any_stride():
    for form in ({}, PYRAMID):
        model = EncNet(SmallResNet(WIDTHS, **form), CLASSES, channels=8, lateral=True).eval()
        maps = model.backbone(torch.rand(1, 3, 70, 50))
        before = model.head(maps)["out"]
        assert before.shape[-2:] == maps["c2"].shape[-2:]
        for name in ("c2", "c3", "c4"):
            assert not torch.equal(model.head({**maps, name: maps[name] + 1})["out"], before)
    plain = EncNet(SmallResNet(WIDTHS), CLASSES, channels=8)
    assert plain.head.lateral is None and plain.head.fuse is None


BUILDS = {
    "encnet": lambda **kw: EncNet(SmallResNet(WIDTHS), CLASSES, channels=8, num_codewords=4, **kw),
    "pspnet": lambda **kw: PSPNet(SmallResNet(WIDTHS), CLASSES, channels=8, **kw),
    "upernet": lambda **kw: UPerNet(SmallResNet(WIDTHS, **PYRAMID), CLASSES, channels=8, **kw),
}


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("training", [True, False])
def test_logits_have_the_size_of_the_image(name, training):
    model = BUILDS[name]().train(training)
    for height, width in ((33, 47), (64, 65)):
        outputs = model(torch.rand(2, 3, height, width))
        assert outputs["out"].shape == outputs["aux"].shape == (2, CLASSES, height, width)
        assert ("se" in outputs) == (name == "encnet")
        assert name != "encnet" or outputs["se"].shape == (2, CLASSES)
    assert list(BUILDS[name](aux=False).train(training)(torch.rand(2, 3, 32, 32)))[-1] != "aux"


@pytest.mark.parametrize(
    "build",
    [BUILDS["upernet"], lambda: DeepTEN(SmallResNet(WIDTHS), CLASSES, 8, 4)],
    ids=["upernet", "deepten"],
)
def test_exported_with_batch_and_size_left_open(build):
    """Nothing in a pyramid or an encoding is bound to the sizes that it was traced with."""
    model, auto = build().eval(), torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    exported = torch.export.export(
        model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=shapes
    ).module()
    images = torch.rand(3, 3, 70, 131)
    torch.testing.assert_close(exported(images), model(images))


def test_heads_left_out():
    assert list(BUILDS["encnet"](aux=False, se=False).eval()(torch.rand(1, 3, 32, 32))) == ["out"]


def test_deepten_of_any_size_and_order():
    """Logits depend on the features as a set.

    Not on their order, nor on how often the whole of it is repeated.
    """
    model = DeepTEN(SmallResNet(WIDTHS), CLASSES, 8, 4)
    assert model.eval()(torch.rand(3, 3, 45, 61)).shape == (3, CLASSES)
    maps = {"c4": torch.rand(1, 16, 6, 5)}
    model.backbone = Given(maps, model.backbone.channels)
    before = model(torch.zeros(1))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    maps["c4"] = maps["c4"].flatten(2)[:, :, order].reshape(1, 16, 3, 10).repeat(1, 1, 2, 1)
    torch.testing.assert_close(model(torch.zeros(1)), before)


class Given(nn.Module):
    """A backbone whose maps are given."""

    def __init__(self, maps: dict, channels: tuple):
        super().__init__()
        self.maps, self.channels = maps, channels

    def forward(self, x):
        return self.maps


# Sizes of the published forms. C = 150 classes

RESNET50 = 25_557_032 - 2048 * 1000 - 1000  # torchvision's number without its classifier
AUX = 1024 * 256 * 9 + 2 * 256 + 256 * 150 + 150
PPM = 4 * (2048 * 512 + 2 * 512) + (2048 + 4 * 512) * 512 * 9 + 2 * 512
OUT = 512 * 150 + 150
ENC = (
    2048 * 512 * 9
    + 2 * 512
    + 512 * 512
    + 2 * 512
    + 32 * 512
    + 32
    + 2 * 32
    + 512 * 512
    + 512
    + 2 * OUT
)
UPER = (
    PPM
    + (256 + 512 + 1024) * 512
    + 3 * 2 * 512
    + 3 * (512 * 512 * 9 + 2 * 512)
    + 2048 * 512 * 9
    + 2 * 512
    + OUT
)
TEN = 2048 * 128 + 2 * 128 + 32 * 129 + 32 * 128 * 23 + 23  # of MINC's 23 classes
LATERAL = (512 + 1024) * 512 + 2 * 2 * 512 + 3 * 512 * 512 * 9 + 2 * 512


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: segmenter("encnet", 150, pretrained=False), RESNET50 + ENC + AUX),
        (
            lambda: segmenter("encnet", 150, pretrained=False, aux=False, se=False),
            RESNET50 + ENC - OUT,
        ),
        (
            lambda: segmenter("encnet", 150, pretrained=False, lateral=True),
            RESNET50 + ENC + AUX + LATERAL,
        ),
        (lambda: segmenter("pspnet", 150, pretrained=False), RESNET50 + PPM + OUT + AUX),
        (lambda: segmenter("upernet", 150, pretrained=False), RESNET50 + UPER + AUX),
        (lambda: DeepTEN(backbone("resnet50", False, 32), 23), RESNET50 + TEN),
    ],
    ids=["encnet", "encnet-bare", "encnet-lateral", "pspnet", "upernet", "deepten"],
)
def test_number_of_parameters(build, expected):
    with torch.device("meta"):
        model = build()
    assert size(model) == expected
    assert size(model.backbone) == RESNET50
    assert len(list(blocks(model.backbone))) == 16  # activation checkpointing finds the bottlenecks


# Training


def moved(before: dict, after: dict, prefix: str) -> float:
    """Share of the weights below `prefix` that a training has changed."""
    names = [name for name in after if name.startswith(prefix) and after[name].is_floating_point()]
    assert names
    return sum(not torch.equal(before[name], after[name]) for name in names) / len(names)


@pytest.mark.parametrize("name", BUILDS)
def test_two_steps_of_segmentation(tmp_path, name):
    """Every term is in the log and every head learns."""
    torch.manual_seed(0)
    model, is_enc = BUILDS[name](), name == "encnet"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = param_groups(model, 0.05, 1e-4, head_lr_mult=10.0)
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for part in (model.head, model.aux_head) for p in part.parameters()
    }
    recipe = segmentation(
        num_images=16, model=model,
        task=Segmentation(CLASSES, aux_weight=0.2, se_weight=0.2 if is_enc else 0.0),
        optimizer=torch.optim.SGD(groups, lr=0.05), epochs=1,
    )  # fmt: skip
    train(recipe, Options(out=tmp_path / "run", workers=0, log_every=1))
    steps = rows(tmp_path / "run")
    assert len(steps) == 2
    terms = ["cross_entropy", "aux", "se"][: 2 + is_enc]
    for row in steps:
        assert row["loss"] == pytest.approx(sum(row[f"loss_{term}"] for term in terms), rel=1e-5)
        assert all(0 < row[f"loss_{term}"] < 10 for term in terms)
    assert "mIoU" in rows(tmp_path / "run", "evaluate")[-1]
    after = weights(tmp_path / "run")
    assert all(
        moved(before, after, prefix) == 1.0 for prefix in ("backbone.", "head.", "aux_head.")
    )


def test_two_steps_of_deepten(tmp_path):
    torch.manual_seed(0)
    model = DeepTEN(SmallResNet(WIDTHS), CLASSES, 8, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-4, head_lr_mult=10.0), lr=0.1)
    train(
        recognition(num_images=16, model=model, optimizer=optimizer, epochs=1),
        Options(out=tmp_path / "run", workers=0, log_every=1),
    )
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    after = weights(tmp_path / "run")
    assert all(
        moved(before, after, prefix) == 1.0
        for prefix in ("backbone.", "narrow.", "encoding.", "classify.")
    )
