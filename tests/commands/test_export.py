"""Exported files, loaded and run outside trainkit."""

import json
import re
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from helpers.predictions import (
    RECIPE,
    Hidden,
    filled_by_hand,
    odd_sized,
    weights_of,
    with_classes,
    with_masks,
)
from helpers.toy_recipes import CLASSES, Net, recognition
from trainkit.cli import main
from trainkit.commands.export import _images, export
from trainkit.commands.export_formats import FORMATS, Logits
from trainkit.data.image_io import read_image
from trainkit.data.transforms.recognition import eval_transform as crop
from trainkit.errors import CommandFailed
from trainkit.models.recognition import fine_tuned
from trainkit.options import ExportOptions


def asked(out, kind, **more):
    return ExportOptions(out=out, format=kind, **more)


def batch(size=(16, 16), number=3):
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(0))


def test_safetensors_and_what_it_says_about_itself(tmp_path, capsys):
    recipe = with_classes(tmp_path)
    export(
        recipe,
        weights_of(recipe, tmp_path),
        asked(tmp_path / "new" / "m.safetensors", "safetensors"),
    )
    with safe_open(tmp_path / "new" / "m.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["trainkit"])
    assert set(state) == set(recipe.model.state_dict())
    assert all(torch.equal(value, recipe.model.state_dict()[name]) for name, value in state.items())
    assert about["classes"][2] == "kind c" and about["checkpoint"] == "w.pth"
    assert about["input"] == {
        "name": "images", "layout": "NCHW", "dtype": "float32", "colours": "RGB",
        "shape": ["batch", 3, "height", "width"],
    }  # fmt: skip
    message = about["preprocessing"]
    assert message["size"] == [16, 16] and "CenterCrop(size=(16, 16))" in message["transform"]
    # What the file says about reading an image is what the model is evaluated on.
    image = crop(16)(read_image(recipe.val_data.files[0])).double()
    mean, std = (
        torch.tensor(message[name], dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std")
    )
    torch.testing.assert_close(
        _images(recipe, 1)[0][0].double(),
        (image * message["scale"] - mean) / std,
        atol=1e-6,
        rtol=0,
    )
    printed = capsys.readouterr().out
    assert "largest difference from the model on 4 images: 0" in printed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_program_of_free_batch_and_size(tmp_path):
    recipe = with_masks(tmp_path)
    export(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "m.pt2", "torch-export"))
    extra = {"trainkit": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    about = json.loads(extra["trainkit"])
    assert (
        about["input"]["shape"] == ["batch", 3, "height", "width"]
        and about["output"]["layout"] == "NCHW"
    )
    for images in (batch(), batch((20, 31), 1), batch((9, 40), 5)):
        with torch.no_grad():
            torch.testing.assert_close(program(images), recipe.model(images), atol=1e-5, rtol=0)


def test_program_of_a_network_that_takes_filled_images_alone(tmp_path, capsys):
    """Of odd-sized images.

    The file gives what the model does, filled up by its user as its metadata say.
    """
    recipe = odd_sized(tmp_path)
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    export(recipe, tmp_path / "w.pth", asked(tmp_path / "m.pt2", "torch-export"))
    extra = {"trainkit": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    message = json.loads(extra["trainkit"])["preprocessing"]
    assert (
        message["fill"]
        == "0 after normalisation, at the bottom and on the right, to sides divisible by 32; what"
        " comes out is resized to that and cut to the image"
    )
    assert message["size"] == [112, 77]
    image = _images(recipe, 1)[0]
    assert image.shape == (1, 3, 112, 77)
    filled = F.pad(image, (0, 96 - 77, 0, 128 - 112))
    with torch.no_grad():
        scores = F.interpolate(program(filled), (128, 96), mode="bilinear", align_corners=False)[
            ..., :112, :77
        ]
    torch.testing.assert_close(
        scores, filled_by_hand(recipe, tmp_path / "images" / "0.png"), atol=1e-3, rtol=1e-4
    )


class Fixed(nn.Module):
    """Takes images of 16x16 alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, CLASSES)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("kind", ["safetensors", "torch-export"])
def test_size_is_fixed_where_the_model_fixes_it(tmp_path, kind, capsys):
    recipe = with_classes(tmp_path, model=Fixed())
    export(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "m", kind, images=2))
    assert (
        "input ['batch', 3, 16, 16]; largest difference from the model on 2 images: 0"
        in capsys.readouterr().out
    )
    if kind == "torch-export":
        program = torch.export.load(tmp_path / "m").module()
        torch.testing.assert_close(program(batch()), recipe.model(batch()))


class Noisy(Net):
    """Never gives the same twice: by up to 0.01."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs + 0.01 * torch.rand_like(outputs)


@pytest.mark.parametrize(("model", "kind", "message"), [
    (Hidden, "safetensors",
        "m was not kept: its logits differ from the model's by 1 on 4 images; 0.001 is allowed"),
    (lambda: Noisy(False), "torch-export",
        "m was not kept: its logits differ from the model's by 0.00"),
])  # fmt: skip
def test_a_file_that_gives_something_else_is_not_kept(tmp_path, model, kind, message):
    recipe = with_classes(tmp_path, model=model())
    weights = weights_of(recipe, tmp_path)
    (tmp_path / "to").mkdir()
    with pytest.raises(CommandFailed, match=re.escape(message)):
        export(recipe, weights, asked(tmp_path / "to" / "m", kind))
    assert list((tmp_path / "to").iterdir()) == []


def test_models_that_no_program_holds(tmp_path):
    class Loops(Net):
        def forward(self, x):
            while x.sum() > 0:  # what it does depends on the pixels
                x = x - 1
            return super().forward(x)

    recipe = with_classes(tmp_path, model=Loops(False))
    with pytest.raises(ValueError, match="Loops cannot be written as torch-export: "):
        export(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "m.pt2", "torch-export"))


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = with_classes(tmp_path / "x")
    weights = str(weights_of(recipe, tmp_path))
    words = ["export", "mine.py", "--weights", weights, "--out", "m.safetensors"]
    assert main([*words, "--data", "y"]) == 0 and (tmp_path / "m.safetensors").is_file()
    by_suffix = ["export", "mine.py", "--weights", weights, "--out"]
    assert main([*by_suffix, "m.pt2", "--data", "s"]) == 0, "without --format"
    torch.export.load(tmp_path / "m.pt2")
    capsys.readouterr()
    assert main([*by_suffix, "m.pt", "--data", "t"]) == 2
    message = capsys.readouterr().err
    assert "out is m.pt, and its suffix is of no format" in message
    assert ".safetensors (safetensors), .pt2 (torch-export), .onnx (onnx)" in message
    assert "format safetensors" not in message, "none was given"
    assert main([*by_suffix, "m.pt2", "--data", "v", "--format", "safetensors"]) == 2
    torch.save({"net.x": torch.ones(1)}, tmp_path / "other.pth")
    words[3] = "other.pth"
    assert main([*words, "--data", "z"]) == 2
    assert "the weights in other.pth do not fit Net: none of its 1 names" in capsys.readouterr().err
    (tmp_path / "noisy.py").write_text(RECIPE.replace(
        "return with_classes(data)",
        "from helpers.predictions import Hidden; return with_classes(data, model=Hidden())"
    ))  # fmt: skip
    words[1], words[3] = "noisy.py", weights
    assert main([*words, "--data", "u", "--partial"]) == 1
    assert "m.safetensors was not kept" in capsys.readouterr().err


def test_onnx_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as good as not installed
    with pytest.raises(
        ValueError, match=r'onnxruntime, not installed here: pip install "trainkit\[export\]"'
    ):
        export(recognition(), tmp_path, asked(tmp_path / "m.onnx", "onnx"))


def test_onnx_in_its_own_runtime(tmp_path):
    import onnxruntime

    recipe = with_masks(tmp_path)
    export(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "m.onnx", "onnx"))
    session = onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [tuple(each.shape) for each in session.get_inputs()] == [("batch", 3, "height", "width")]
    about = json.loads(session.get_modelmeta().custom_metadata_map["trainkit"])
    assert (
        "LongSide(long_side=24)" in about["preprocessing"]["transform"]
        and about["classes"] == CLASSES
    )
    for images in (batch(), batch((20, 31), 1)):
        with torch.no_grad():
            expected = recipe.model(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
    assert "onnxruntime" in sys.modules


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["timm:test_vit_relpos", "timm:nest_tiny_jx"])
def test_attention_of_timm_to_onnx(tmp_path, name):
    """With relative positions, and of five dimensions; afterwards it is fused as before."""
    pytest.importorskip("timm")
    network = fine_tuned(name, CLASSES, False, [64]).eval()
    write, load = FORMATS["onnx"]
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    write(Logits(network).eval(), images[:1], ("batch",), tmp_path / "m.onnx", "{}")
    with torch.no_grad():
        expected = network(images)
    found = load(tmp_path / "m.onnx", Logits(network))(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert {each.fused_attn for each in network.modules() if hasattr(each, "fused_attn")} == {True}


@pytest.mark.parametrize("kind", ["safetensors", "torch-export"])
def test_float16(tmp_path, kind):
    """Weights are rounded; a program takes and gives float32."""
    recipe = with_classes(tmp_path)
    out = tmp_path / "m"
    export(recipe, weights_of(recipe, tmp_path), asked(out, kind, half=True))
    if kind == "safetensors":
        with safe_open(out, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, value in recipe.model.state_dict().items():
            expected = value.half() if value.is_floating_point() else value
            assert torch.equal(state[name], expected)
        return
    images = batch()
    with torch.no_grad():
        expected = recipe.model.eval()(images)
        found = torch.export.load(out).module()(images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_a_weight_that_float16_does_not_hold_is_named(tmp_path):
    recipe = with_classes(tmp_path)
    with torch.no_grad():
        recipe.model.head.bias[3] = 1e5
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="head.bias reaches 1e.05, and float16 ends at 65504"):
        export(recipe, tmp_path / "w.pth", asked(tmp_path / "m", "safetensors", half=True))
