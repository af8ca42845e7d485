"""timm's backbones that take images of one size or of certain sides, chosen blocks, drop path."""

import importlib
import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from helpers.processes import TESTS
from helpers.toy_recipes import segmentation
from trainkit import evaluate
from trainkit.commands.trained import read_trained
from trainkit.errors import UserError
from trainkit.models.outputs import check_only_size, size_divisor
from trainkit.models.rebuild import network_from
from trainkit.models.recognition import classifier, fine_tuned
from trainkit.models.segmentation import segmenter
from trainkit.models.timm_backbones import timm_pyramid
from trainkit.models.vision_transformers import vision_transformer
from trainkit.optim import param_groups
from trainkit.settings.rebuildable import built_by
from trainkit.storage.model_json import model_json, require_same_build

timm = pytest.importorskip("timm")

TINY = {"depth": 4, "embed_dim": 24, "num_heads": 3}
ONE_SIZE = [
    "beit_base_patch16_224", "beitv2_base_patch16_224", "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224", "cait_xxs24_224",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(searchsorted|non-tuple)")  # as timm fits weights
@pytest.mark.parametrize("name", ONE_SIZE)
def test_networks_of_one_size_are_built_for_the_crop(name):
    """As timm's own, built for it, with the weights as timm fits published ones to it."""
    torch.manual_seed(0)
    ours = vision_transformer(f"timm:{name}", False, False, image_size=96, settings=TINY).eval()
    torch.manual_seed(0)
    native = timm.create_model(name, pretrained=False, **TINY)
    reference = timm.create_model(name, pretrained=False, img_size=96, **TINY).eval()
    weights = native.state_dict()
    module = importlib.import_module(type(native).__module__)
    if name.startswith("cait"):  # timm does not: 14 x 14 places, bicubic with antialiasing
        grid = weights["pos_embed"].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
        weights["pos_embed"] = resized.flatten(2).transpose(1, 2)
    elif hasattr(module, "checkpoint_filter_fn"):
        weights = module.checkpoint_filter_fn(weights, reference)
    reference.load_state_dict(weights)
    assert (ours.image_size, ours.out_indices) == ((96, 96), [0, 1, 2, 3])
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = reference.forward_intermediates(images, indices=4, intermediates_only=True)
        found = list(ours(images).values())
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_size_is_published_where_none_is_given():
    body = vision_transformer("timm:cait_xxs24_224", False, True, settings=TINY)
    assert body.image_size == (224, 224) and body.patch_size == 16


def test_four_blocks_under_a_linear_head():
    """Those of timm, normalised and concatenated in their order, before batch norm and classes."""
    torch.manual_seed(0)
    network = segmenter(
        "linear", 5, "timm:test_vit", pretrained=False, out_indices=(-4, -3, -2, -1)
    ).eval()
    reference = timm.create_model("test_vit", pretrained=False, dynamic_img_size=True).eval()
    reference.load_state_dict(network.backbone.net.state_dict(), strict=False)
    depth, images = len(reference.blocks), torch.randn(2, 3, 64, 48)
    assert network.backbone.out_indices == list(range(depth - 4, depth))
    with torch.no_grad():
        maps = torch.cat(
            reference.forward_intermediates(images, indices=4, norm=True, intermediates_only=True),
            1,
        )
        maps = maps / (1 + 1e-5) ** 0.5  # batch norm, fresh
        weight, bias = network.head.classify.weight[:, :, 0, 0], network.head.classify.bias
        logits = torch.einsum("kc,nchw->nkhw", weight, maps) + bias[:, None, None]
        expected = F.interpolate(logits, (64, 48), mode="bilinear", align_corners=False)
        found = network(images)["out"]
    assert torch.allclose(found, expected, atol=1e-6)
    again = network_from({"network": built_by(network)}).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images)["out"], found)


def test_chosen_blocks_under_upernet():
    network = segmenter("upernet", 3, "timm:test_vit", False, channels=8, out_indices=(0, 1, 3, 4))
    assert network.backbone.out_indices == [0, 1, 3, 4] and len(network.backbone.net.blocks) == 5


@pytest.mark.nightly
def test_chosen_blocks_under_dpt():
    """They are SMP's."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = segmenter("dpt", 3, "tu-test_vit", False, out_indices=(1, 2, -3, -1)).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = network(images)
        for blocks, equal in (([1, 2, 3, 5], True), ([0, 2, 3, 5], False)):
            reference = smp.DPT(
                "tu-test_vit",
                encoder_weights=None,
                classes=3,
                encoder_output_indices=blocks,
                dynamic_img_size=True,
            ).eval()
            reference.load_state_dict(network.state_dict())
            assert torch.equal(found, reference(images)) is equal


SWIN = {"depths": (2, 2, 2, 2), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_has_the_windows_of_one_that_is_built_for_the_images(name):
    """Of 7 or 8 patches, and shifted in the last stage too, unlike at the size of publication."""
    torch.manual_seed(0)
    body = timm_pyramid(f"timm:{name}", False, 32, 96, SWIN).eval()
    assert body.image_size is None
    side = 8 * 4 * (9 if "v2" in name else 8)  # a map larger than a window in the last stage
    window = {"window_size": 8} if "v2" in name else {}
    reference = timm.create_model(
        name, pretrained=False, features_only=True, img_size=side, **SWIN, **window
    ).eval()
    reference.load_state_dict(body.net.state_dict())
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = [each.permute(0, 3, 1, 2) for each in reference(images)]
        found = [body(images)[f"c{number}"] for number in (1, 2, 3, 4)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "hrnet_w18_small",
        *(pytest.param(each, marks=pytest.mark.nightly) for each in ("dla34", "tresnet_m")),
    ],
)
def test_odd_sides_are_padded_for_a_network_that_takes_none(name):
    torch.manual_seed(0)
    network = segmenter("upernet", 3, f"timm:{name}", pretrained=False, channels=8).eval()
    assert network.training is False and size_divisor(network) == 32
    images = torch.randn(1, 3, 67, 93)
    with torch.no_grad():
        found = network(images)["out"]
        whole = network(F.pad(images, (0, 3, 0, 29)))["out"]
    assert found.shape == (1, 3, 67, 93) and torch.equal(found, whole[..., :67, :93])


@pytest.mark.parametrize(
    "name",
    [
        "test_maxvit",
        pytest.param("efficientformerv2_s0", marks=pytest.mark.nightly),
        pytest.param("maxvit_rmlp_pico_rw_256", marks=pytest.mark.nightly),
        pytest.param("gcvit_xxtiny", marks=pytest.mark.nightly),
        pytest.param("coat_lite_tiny", marks=pytest.mark.nightly),
    ],
)
def test_a_pyramid_of_one_size_is_built_for_the_crop(name):
    torch.manual_seed(0)
    network = segmenter("upernet", 3, f"timm:{name}", False, channels=8, image_size=96).eval()
    reference = timm.create_model(name, pretrained=False, features_only=True, img_size=96).eval()
    reference.load_state_dict(network.backbone.net.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        found = list(network.backbone(images).values())[:4]
        for ours, theirs in zip(found, reference(images)[-4:], strict=False):
            assert torch.equal(ours, theirs)
    assert network.image_size == (96, 96)
    check_only_size(network, 96, 96)
    for crop, window, said in ((96, None, "whole images"), (64, 96, "windows of 96")):
        with pytest.raises(
            UserError, match=f"96 x 96 alone.*{said}: give --crop 96 --eval-win|and"
        ):
            check_only_size(network, crop, window)
    wide = "--crop 96 and --eval-window 96 64 and leave out "
    for crop, window, flags in (
        ((96, 192), (96, 192), "--crop-width and --eval-window-width"),
        ((96, 192), 96, "--crop-width"),
        (96, (96, 192), "--eval-window-width"),
        (64, 64, None),
    ):
        with pytest.raises(UserError, match="96 x 96 alone") as error:
            check_only_size(network, crop, window)
        said = str(error.value)
        assert said.endswith(f"{wide}{flags}") if flags else "leave out" not in said
    again = network_from({"network": built_by(network)})
    again.load_state_dict(network.state_dict())
    assert again.image_size == (96, 96)


def test_drop_path_is_timms():
    network = segmenter("upernet", 3, "timm:convnext_atto", False, stochastic_depth=0.4)
    rates = [each.drop_prob for each in network.modules() if type(each).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.4) and rates == sorted(rates)
    network = segmenter("linear", 3, "timm:test_vit", False, stochastic_depth=0.2)
    rates = [each.drop_prob for each in network.modules() if type(each).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.2)


LINEAR = ("linear", "timm:test_vit")


@pytest.mark.parametrize(
    ("model", "backbone", "asked", "match"),
    [
        (*LINEAR, {"out_indices": (3, 2)}, "out_indices is 3 2, .* give some of 0 to 5 in asc"),
        (*LINEAR, {"out_indices": (0, 6)}, "out_indices is 0 6, and backbone timm:test_vit has 6"),
        (*LINEAR, {"out_indices": (-7,)}, "out_indices is -7, "),
        (*LINEAR, {"out_indices": ()}, "out_indices is empty"),
        ("upernet", "timm:test_vit", {"out_indices": (4, 5)}, "upernet takes the maps of four"),
        ("fcn", "small", {"out_indices": (1,)}, "fcn takes none: they are of linear, upernet"),
        ("linear", "small", {"out_indices": (1,)}, "is no plain vision transformer of timm"),
        ("upernet", "small", {"stochastic_depth": 0.1}, "backbone small has none"),
        ("lraspp", "mobilenet_v3_large", {"stochastic_depth": 0.1}, "mobilenet_v3_large has none"),
        ("upernet", "timm:vgg11", {"stochastic_depth": 0.1}, "timm:vgg11 has none in timm"),
        ("upernet", "timm:test_vit", {"stochastic_depth": 1.0}, "must be in .0, 1."),
        ("unet", "resnet18", {"stochastic_depth": 0.1}, "unet takes none here: leave it out"),
        ("hf:segformer", "small", {"stochastic_depth": 0.1}, "--model-args drop_path_rate=0.1"),
        ("linear", "timm:cait_xxs24_224", {"image_size": 100}, "crop is 100: give a multiple"),
        ("upernet", "timm:pit_ti_224", {}, "wanted are four, .*: take another, such as timm:conv"),
        pytest.param(
            "dpt", "tu-vit_small_patch14_dinov2", {}, "patches are of 14 pixels, .*trainkit's dpt",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "upernet", "timm:efficientformer_l1", {"image_size": 96},
            "takes no images of 96 x 96 in timm .*: give --crop 224", marks=pytest.mark.nightly,
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, backbone, asked, match):
    with pytest.raises(UserError, match=match):
        segmenter(model, 3, backbone, pretrained=False, channels=8, **asked)


def test_encoders_without_a_classifier_are_refused():
    with torch.device("meta"):  # they are large
        for build in (lambda name: fine_tuned(name, 5, False), lambda name: classifier(name, 5)):
            with pytest.raises(UserError, match="without a classifier in timm: take timm:qwen3_vi"):
                build("timm:qwen3_vit_88m_enc")


@pytest.mark.nightly
def test_deepseeks_encoder_is_a_backbone():
    with torch.device("meta"):
        with pytest.raises(UserError, match="a classifier around an encoder in timm: take .*_enc"):
            segmenter("linear", 3, "timm:deepseek_vit_412m", pretrained=False)
        network = segmenter("linear", 3, "timm:deepseek_vit_412m_enc", pretrained=False).eval()
        assert network(torch.zeros(1, 3, 33, 45))["out"].shape == (1, 3, 33, 45)


def test_a_swin_without_an_image_size_is_as_it_was_published():
    """As the model.json of earlier versions rebuilds it: the last stage shifts no windows."""
    torch.manual_seed(0)
    name = "swin_tiny_patch4_window7_224"
    earlier = timm_pyramid(f"timm:{name}", False, 32, None, SWIN).eval()
    reference = timm.create_model(
        name, pretrained=False, features_only=True, dynamic_img_size=True, **SWIN
    ).eval()
    reference.load_state_dict(earlier.net.state_dict())
    now = timm_pyramid(f"timm:{name}", False, 32, 256, SWIN).eval()
    now.load_state_dict(earlier.state_dict())
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = reference(images)[-1].permute(0, 3, 1, 2)
        assert torch.equal(earlier(images)["c4"], expected)
        assert not torch.allclose(now(images)["c4"], expected)


def test_a_run_whose_swin_shifted_other_windows_is_not_resumed(tmp_path):
    """It is rebuilt as it was where nothing is trained, and one of today is resumed."""
    torch.manual_seed(0)
    build = partial(segmenter, "linear", 7, "timm:swin_tiny_patch4_window7_224", False)
    network = build(image_size=32)
    recipe = segmentation(model=network, optimizer=torch.optim.SGD(network.parameters(), 0.1))
    content = model_json(recipe)

    def written():
        (tmp_path / "model.json").write_text(json.dumps(content))

    written()
    require_same_build(network, tmp_path)
    del content["network"]["arguments"]["image_size"]
    written()
    with pytest.raises(UserError, match="in its Linear windows are shifted in all stages now, and"):
        require_same_build(network, tmp_path)
    require_same_build(network_from(content), tmp_path)
    content["network"]["arguments"]["image_size"] = None  # as recipes between gave it
    written()
    with pytest.raises(UserError, match="cannot be resumed: an earlier trainkit wrote it"):
        require_same_build(network, tmp_path)
    (tmp_path / "model.json").unlink()  # as of a version before
    with pytest.raises(UserError, match="cannot be resumed: an earlier trainkit wrote it"):
        require_same_build(network, tmp_path)
    require_same_build(segmenter("linear", 7, "timm:resnet10t", False, image_size=32), tmp_path)


SWIN_RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers.toy_recipes import segmentation
from trainkit.models.segmentation import segmenter
from trainkit.recipe import Recipe


def recipe(crop: int = 32) -> Recipe:
    network = segmenter("linear", 7, "timm:swin_tiny_patch4_window7_224", False, image_size=crop)
    return segmentation(model=network, optimizer=torch.optim.SGD(network.parameters(), 0.1))
"""


@pytest.mark.parametrize(
    ("given", "recorded"),
    [([], {}), pytest.param(["--partial"], {"image_size": None}, marks=pytest.mark.nightly)],
)
def test_evaluate_builds_an_earlier_swin_as_it_was(given, recorded, tmp_path):
    """By a recipe of today, which says the size of its images."""
    torch.manual_seed(0)
    (tmp_path / "recipe.py").write_text(SWIN_RECIPE.format(tests=str(TESTS)))
    earlier = segmenter("linear", 7, "timm:swin_tiny_patch4_window7_224", False).eval()
    file = tmp_path / "model.safetensors"
    save_file(earlier.state_dict(), file)
    words = ["--weights", str(file), *given]
    trained, _ = read_trained("evaluate", str(tmp_path / "recipe.py"), words)
    now = trained.build().model  # there is no model.json, as beside weights from elsewhere
    assert built_by(now)["arguments"]["image_size"] == 32
    optimizer = torch.optim.SGD(earlier.parameters(), 0.1)
    content = model_json(segmentation(model=earlier, optimizer=optimizer))
    images = torch.randn(1, 3, 32, 32)
    del content["network"]["arguments"]["image_size"]
    content["network"]["arguments"] |= recorded
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be loaded: an earlier trainkit.*in place"):
        evaluate(segmentation(model=now, optimizer=optimizer), weights=file, workers=0)
    then = trained.build().model.eval()
    assert built_by(then)["arguments"]["image_size"] is None
    then.load_state_dict(earlier.state_dict())
    now.eval().load_state_dict(earlier.state_dict())
    with torch.no_grad():
        assert torch.equal(then(images)["out"], earlier(images)["out"])
        assert not torch.equal(now(images)["out"], earlier(images)["out"])
    content["network"]["arguments"]["image_size"] = 224
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert built_by(trained.build().model)["arguments"]["image_size"] == 32


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_maps_are_normed_under_upernet(name):
    """Over their channels, by torch's own formula; norms have no weight decay where vectors do."""
    torch.manual_seed(0)
    build = partial(segmenter, "upernet", 3, f"timm:{name}", False, channels=8, image_size=64)
    plain, normed = build().eval(), build(map_norms=True).eval()
    assert normed.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        f"backbone.norms.{number}.{last}" for number in range(4) for last in ("weight", "bias")
    ]
    for norm in normed.backbone.norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before, after = plain.backbone(images), normed.backbone(images)
        for number, norm in enumerate(normed.backbone.norms, 1):
            each, found = before[f"c{number}"], after[f"c{number}"]
            scaled = (each - each.mean(1, True)) / (
                each.var(1, correction=0, keepdim=True) + 1e-5
            ).sqrt()
            expected = scaled * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    groups = param_groups(normed, 0.1, 0.05, decay_vectors=False, layer_decay=0.9)
    still = {id(each) for group in groups if not group["weight_decay"] for each in group["params"]}
    assert {id(each) for each in normed.backbone.norms.parameters()} <= still
    assert network_from({"network": built_by(normed)}).backbone.norms is not None


def test_what_has_no_maps_to_norm_is_refused():
    with pytest.raises(UserError, match="backbone small is no pyramid of timm's, .*--no-map-norms"):
        segmenter("upernet", 3, "small", False, channels=8, map_norms=True)
    with pytest.raises(UserError, match="map_norms is True, and fcn has none"):
        segmenter("fcn", 3, "small", False, map_norms=True)
