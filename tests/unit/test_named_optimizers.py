"""Optimizers by name: updates equal to those of torch's and timm's own, called by hand."""

import inspect
import re

import prodigyopt
import pytest
import schedulefree
import timm.optim
import torch
from torch import nn

from helpers.optimizers import TORCH
from trainkit.errors import UserError
from trainkit.settings import optimizers as named_optimizers
from trainkit.settings.optimizers import OTHERS, is_adaptive, named_optimizer

SECOND_ORDER = "adahessian"
OF_TIMM = [
    name
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"])
    if name != SECOND_ORDER
]

FAMILIES = (
    "lion",
    "lamb",
    "lars",
    "muon",
    "sgdw",
    "nadamw",
    "adafactorbv",
    "adan",
    "rmsproptf",
    "sgdp",
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))


def groups(model: nn.Module) -> list[dict]:
    """As `param_groups` makes them: another rate and no decay for vectors."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    vectors = [each for each in model.parameters() if each.ndim == 1]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": 0.1},
        {"params": vectors, "lr": 0.01, "weight_decay": 0.0},
    ]


def trained(build) -> list[torch.Tensor]:
    """The weights after six updates (rectified ones begin late) of `build`'s optimizer."""
    model = network()
    optimizer = build(groups(model))
    if hasattr(optimizer, "train"):
        optimizer.train()
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # some draw
    for _ in range(6):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


def assert_equal_updates(name, reference, **options) -> None:
    mine = trained(lambda each: named_optimizer(name, each, 0.02, **options))
    assert all(map(torch.equal, mine, trained(reference))), name
    assert not all(map(torch.equal, mine, network().parameters())), name


def test_every_optimizer_of_torch_is_known_or_refused():
    left_out = {
        "LBFGS",
        "SparseAdam",
        "Muon",
    }  # Muon of torch takes matrices alone: timm's is meant
    assert set(named_optimizers.TORCH) == set(TORCH) - left_out
    for name in ("lbfgs", "SparseAdam"):
        with pytest.raises(UserError, match=f"optimizer {name} (computes|is for).*take another"):
            named_optimizer(name, groups(network()), 0.1)


@pytest.mark.parametrize("name", sorted(set(named_optimizers.TORCH) - {"SGD", "Rprop"}))
def test_torchs_by_name(name):
    fused = {"fused": True} if name in ("Adam", "AdamW") else {}
    kind = getattr(torch.optim, name)
    assert_equal_updates(name.lower(), lambda each: kind(each, lr=0.02, **fused))
    assert_equal_updates(name, lambda each: kind(each, lr=0.02, **fused))


def test_sgd_and_its_momentum():
    def sgd(momentum, nesterov=False):
        return lambda each: torch.optim.SGD(
            each, 0.02, momentum=momentum, nesterov=nesterov, fused=True
        )

    assert_equal_updates("sgd", sgd(0.9))
    assert_equal_updates("nesterov", sgd(0.9, True))
    assert_equal_updates("sgd", sgd(0.5), momentum=0.5)
    assert_equal_updates("sgd", sgd(0.0), momentum=0.0)
    assert_equal_updates("sgd:nesterov=True,momentum=0.8", sgd(0.8, True))
    rmsprop = lambda each: torch.optim.RMSprop(each, 0.02, momentum=0.7)  # noqa: E731
    assert_equal_updates("rmsprop", rmsprop, momentum=0.7)


def test_betas_and_further_arguments():
    def adamw(**more):
        return lambda each: torch.optim.AdamW(each, 0.02, fused=True, **more)

    assert_equal_updates("adamw", adamw(betas=(0.5, 0.6)), betas=(0.5, 0.6))
    assert_equal_updates("adamw:eps=1e-2,amsgrad=True", adamw(eps=1e-2, amsgrad=True))


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAMILIES else pytest.param(name, marks=pytest.mark.nightly)
        for name in OF_TIMM
    ],
)
# of kron
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum':UserWarning")
def test_timms_by_name(name):
    def by_timm(each):
        return timm.optim.create_optimizer_v2(
            each, opt=name, lr=0.02, momentum=MOMENTA.get(name, 0.9)
        )

    assert_equal_updates(f"timm:{name}", by_timm)


# timm's factory gives each that has it 0.9; here those keep their own where it is not 0
MOMENTA = {}
for name in OF_TIMM:
    arguments = inspect.signature(timm.optim.get_optimizer_class(name)).parameters
    if "momentum" in arguments and arguments["momentum"].default != 0:
        MOMENTA[name] = arguments["momentum"].default


def test_timms_need_no_prefix_where_torch_has_none_of_that_name():
    assert isinstance(named_optimizer("lion", groups(network()), 0.1), timm.optim.Lion)
    assert isinstance(named_optimizer("muon", groups(network()), 0.1), timm.optim.Muon)
    assert isinstance(named_optimizer("adafactor", groups(network()), 0.1), torch.optim.Adafactor)
    timms = named_optimizer("timm:adafactor", groups(network()), 0.1)
    assert isinstance(timms, timm.optim.Adafactor)


@pytest.mark.parametrize("name", OTHERS)
def test_others_by_name(name):
    kinds = {
        "prodigy": prodigyopt.Prodigy,
        "schedulefree": schedulefree.AdamWScheduleFree,
        "schedulefree_adamw": schedulefree.AdamWScheduleFree,
        "schedulefree_radam": schedulefree.RAdamScheduleFree,
        "schedulefree_sgd": schedulefree.SGDScheduleFree,
    }
    if name == "prodigy":
        with pytest.raises(RuntimeError, match="different lr"):  # it takes one rate for all groups
            trained(lambda each: kinds[name](each, lr=0.02))
        with pytest.raises(UserError, match="these have several: give --head-lr-mult 1"):
            trained(lambda each: named_optimizer(name, each, 0.02))
        return
    assert_equal_updates(name, lambda each: kinds[name](each, lr=0.02))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("adamw", {"momentum": 0.9}, "optimizer adamw has no momentum: leave --momentum out"),
        ("lion", {"momentum": 0.9}, "optimizer lion has no momentum"),
        ("sgd", {"betas": (0.9, 0.99)}, "optimizer sgd has no betas: leave --betas out"),
        ("adamw", {"betas": (0.9, 0.99, 0.9)},
         "has 2 betas, 0.9, 0.999 by default, and --betas gives 3"),
        ("adan", {"betas": (0.9, 0.99)}, "has 3 betas"),
        ("rprop", {}, "optimizer rprop has no weight decay: give --weight-decay 0"),
        ("adamw:epps=1", {}, "optimizer adamw does not take epps; did you mean eps?"),
        ("adamw:lr=1", {}, "lr is given by --lr"),
        ("adamw:weight_decay=1", {}, "weight_decay is given by --weight-decay"),
        ("sgd:momentum=0.1", {"momentum": 0.9}, "momentum is given as well: give it once"),
        ("adamww", {}, "no optimizer of the name adamww; did you mean adamw?"),
        ("timm:lyon", {}, "no optimizer of the name lyon; did you mean lion?"),
    ],
)  # fmt: skip
def test_an_option_that_an_optimizer_has_not_is_refused_by_name(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        named_optimizer(name, groups(network()), 0.1, **options)


def test_what_is_adaptive():
    adaptive = (
        "adamw",
        "lion",
        "lamb",
        "timm:adafactor",
        "schedulefree",
        "muon",
        "rmsprop:momentum=0.9",
    )
    assert all(map(is_adaptive, adaptive))
    not_adaptive = ("sgd", "nesterov", "SGD:nesterov=True", "timm:sgdp", "lars", "schedulefree_sgd")
    assert not any(map(is_adaptive, not_adaptive))
