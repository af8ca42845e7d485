"""Networks of transformers by name, against the library's own."""

import json
import shutil
import sys

import pytest
import torch
from torch.nn import functional as F

from helpers.cases import at_night
from helpers.families import CLASSIFIERS
from helpers.hf_recipes import TINY, recipe, run, tiny
from helpers.logs import assert_bit_equal, assert_same_training
from helpers.processes import TESTS, torchrun
from helpers.processes import run as command
from helpers.toy_recipes import CLASSES
from trainkit import Options, train
from trainkit.commands.export import export
from trainkit.errors import UserError
from trainkit.models.hf_config import SEGFORMERS
from trainkit.models.hf_networks import SEGMENTATION, types_of
from trainkit.models.outputs import check_only_size, main_logits, run_padded, size_divisor
from trainkit.models.pretrained import without_pretrained
from trainkit.models.rebuild import network_from
from trainkit.models.recognition import classifier, fine_tuned, published_input
from trainkit.models.segmentation import segmenter
from trainkit.optim import depths, named_parts, param_groups
from trainkit.options import ExportOptions
from trainkit.settings.rebuildable import built_by
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.tasks.segmentation import Segmentation

transformers = pytest.importorskip("transformers")

OPTIONS = {"workers": 0, "log_every": 1, "report": False, "pictures": False}


def own(network, auto="AutoModelForSemanticSegmentation"):
    """The library's own network, of the same configuration and weights."""
    made = getattr(transformers, auto).from_config(network.config, dtype=torch.float32)
    made.load_state_dict(network.state_dict())
    return made


def images_and_masks(network, sides=None):
    generator = torch.Generator().manual_seed(1)
    side = -(-64 // size_divisor(network)) * size_divisor(network)
    height, width = sides or getattr(network, "image_size", (side, side))
    images = torch.randn(2, 3, height, width, generator=generator)
    masks = torch.randint(CLASSES, (2, height, width), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.3] = 255
    return images, masks


def assert_same_gradients(network, theirs):
    """To 1e-5 of the largest; what takes none has none in the library's either."""
    gradients = {name: each.grad for name, each in theirs.named_parameters()}
    largest = max(float(each.abs().max()) for each in gradients.values() if each is not None)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (gradients[name] is not None), name
        if parameter.requires_grad:
            difference = (parameter.grad - gradients[name]).abs().max()
            assert difference <= 1e-5 * largest, name


def test_every_type_of_the_library_is_here():
    assert set(types_of(SEGMENTATION)) == set(TINY)


@pytest.mark.parametrize("kind", at_night(*TINY, day=("segformer", "upernet", "dpt")))
def test_it_is_the_librarys_network(kind):
    """Of its class, with its names of weights, and the same logits and gradients of the loss."""
    network = tiny(kind)
    theirs = own(network)
    assert type(network) is type(theirs)
    images, masks = images_and_masks(network)
    with torch.no_grad():
        expected = theirs.eval()(images).logits
        torch.testing.assert_close(main_logits(network.eval()(images)), expected, rtol=0, atol=1e-6)
    task = Segmentation(CLASSES, aux_weight=network.aux_weight)
    network, theirs, images = network.double(), theirs.double(), images.double()
    torch.manual_seed(2)
    ours = (task.losses(network.train()(images), masks) / task.counts(masks)).sum()
    ours.backward()
    torch.manual_seed(2)
    loss = theirs.train()(images, labels=masks).loss
    loss.backward()
    torch.testing.assert_close(ours.double(), loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(network, theirs)


@pytest.mark.parametrize("kind", at_night(*TINY, day=("segformer", "data2vec-vision", "beit")))
def test_images_of_odd_sides(kind):
    """Padded where patches would leave something out; one size alone is said before."""
    network = tiny(kind).eval()
    images, _ = images_and_masks(network, (112, 77))
    if kind == "data2vec-vision":
        with pytest.raises(UserError, match="takes images of 32 x 32 alone, and crop is 96"):
            check_only_size(network, 96, None)
        check_only_size(network, 32, 32)
        return
    divisor = size_divisor(network)
    with torch.no_grad():
        found = main_logits(run_padded(network, images, divisor))
        padded = F.pad(images, (0, -77 % divisor, 0, -112 % divisor))
        theirs = network if kind == "dpt" else own(network).eval()  # its own takes squares alone
        expected = main_logits(theirs(padded))
    if padded.shape != images.shape:
        expected = F.interpolate(expected, padded.shape[-2:], mode="bilinear")[..., :112, :77]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_dpt_takes_images_that_are_no_squares():
    """The library takes 4 x 9 patches for 6 x 6; each column of equal pixels gives equal logits."""
    network = tiny("dpt").eval()
    assert size_divisor(network) == 32
    images, _ = images_and_masks(network, (64, 128))
    with torch.no_grad():
        assert main_logits(network(images)).shape == (2, CLASSES, 64, 128)
        square = images_and_masks(network)[0]
        torch.testing.assert_close(main_logits(network(square)), own(network).eval()(square).logits)


def test_parts_of_a_network():
    """Head, frozen backbone and layers, for learning rates."""
    network = tiny("segformer")
    assert network.head_names == ("decode_head",)
    groups = param_groups(network, lr=0.1, weight_decay=0.0, head_lr_mult=10.0)
    fast = {id(each) for group in groups if group["lr"] == 1.0 for each in group["params"]}
    assert fast == {id(each) for each in network.decode_head.parameters()}
    frozen = {id(each) for each in named_parts(network, ["backbone"])}
    assert frozen == {id(each) for each in network.segformer.parameters()}
    layers = depths(network)
    names = [f"segformer.encoder.block.{stage}.0.layer_norm_1.weight" for stage in range(4)]
    found = [layers[name] for name in names if name in layers]
    assert found == sorted(found) and set(layers.values()) == set(range(max(layers.values()) + 1))
    assert tiny("upernet").head_names == ("decode_head", "auxiliary_head")


@pytest.mark.parametrize("kind", at_night(*TINY, day=("segformer",)))
def test_a_training_resumes_bit_equal(kind, tmp_path):
    """Evaluated at odd sides, rebuilt from model.json, with EMA."""
    train(recipe(kind), Options(out=tmp_path / "one", **OPTIONS))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(list_checkpoints(tmp_path / "two" / "checkpoints")[-1])
    (tmp_path / "two" / "summary.json").unlink()
    train(recipe(kind), Options(out=tmp_path / "two", **OPTIONS))
    assert_bit_equal(tmp_path / "one", tmp_path / "two")
    described = json.loads(json.dumps({"network": built_by(recipe(kind).model)}))
    network = network_from(described)
    network.load_state_dict(recipe(kind).model.state_dict())
    images, _ = images_and_masks(network)
    with torch.no_grad():
        expected = main_logits(recipe(kind).model.eval()(images))
        assert torch.equal(main_logits(network.eval()(images)), expected)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["segformer", "upernet", "beit", "dpt"])
def test_processes_and_micro_batches_do_not_change_the_training(kind, tmp_path):
    run(kind, tmp_path / "one")
    run(kind, tmp_path / "micro", micro_batch=2)
    torchrun(2, TESTS / "helpers" / "hf_recipes.py", tmp_path / "two", kind)
    assert_same_training(tmp_path / "one", tmp_path / "micro")
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", TINY)
def test_onnx(kind, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from safetensors.torch import save_file

    built = recipe(kind)
    save_file(built.model.state_dict(), tmp_path / "w.safetensors")
    asked = ExportOptions(out=tmp_path / "m.onnx", format="onnx", images=1)
    export(built, tmp_path / "w.safetensors", asked)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (given,) = session.get_inputs()
    sides = tuple(each if isinstance(each, int) else 64 for each in given.shape[-2:])
    images = images_and_masks(built.model, sides)[0][:1]
    (found,) = session.run(None, {given.name: images.numpy()})
    with torch.no_grad():
        expected = main_logits(run_padded(built.model.eval(), images, size_divisor(built.model)))
    difference = (torch.from_numpy(found) - expected).abs().max()
    assert found.shape == expected.shape and difference <= 1e-4 * max(1.0, expected.abs().max())


def saved(folder, network, **preprocessor):
    network.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return f"hf:{folder}"


def test_a_folder(tmp_path, capsys):
    """With its weights, its head for as many classes or a new one, and its images' mean."""
    network = tiny("segformer")
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3], "do_normalize": True}
    name = saved(tmp_path / "net", network, **said)
    again = segmenter(name, CLASSES)
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert again.training and again.published_input["mean"] == pytest.approx((0.4, 0.5, 0.6))
    assert f"the published head for {CLASSES} classes is kept" in capsys.readouterr().out
    other = segmenter(name, 3)
    message = f"random at first, for 3 classes, published for {CLASSES} classes: decode_head.class"
    assert message in capsys.readouterr().out
    state = other.state_dict()
    assert state["decode_head.classifier.weight"].shape[0] == 3
    same = [key for key in state if not key.startswith("decode_head.classifier")]
    assert all(torch.equal(state[key], network.state_dict()[key]) for key in same)
    random = segmenter(name, 3, pretrained=False)
    key = "segformer.encoder.patch_embeddings.0.proj.weight"
    key = key if key in state else next(each for each in state if each.endswith("proj.weight"))
    assert not torch.equal(random.state_dict()[key], state[key])
    shutil.rmtree(tmp_path / "net")
    described = json.loads(json.dumps({"network": built_by(other)}))
    network_from(described).load_state_dict(state)  # and the folder is gone


def test_weights_of_half_precision_are_trained_in_float32(tmp_path):
    name = saved(tmp_path, tiny("segformer").half())
    for pretrained in (True, False):
        network = segmenter(name, CLASSES, pretrained=pretrained)
        assert {each.dtype for each in network.parameters()} == {torch.float32}


def test_images_in_the_order_bgr(tmp_path):
    """As those of MobileViT, which are not normalised either."""
    network = tiny("mobilevit").eval()
    name = saved(tmp_path, network, do_flip_channel_order=True, do_rescale=True)
    ours = segmenter(name, CLASSES).eval()
    assert ours.published_input == {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    images, _ = images_and_masks(network)
    with torch.no_grad():
        expected = main_logits(network(images.flip(1)))
        torch.testing.assert_close(main_logits(ours(images)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["segformer", "dpt"])
def test_images_of_other_channels(kind, tmp_path):
    network = tiny(kind, image_channels=5)
    assert main_logits(network(torch.randn(2, 5, 64, 64))).shape[1] == CLASSES
    name = saved(tmp_path, tiny(kind))
    adapted = segmenter(name, CLASSES, image_channels=1).eval()
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = main_logits(tiny(kind).eval()(images.expand(1, 3, 64, 64)))
        torch.testing.assert_close(main_logits(adapted(images)), expected, rtol=0, atol=1e-5)


def test_sizes_of_segformer():
    """Parameters in millions as the paper's table has them: encoder and head, on ADE20K."""
    published = {"b0": 3.8, "b1": 13.7, "b2": 27.5, "b3": 47.3, "b4": 64.1, "b5": 84.7}
    assert {f"segformer_{size}" for size in published} == set(SEGFORMERS)
    for size, millions in published.items():
        _, config = SEGFORMERS[f"segformer_{size}"]
        with torch.device("meta"):
            network = transformers.SegformerForSemanticSegmentation(
                transformers.SegformerConfig(**config, num_labels=150)
            )
        found = sum(each.numel() for each in network.parameters()) / 1e6
        assert found == pytest.approx(millions, abs=0.12), size


def test_without_the_auxiliary_head():
    network = tiny("upernet", aux=False)
    assert network.auxiliary_head is None and network.aux_weight == 0.0
    assert set(network(torch.randn(2, 3, 64, 64))) == {"logits"}


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("hf:segfromer", [], "no model 'hf:segfromer': .* did you mean hf:segformer"),
        ("hf:", [], "no model 'hf:'"),
        ("hf:vit", [], "is of transformers' type vit, which has no head for semantic segm"),
        ("hf:not/a/folder", [], "there is no folder not/a/folder"),
        ("hf:segformer", ["depth=3"], "has depth, which segformer does not take; did you mean dep"),
        ("hf:segformer", ["depths"], "has 'depths': give NAME=VALUE"),
        (
            "hf:segformer",
            ["depths=three"],
            "does not take this configuration of segf.*depths",
        ),
        ("hf:segformer", ["num_labels=3"], "has num_labels, which the data says"),
        ("hf:upernet", ["backbone_config.depth=3"], "has depth, which resnet does not take"),
        ("hf:upernet", ["backbone_config.model_type=resnett"], "no such type; did you mean resn"),
        (
            "hf:dpt",
            [*TINY["dpt"].split(), "patch_size=8"],
            "returns logits of 128 x 128 for images",
        ),
        ("unett", [], "no model 'unett'; did you mean unet"),
        (
            "small",
            [],
            "no model 'small': it is a backbone, so give --model lraspp --backbone small",
        ),
        ("resnet50", [], "it is a backbone, so give --model fcn --backbone resnet50"),
        ("unet", ["depth=3"], "model_args is depth=3, and unet takes none"),
    ],
)
def test_what_cannot_be_is_reported(name, arguments, match):
    with pytest.raises(UserError, match=match):
        segmenter(name, 3, "resnet18", pretrained=False, model_args=arguments)


def test_a_type_has_no_weights():
    with pytest.raises(UserError, match="hf:segformer is a type .* give --no-pretrained, or a"):
        segmenter("hf:segformer", 3)
    with without_pretrained():
        tiny("segformer")


def test_weights_that_do_not_fit_the_body_are_refused(tmp_path):
    name = saved(tmp_path, tiny("segformer"))
    with pytest.raises(UserError, match="do not fit its body: .* are of another size"):
        segmenter(name, CLASSES, model_args=["hidden_sizes=8,8,16,32"])
    with pytest.raises(UserError, match="do not fit its body: .* are missing"):
        segmenter(name, CLASSES, model_args=["depths=1,1,2,1"])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot get the weights .* --no-pretrained"):
        segmenter(name, CLASSES)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json of hf:.* cannot be read"):
        segmenter(name, CLASSES)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json: give a folder"):
        segmenter(name, CLASSES)


def test_code_in_a_configuration_is_not_taken(tmp_path):
    """Neither modules from elsewhere, nor kernels from the Hub for the attention."""
    name = saved(tmp_path, tiny("beit"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil--module.Config"}
    config["attn_implementation"] = config["_attn_implementation"] = "owner/kernels"
    (tmp_path / "config.json").write_text(json.dumps(config))
    for pretrained in (True, False):
        network = segmenter(name, CLASSES, pretrained=pretrained)
        assert network.config._attn_implementation in ("eager", "sdpa")
        assert not hasattr(network.config, "auto_map")
    described = {"network": built_by(network)}
    described["network"]["arguments"]["config"]["_attn_implementation"] = "owner/kernels"
    assert network_from(described).config._attn_implementation in ("eager", "sdpa")


@pytest.mark.nightly
def test_a_name_on_the_hub_offline_is_one_message(tmp_path):
    script = (
        "from trainkit.models.segmentation import segmenter\n"
        "from trainkit.models.recognition import published_input\n"
        "from trainkit.errors import UserError\n"
        "for name in ('hf:nobody/nothing', 'hf:segformer_b0'):\n"
        "    try: segmenter(name, 3)\n"
        "    except UserError as error: print(error)\n"
        "try: published_input('hf:nobody/nothing', 'bilinear')\n"
        "except UserError as error: print(error)\n"
    )
    done = command(sys.executable, "-c", script, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("cannot get ") for line in lines), done.stdout
    assert not done.stderr


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not
    with pytest.raises(UserError, match=r'hf:.* needs .*pip install "trainkit\[transformers\]"'):
        segmenter("hf:segformer", 3, pretrained=False)


@pytest.mark.parametrize("kind", at_night(*CLASSIFIERS, day=("vit", "convnext")))
def test_classifiers(kind, tmp_path):
    """Logits, loss and gradients of the library's own, from a type, a folder, and model.json."""
    arguments = CLASSIFIERS[kind].split()
    torch.manual_seed(0)
    network = classifier(f"hf:{kind}", 5, sizes=[64, 64], model_args=arguments)
    theirs = own(network, "AutoModelForImageClassification")
    images = torch.randn(3, 3, 64, 64)
    labels = torch.tensor([0, 4, 2])
    assert type(network) is type(theirs) and network.head_names == ("classifier",)
    ours = F.cross_entropy(main_logits(network.eval()(images)), labels)
    ours.backward()
    loss = theirs.eval()(images, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(ours, loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(network, theirs)
    name = saved(tmp_path, network)
    tuned = fine_tuned(name, 7, sizes=[64]).eval()
    assert tuned.head_names and main_logits(tuned(images)).shape == (3, 7)
    head = tuple(f"{each}." for each in tuned.head_names)
    state, before = tuned.state_dict(), network.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in state if not key.startswith(head))
    network_from({"network": json.loads(json.dumps(built_by(tuned)))}).load_state_dict(state)


def test_position_embeddings_of_another_size_are_interpolated(tmp_path):
    arguments = CLASSIFIERS["vit"].split()
    network = classifier("hf:vit", 5, sizes=[64], model_args=arguments).eval()
    name = saved(tmp_path, network)
    images = torch.randn(1, 3, 96, 96)
    tuned = fine_tuned(name, 5, sizes=[96]).eval()
    with torch.no_grad():
        theirs = own(network, "AutoModelForImageClassification").eval()
        expected = theirs(images, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(main_logits(tuned(images)), expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="cannot be used so"):
        fine_tuned(name, 5, sizes=[4])


def test_images_of_a_classifier(tmp_path):
    network = classifier("hf:convnext", 5, model_args=CLASSIFIERS["convnext"].split())
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "resample": 3}
    name = saved(tmp_path, network, **said, size={"shortest_edge": 224}, crop_pct=0.95)
    assert published_input(name, "bilinear") == {
        "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
        "crop_fraction": 0.95, "crop_mode": "center",
    }  # fmt: skip
    whole = {"height": 64, "width": 64}
    saved(tmp_path, network, **said, size=whole, do_rescale=True, rescale_factor=1 / 127.5)
    found = published_input(name, "bilinear", crop_mode="center")
    assert found["mean"] == (0.25,) * 3 and found["std"] == (0.25,) * 3
    assert (found["crop_fraction"], found["crop_mode"]) == (1.0, "center")
    cut = {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}
    saved(tmp_path, network, **said, **cut)
    assert published_input(name, "bilinear")["crop_fraction"] == 0.875
    imagenets = pytest.approx((0.485, 0.456, 0.406))
    assert published_input("hf:convnext", "bilinear")["mean"] == imagenets
    shutil.rmtree(tmp_path)
    everything = {**found, "interpolation": "bilinear"}
    assert published_input(name, "bicubic", **everything) == everything  # and nothing is read


def test_what_is_no_classifier_is_refused():
    for name, match in (
        ("hf:dpt", "type dpt, which has no head for image classification"),
        ("hf:imagegpt", "hf:imagegpt of transformers cannot be used so"),
        ("hf:convnexxt", "did you mean hf:convnext"),
    ):
        with pytest.raises(UserError, match=match):
            classifier(name, 3, sizes=[64])
    with pytest.raises(UserError, match="stochastic_depth is 0.1, and hf:vit is of transformers"):
        classifier("hf:vit", 3, stochastic_depth=0.1)
    with pytest.raises(UserError, match="model_args is depth=3, and resnet18 takes none"):
        classifier("resnet18", 3, model_args=["depth=3"])
