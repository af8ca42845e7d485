"""ImageNet recipes of today: what is published of them is what they build."""

import inspect

import pytest
import torch

from helpers.processes import ROOT
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.dataset_info import opened
from trainkit.losses.pixelwise import BinaryCrossEntropy
from trainkit.models.recognition import fine_tuned
from trainkit.tasks.recognition import Recognition

pytest.importorskip("timm")
from timm.layers import DropPath
from timm.loss import BinaryCrossEntropy as TimmBCE

# name: optimizer, its lr, decay, BCE's threshold, passes over the images, timm's policy
PUBLISHED = {
    "recog_imagenet_a1": ("Lamb", 5e-3, 0.01, 0.2, 600, "rand-m7-mstd0.5-inc1"),
    "recog_imagenet_a2": ("Lamb", 5e-3, 0.02, 0.2, 300, "rand-m7-mstd0.5-inc1"),
    "recog_imagenet_a3": ("Lamb", 8e-3, 0.02, 0.2, 100, "rand-m6-mstd0.5-inc1"),
    "recog_imagenet_deit3": ("Lamb", 4e-3, 0.05, 0.0, 800, "3a"),
    "recog_imagenet_convnextv2": ("AdamW", 3.2e-3, 0.05, None, 300, "rand-m9-mstd0.5-inc1"),
}
ALPHAS = {"a1": (0.2, 1.0), "a2": (0.1, 1.0), "a3": (0.1, 1.0)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_built(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer, lr, decay, threshold, passes, policy = PUBLISHED[name]
    file = load_recipe(ROOT / "recipes" / f"{name}.py")
    defaults = {n: each.default for n, each in inspect.signature(file).parameters.items()}
    small = {"model": "small", "stochastic_depth": None, "layer_decay": 1.0, "size": 32}
    recipe = build(file, {**small, "eval_size": None, "sample": True})
    assert type(recipe.optimizer).__name__ == optimizer
    group = max(recipe.optimizer.param_groups, key=lambda each: each["weight_decay"])
    assert (group["lr"], group["weight_decay"]) == (lr, decay)
    if optimizer == "Lamb":  # which scales the gradient of all parameters to a norm of 1
        assert group["max_grad_norm"] == 1.0 and group["eps"] == 1e-6
    loss = recipe.task.loss
    assert (None if loss is None else loss.threshold) == threshold
    assert (loss is None) == (defaults["loss"] == "cross_entropy")
    repeats = opened(recipe.train_data).repeats
    assert recipe.epochs * repeats == pytest.approx(passes)
    assert recipe.batch_size % (2 * repeats) == 0  # pairs of mixup, and all copies of an image
    transforms = opened(recipe.train_data).data.transform.transforms
    assert [each.policy for each in transforms if hasattr(each, "policy")] == [policy]
    mixings = {type(each).__name__: each.alpha for each in recipe.mix.mixings}
    expected = ALPHAS.get(name.rpartition("_")[2], (0.8, 1.0))
    assert (mixings["Mixup"], mixings["Cutmix"]) == expected
    assert recipe.ema == (0.9999 if name == "recog_imagenet_convnextv2" else None)


@pytest.mark.parametrize("threshold", [None, 0.2, 0.0])
def test_bce_is_timms(threshold):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 10, generator=generator)
    ids = torch.randint(10, (8,), generator=generator)
    soft = torch.lerp(torch.eye(10)[ids], torch.eye(10)[ids.roll(1)], 0.3)
    for targets in (ids, soft):
        task = Recognition(10, loss=BinaryCrossEntropy(threshold))
        found = task.losses(logits, targets) / task.counts(targets)
        theirs = TimmBCE(smoothing=0.0, target_threshold=threshold)(logits, targets)
        torch.testing.assert_close(found[0], theirs, rtol=1e-6, atol=0)
    smooth = Recognition(10, loss=BinaryCrossEntropy(None, 0.1))
    theirs = TimmBCE(smoothing=0.1)(logits, ids)
    torch.testing.assert_close((smooth.losses(logits, ids) / smooth.counts(ids))[0], theirs)


def test_blocks_of_a_pretrained_network_are_left_out_too():
    network = fine_tuned(
        "timm:convnextv2_atto.fcmae", 5, pretrained=False, sizes=[32], stochastic_depth=0.2
    )
    rates = [each.drop_prob for each in network.modules() if isinstance(each, DropPath)]
    # from 0, whose block has none, in equal steps
    expected = torch.linspace(0, 0.2, 12).tolist()[1:]
    assert rates == pytest.approx(expected)
    assert network.head_names == ("head.fc",)
