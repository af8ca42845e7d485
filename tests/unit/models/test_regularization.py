"""Regularizers of torchvision in a recipe's network: DropBlock and stochastic depth."""

import pytest
import torch
from torchvision.models import convnext_tiny, resnet18
from torchvision.ops import DropBlock2d, StochasticDepth

from trainkit.data.seeding import fold, seed_host
from trainkit.models.recognition import DropBlock, classifier


def test_drop_block_and_stochastic_depth_as_the_docs_say():
    with torch.device("meta"):
        shallow, deep = (convnext_tiny(stochastic_depth_prob=p) for p in (0.1, 0.4))
    for model, last in ((shallow, 0.1), (deep, 0.4)):
        rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
        assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == pytest.approx(last)

    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    names = set(model.state_dict())
    for layer in (model.layer3, model.layer4):
        layer.append(DropBlock2d(p=0.3, block_size=3))
    assert set(model.state_dict()) == names
    # 3 x 3 at the end: a block must fit, or be cut to an odd size
    images = torch.randn(2, 3, 96, 96)
    seed_host(fold(0))
    first = model(images)
    seed_host(fold(0))
    assert torch.equal(first, model(images)), "drawn from the generators that each step seeds"
    assert not torch.equal(first, model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "efficientnet_b0"])
def test_stochastic_depth_by_its_last_rate(name):
    """In proportion to what torchvision has, which builds a Swin or EfficientNet of another rate by
    no name."""
    with torch.device("meta"):
        models = (
            classifier(name, 5),
            classifier(name, 5, stochastic_depth=0.4),
            classifier(name, 5, 0.0),
        )
    usual, asked, none = (
        [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
        for model in models
    )
    assert (
        asked == pytest.approx([0.4 * rate / usual[-1] for rate in usual])
        and asked[0] == 0 < asked[1]
    )
    assert asked[-1] == pytest.approx(0.4) and not any(none)


def test_drop_block_of_a_classifier():
    """7 x 7 and 14 x 14 maps are torchvision's own; on 4 x 4 and 2 x 2 it would fail."""
    torch.manual_seed(0)
    plain, dropping = resnet18(num_classes=5), classifier("resnet18", 5, drop_block=0.5)
    for side in (64, 128, 224):
        dropping.load_state_dict(plain.state_dict())
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            assert torch.equal(dropping.eval()(images), plain.eval()(images))
            assert not torch.equal(dropping.train()(images), plain.train()(images))
    seed_host(fold(0))
    kept = DropBlock(0.5, 7)(torch.ones(4, 8, 14, 14)) > 0
    seed_host(fold(0))
    assert torch.equal(kept, DropBlock2d(0.5, 7)(torch.ones(4, 8, 14, 14)) > 0) and not kept.all()
