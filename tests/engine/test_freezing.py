"""A part of the model that is not trained before some step."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vgg11
from torchvision.ops import StochasticDepth

from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, assert_same_training, rows, weights
from helpers.toy_recipes import CLASSES, everything, frozen, recognition, run
from trainkit import Options, freeze, train
from trainkit.commands.check import check
from trainkit.engine.plan import TrainPlan
from trainkit.errors import UserError
from trainkit.models.freezing import FrozenPart
from trainkit.models.recognition import fine_tuned
from trainkit.models.segmentation import segmenter
from trainkit.optim import named_parts, param_groups
from trainkit.schedules import cos
from trainkit.settings import OptimizerSettings
from trainkit.storage.checkpoint import list_checkpoints, load

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
DropPath = timm.layers.DropPath
UNFROZEN, STEPS = 6, 12


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unstopped")
    resume(folder, "frozen", others=["frozen-for-good", "frozen-plain"])
    return folder


def checkpoints(folder) -> dict[int, dict[str, torch.Tensor]]:
    """Weights by step."""
    found = list_checkpoints(folder / "checkpoints")
    return {int(path.name.removeprefix("step-")): load(path)[0] for path in found}


def backbone(state) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("backbone")}


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_until_then_a_step_is_that_of_a_model_frozen_for_good(unstopped):
    """By trainkit.freeze, whose optimizer has the head alone: losses, norms, EMA and weights."""
    part, whole = (rows(unstopped / name) for name in ("frozen", "frozen-for-good"))
    for row, other in zip(part[:UNFROZEN], whole):
        for name in ("loss", "grad_norm", "lr"):
            assert row[name] == other[name], (row["step"], name)
    assert part[UNFROZEN]["grad_norm"] != whole[UNFROZEN]["grad_norm"]
    part, whole = (checkpoints(unstopped / name) for name in ("frozen", "frozen-for-good"))
    assert list(part) == list(whole) == [2, 4, 6, 8, 10, 12]
    assert all(equal(part[step], whole[step]) for step in (2, 4, 6))
    assert not equal(part[8], whole[8])


def test_statistics_and_weights_are_untouched_until_then(unstopped):
    found = checkpoints(unstopped / "frozen")
    assert equal(backbone(found[2]), backbone(found[6]))
    assert not torch.equal(found[2]["head.weight"], found[6]["head.weight"])
    assert (
        found[6]["backbone.1.num_batches_tracked"],
        found[8]["backbone.1.num_batches_tracked"],
    ) == (0, 3)  # micro-batches of a step of 8 images and one of 3
    changed = {name for name in found[6] if not torch.equal(found[6][name], found[8][name])}
    assert changed == found[6].keys()


@pytest.mark.parametrize("step", [4, 6])
def test_killed_before_and_resumed_across_the_boundary(tmp_path, unstopped, step):
    process = start(tmp_path, "frozen", sleep=0.02)
    wait_for(tmp_path / "frozen", checkpoint_of(step), process)
    kill_all(process)
    assert "resuming from step-" in resume(tmp_path, "frozen")
    assert_bit_equal(unstopped / "frozen", tmp_path / "frozen")


def test_two_processes_train_as_one(tmp_path, unstopped):
    """DDP computes the gradients of what is frozen, too, and they are dropped."""
    resume(tmp_path, "frozen-plain", processes=2)
    assert_same_training(unstopped / "frozen-plain", tmp_path / "frozen-plain")


def test_a_resume_with_another_freeze_is_refused(tmp_path):
    run("frozen", tmp_path / "run", checkpoint_every=12)
    (tmp_path / "run" / "summary.json").unlink()
    other = replace(frozen(), unfreeze_epoch=2)
    with pytest.raises(
        UserError, match="frozen was '.*weights until step 6' and is '.*until step 8'"
    ):
        train(other, Options(out=tmp_path / "run", seed=5, workers=0))


def test_what_is_refused(tmp_path, monkeypatch):
    options = Options(out=tmp_path / "run", workers=0)
    with pytest.raises(UserError, match="precise_bn is 16, and a part of the model is frozen"):
        train(frozen(), replace(options, precise_bn=16))
    with pytest.raises(UserError, match="unfreeze_epoch is 0; it must be above 0, or None"):
        replace(frozen(), unfreeze_epoch=0)
    whole = everything()
    with pytest.raises(UserError, match="frozen holds all that the optimizer trains"):
        replace(whole, frozen=tuple(whole.model.parameters()))
    with pytest.raises(UserError, match="frozen holds parameters that are not the model's"):
        replace(everything(), frozen=[nn.Parameter(torch.zeros(1))])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="freeze does not work under FSDP"):
        train(frozen(), options)


def test_frozen_for_the_whole_run(tmp_path):
    recipe = replace(frozen(recognition), unfreeze_epoch=None)
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    train(recipe, Options(out=tmp_path / "run", workers=0))
    after = weights(tmp_path / "run")
    assert equal(backbone(before), backbone(after))
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert not any(weight.requires_grad for weight in recipe.model.backbone.parameters())


def test_the_same_step_has_the_same_state_whatever_was_before():
    """Also after an evaluation, which puts the whole model into training mode again."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()),
        nn.Dropout(),
        nn.Linear(4, 2),
    )
    part = FrozenPart(model, list(model[0].parameters()), until=3, needs_gradients=False)
    for step in (5, 0, 2, 3, 2, 9, 1):
        model.train()
        part.at_step(step)
        trained = step >= 3
        assert [module.training for module in model[0].modules()] == [trained] * 4
        assert model.training and model[1].training and model[2].training
        assert {weight.requires_grad for weight in model[0].parameters()} == {trained}
        assert all(weight.requires_grad for weight in model[2].parameters())


def test_parts_by_name():
    network = resnet18(num_classes=3)
    network.head_names = ("fc",)
    head = {id(weight) for weight in network.fc.parameters()}
    named = named_parts(network, ["backbone"])
    assert {id(weight) for weight in named} == {
        id(weight) for weight in network.parameters()
    } - head
    two = named_parts(network, ["layer1", "conv1"])
    assert len(two) == 1 + len(list(network.layer1.parameters()))
    dense = segmenter("fcn", 3, "small", False, aux=False)
    assert len(named_parts(dense, ["backbone"])) == len(list(dense.backbone.parameters()))
    for names, message in (
        (["layr1"], "freeze is layr1, and ResNet has no such part; did you mean layer1?"),
        (["backbone", "fc"], "freeze is backbone fc: that leaves nothing of the model to train"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            named_parts(network, names)
    with pytest.raises(UserError, match="Linear does not say which part is its head"):
        named_parts(nn.Linear(2, 2), ["backbone"])


def test_the_optimizer_has_what_is_frozen_from_the_start():
    network = resnet18(num_classes=3)
    network.head_names = ("fc",)
    settings = OptimizerSettings(lr=0.1, freeze=("backbone",), unfreeze_epoch=2)
    built = settings.build(network)
    weights = [weight for group in built["optimizer"].param_groups for weight in group["params"]]
    assert len(weights) == len(list(network.parameters()))
    assert len(built["frozen"]) == len(weights) - 2 and built["unfreeze_epoch"] == 2
    with pytest.raises(UserError, match="unfreeze_epoch is 2, and nothing is frozen"):
        OptimizerSettings(lr=0.1, unfreeze_epoch=2).build(network)


@pytest.mark.parametrize("unfreeze_epoch", [1, None])
def test_check_tries_a_frozen_part(unfreeze_epoch):
    """Batch norm of the part is frozen during the trial alone, and nothing is warned of it."""
    found = check(replace(frozen(), unfreeze_epoch=unfreeze_epoch), Options(workers=0))
    assert found["results"]["resume"] == "bit-equal"
    assert not any("batch norms of frozen layers" in line for line in found["warnings"])


def test_norms_whose_weights_took_no_gradient_before():
    """They are of the frozen part, too, and take none when it is trained."""
    network = resnet18(num_classes=3)
    network.head_names = ("fc",)
    fixed = [network.bn1, network.layer2[0].bn2]
    for norm in fixed:
        norm.requires_grad_(False)
    built = OptimizerSettings(lr=0.1, freeze=("backbone",), unfreeze_epoch=2).build(network)
    part = FrozenPart(network, built["frozen"], 3, False, built["optimizer"])
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    images = torch.rand(4, 3, 32, 32)
    before = [norm.running_mean.clone() for norm in norms]
    for step in (0, 2, 3):
        network.train()
        part.at_step(step)
        network(images)
        assert {norm.training for norm in norms} == {step == 3} and network.fc.training
        unchanged = [torch.equal(norm.running_mean, old) for norm, old in zip(norms, before)]
        assert all(unchanged) if step < 3 else not any(unchanged)
    taking = {name for name, each in network.named_parameters() if each.requires_grad}
    assert taking == {
        name
        for name, _ in network.named_parameters()
        if not name.startswith(("bn1", "layer2.0.bn2"))
    }


def test_a_part_that_took_no_gradient_at_all():
    """Its batch norm is in evaluation mode until then."""
    network = resnet18(num_classes=3)
    network.layer1.requires_grad_(False)
    built = OptimizerSettings(lr=0.1, freeze=("layer1",), unfreeze_epoch=2).build(network)
    part = FrozenPart(network, built["frozen"], 3, False, built["optimizer"])
    for step in (0, 3, 1):
        part.at_step(step)
        assert network.layer1[0].bn1.training == (step == 3) and network.layer2.training
    assert not any(weight.requires_grad for weight in network.layer1.parameters())


class Pooled(nn.Module):
    """A backbone whose batch norm has one value per channel of each image."""

    def __init__(self):
        super().__init__()
        pool, norm = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)
        self.backbone = nn.Sequential(pool, nn.Conv2d(3, 4, 1), norm, nn.Flatten())
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images):
        return self.head(self.backbone(images))


def pooled(batch_size=1, epochs=0.4, for_good=False, **changes):
    torch.manual_seed(1)
    model = Pooled()
    if for_good:
        freeze(model.backbone)
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-3), lr=0.1, momentum=0.9)
    how = {"batch_size": batch_size, "epochs": epochs, "schedule": cos()}
    return recognition(model=model, optimizer=optimizer, **how, **changes)


@pytest.mark.parametrize("unfreeze_epoch", [None, 7])
def test_a_batch_of_one_image_under_a_frozen_part(tmp_path, unfreeze_epoch):
    """Its batch norm counts nothing, as that of a model frozen for good."""
    part, whole = (Options(out=tmp_path / name, workers=0) for name in ("part", "whole"))
    with pytest.raises(UserError, match="step 1 has a forward pass of one image"):
        train(pooled(), part)
    recipe = pooled()
    backbone = list(recipe.model.backbone.parameters())
    train(replace(recipe, frozen=backbone, unfreeze_epoch=unfreeze_epoch), part)
    train(pooled(for_good=True), whole)
    found = weights(part.out)
    assert found["backbone.2.num_batches_tracked"] == 0 and equal(found, weights(whole.out))


@pytest.mark.parametrize(
    "batch_size, epochs, until, step", [(1, 0.4, 0.2, 6), (13, 3, 1.5, 6), (13, 3, 2.7, 9)]
)
def test_a_batch_of_one_image_once_the_part_is_trained(tmp_path, batch_size, epochs, until, step):
    """27 images: the first step that would count one of them is named, and nothing is begun."""
    recipe = pooled(batch_size, epochs)
    backbone = list(recipe.model.backbone.parameters())
    with pytest.raises(UserError, match=f"step {step} has a forward pass of one image .1 images"):
        train(
            replace(recipe, frozen=backbone, unfreeze_epoch=until),
            Options(out=tmp_path / "run", workers=0),
        )
    assert not (tmp_path / "run").exists()


def test_a_part_of_an_epoch_freezes_a_step_at_least():
    recipe = replace(frozen(), unfreeze_epoch=0.01)
    assert TrainPlan(recipe, Options(workers=0), 1).unfreeze_step == 1


def timm_vit():
    rates = {"drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **size, **rates)


def timm_convnext():
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    return timm.create_model(
        "convnext_atto", num_classes=3, drop_rate=0.5, drop_path_rate=0.5, **sizes
    )


def hf_vit():
    size = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 48}  # fmt: skip
    rates = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(num_labels=3, **size, **rates)
    )
    network.head_names = ("classifier",)
    return network


def of_torchvision(name):
    return lambda: fine_tuned(name, 3, pretrained=False)


# network -> modules without parameters beside the head that drop, with what is before the head
FAMILIES = {
    "alexnet": (of_torchvision("alexnet"), []),
    "mobilenet_v3_small": (of_torchvision("mobilenet_v3_small"), ["classifier.2"]),
    "efficientnet_b0": (of_torchvision("efficientnet_b0"), ["classifier.0"]),
    "resnet18": (of_torchvision("resnet18"), []),
    "timm vit": (timm_vit, ["head_drop"]),
    "timm convnext": (timm_convnext, ["head.drop"]),
    "transformers vit": (hf_vit, []),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_frozen_backbone_computes_the_same_each_time(name):
    """And the head alone learns: every other weight and statistic stays, bit for bit."""
    build, dropping = FAMILIES[name]
    torch.manual_seed(0)
    network = build()
    weights_of_backbone = named_parts(network, ["backbone"])
    part = FrozenPart(network, weights_of_backbone, None, False)
    network.train()
    part.at_step(0)
    kinds = (nn.Dropout, StochasticDepth, DropPath)
    active = {path for path, each in network.named_modules() if isinstance(each, kinds)}
    active = {path for path in active if network.get_submodule(path).training}
    assert sorted(active) == dropping
    features = []

    def keep(module, inputs, output):
        features.append(getattr(output, "last_hidden_state", output).detach().clone())

    taken = part.modules[-1].register_forward_hook(keep)
    before = {path: value.clone() for path, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e4)
    side = 32 if "vit" in name else 64
    images = torch.rand(2, 3, side, side)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = network(images)
        getattr(outputs, "logits", outputs).logsumexp(1).sum().backward()
        optimizer.step()
    taken.remove()
    assert torch.equal(*features)
    after = network.state_dict()
    changed = {path for path, was in before.items() if not torch.equal(was, after[path])}
    stay = {id(weight) for weight in weights_of_backbone}
    assert changed == {path for path, each in network.named_parameters() if id(each) not in stay}


def test_dropouts_of_vgg_by_name():
    """Between frozen layers of its classifier: not; before the new layer: as ever."""
    with torch.device("meta"):
        network = vgg11(num_classes=3)
    network.head_names = ("classifier.6",)
    part = FrozenPart(network, named_parts(network, ["backbone"]), 3, False)
    for step, expected in ((0, [False, True]), (3, [True, True]), (1, [False, True])):
        network.train()
        part.at_step(step)
        assert [network.classifier[place].training for place in (2, 5)] == expected


def test_modules_without_parameters_beside_parts_of_other_names():
    """Those after a layer that is trained see other features in each step anyway."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout(),
        nn.Conv2d(4, 4, 1), nn.Dropout(), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    for places, evaluating in (([0, 3], [0, 1, 2, 3, 5]), ([0], [0, 1]), ([3], [3])):
        weights = [weight for place in places for weight in model[place].parameters()]
        part = FrozenPart(model, weights, 3, False)
        model.train()
        part.at_step(0)
        assert [place for place, each in enumerate(model) if not each.training] == evaluating
        part.at_step(3)
