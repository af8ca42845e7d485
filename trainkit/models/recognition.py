"""Networks for recognition by name: torchvision's and timm's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import DropBlock2d, StochasticDepth, drop_block2d

from trainkit.data.to_device import MEAN, STD
from trainkit.data.transforms.recognition import CROP_MODES
from trainkit.errors import UserError
from trainkit.models.hf_networks import hf_classifier, hf_images, is_hf
from trainkit.models.image_channels import take_channels
from trainkit.models.lora import add_adapters
from trainkit.models.pretrained import load_pretrained
from trainkit.models.small import SmallClassifier, SmallResNet
from trainkit.models.timm_models import nearest, timm_classifier, timm_with
from trainkit.settings.rebuildable import rebuildable


@rebuildable
def classifier(
    name: str,
    num_classes: int,
    stochastic_depth: float | None = None,
    drop_block: float | None = None,
    sizes: Sequence[int] = (),
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network `name` with random weights, for images (N, image_channels, H, W).

    The last batch norm of each of a ResNet's residual blocks starts from 0 (Goyal et al., 2017).

    Args:
        name: one of torchvision's for recognition, such as "resnet50", "resnext50_32x4d",
            "convnext_tiny", "vit_b_16" or "efficientnet_b0", "timm:" and a name of timm's, "hf:"
            and one of transformers' (see `trainkit.models.hf_networks`), or "small"
            (`SmallClassifier`, for two CPU cores).
        num_classes: number of outputs.
        stochastic_depth: rate at which the last block is left out, the others in proportion; None:
            as published.
        drop_block: probability of DropBlock after the last two stages of a ResNet, with blocks of
            7; in timm's networks as timm has it.
        sizes: sides of the images in training and evaluation, for a network with a fixed input size
            (a vision transformer).
        image_channels: of the images, see `take_channels`.
        model_args: of transformers' networks: arguments of their configuration.
        config: of transformers' networks: what was found for the name when it was first built.

    Raises:
        UserError: the name is unknown, timm is missing, or the network lacks what is asked for.

    Source:
        DropBlock: Ghiasi et al., 2018. Stochastic depth: Huang et al., 2016.
    """
    for what, rate in (("stochastic_depth", stochastic_depth), ("drop_block", drop_block)):
        _check_rate(what, rate)
    _check_model_args(name, model_args)
    if is_hf(name):
        for what, rate in (("stochastic_depth", stochastic_depth), ("drop_block", drop_block)):
            if rate is not None:
                raise _no_rate_of_hf(what, rate, name)
        return hf_classifier(name, num_classes, False, sizes, image_channels, model_args, config)
    if name.startswith("timm:"):
        asked = {"drop_path_rate": stochastic_depth, "drop_block_rate": drop_block}
        asked = {setting: rate for setting, rate in asked.items() if rate is not None}
        network = _of_timm(name, False, sizes, num_classes, asked)
        take_channels(network, image_channels, pretrained=False)
        return network
    if name == "small":
        model: nn.Module = SmallClassifier(
            num_classes, SmallResNet((32, 64, 128, 256), (2, 2, 2), (1, 1, 1))
        )
    else:
        model = _torchvision(name, num_classes, sizes)
    if stochastic_depth is not None:
        _leave_out(model, name, stochastic_depth)
    if drop_block is not None:
        if not isinstance(model, ResNet):
            raise UserError(
                f"drop_block is {drop_block}, and {name} is none of torchvision's ResNets: leave"
                " it out"
            )
        for stage in (model.layer3, model.layer4):
            # it has no weights: checkpoints fit without it
            stage.append(DropBlock(drop_block, block_size=7))
    take_channels(model, image_channels, pretrained=False)
    return model


@rebuildable
def fine_tuned(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    sizes: Sequence[int] = (),
    image_channels: int = 3,
    model_args: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    lora: int | None = None,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """Build the network `name` with a new last layer, named in its attribute `head_names`.

    Those of transformers keep a published head for as many classes. All parts keep the names they
    have in torchvision, timm or transformers, so that weights fit from there to
    here and back, but for the last layer where the classes differ.

    Args:
        name: as for `classifier`, but for "small".
        num_classes: number of outputs.
        pretrained: start the rest from published weights, torchvision's or timm's best for
            ImageNet, downloaded once; `published_input` says for which images they are.
        sizes: as for `classifier`; position embeddings are resized.
        image_channels: of the images, to which published weights are adapted, see `take_channels`.
        model_args: as for `classifier`.
        config: as for `classifier`.
        lora: rank of adapters that are trained beside the last layer, and nothing else is, see
            `trainkit.models.lora.add_adapters`; None: all is trained.
        stochastic_depth: as for `classifier`.

    Raises:
        UserError: the name is unknown, the network does not end in a linear layer, its weights
            cannot be downloaded, or it takes no adapters.
    """
    _check_rate("stochastic_depth", stochastic_depth)
    drops: dict[str, Any] = {}
    if stochastic_depth is not None and name.startswith("timm:"):
        drops["drop_path_rate"] = stochastic_depth
    elif stochastic_depth is not None and is_hf(name):
        raise _no_rate_of_hf("stochastic_depth", stochastic_depth, name)
    network = _with_new_head(
        name, num_classes, pretrained, sizes, image_channels, model_args, config, drops
    )
    if stochastic_depth is not None and not drops:
        _leave_out(network, name, stochastic_depth)
    images = torch.zeros(1, image_channels, sizes[0], sizes[0]) if sizes else None
    add_adapters(network, lora, images)
    return network


def _with_new_head(
    name: str,
    num_classes: int,
    pretrained: bool,
    sizes: Sequence[int],
    image_channels: int,
    model_args: Sequence[str],
    config: Mapping[str, Any] | None,
    drops: Mapping[str, Any],
) -> Any:
    """The network of `fine_tuned`, without adapters."""
    _check_model_args(name, model_args)
    if is_hf(name):
        return hf_classifier(
            name, num_classes, pretrained, sizes, image_channels, model_args, config
        )
    if name.startswith("timm:"):
        network = _of_timm(name, pretrained, sizes, num_classes, drops)
        # timm keeps the published layer, of other classes
        if num_classes == network.pretrained_cfg["num_classes"]:
            network.reset_classifier(num_classes)
        last = network.get_classifier()
        ids = set(map(id, last if isinstance(last, (tuple, list)) else [last]))
        network.head_names = tuple(
            path for path, module in network.named_modules() if id(module) in ids
        )
        take_channels(network, image_channels, pretrained)
        return network
    network = _torchvision(name, None, sizes)
    linear = [each for each in network.named_modules() if isinstance(each[1], nn.Linear)]
    path, last = linear[-1] if linear else ("", None)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    if last is None or last.out_features != len(weights.meta["categories"]):
        raise UserError(
            f"{name} does not end in a linear layer that a new one could replace: take another"
            " network"
        )
    if pretrained:
        load_pretrained(network, weights, adapt=_positions_resized(network))
    network.set_submodule(
        path, nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    )
    network.head_names = (path,)
    take_channels(network, image_channels, pretrained)
    return network


def published_input(name: str, usual_interpolation: str, **asked: Any) -> dict[str, Any]:
    """mean, std, interpolation, crop_fraction and crop_mode of images for the network `name`.

    They do not depend on where its weights come from. timm has them for its networks, and
    transformers' in a file beside their configuration, which is not read where all are asked for;
    others have ImageNet's mean and std, `usual_interpolation`, 0.875 and "center", see
    `eval_transform`.

    Args:
        name: as for `classifier`.
        usual_interpolation: for networks that are not timm's.
        **asked: values in their place, where not None.

    Raises:
        UserError: the crop_mode is unknown here.
    """
    found: dict[str, Any] = {"mean": MEAN, "std": STD, "interpolation": usual_interpolation}
    found |= {"crop_fraction": 0.875, "crop_mode": "center"}
    if name.startswith("timm:"):
        timm, short = timm_with(name)
        known = timm.models.get_pretrained_cfg(short, allow_unregistered=True)
        if known is not None:
            found = {
                "mean": tuple(known.mean),
                "std": tuple(known.std),
                "interpolation": known.interpolation,
            }
            found |= {"crop_fraction": known.crop_pct, "crop_mode": known.crop_mode}
    asked = {setting: value for setting, value in asked.items() if value is not None}
    if is_hf(name) and not found.keys() <= asked.keys():
        found |= hf_images(name)
    found |= asked
    if found["crop_mode"] not in CROP_MODES:
        raise UserError(
            f"timm trained {name} with crop_mode {found['crop_mode']!r}, and here are"
            f" {' and '.join(CROP_MODES)}: give one of them, or take another network"
        )
    return found


def _check_rate(what: str, rate: float | None) -> None:
    if rate is not None and not 0 <= rate < 1:
        raise UserError(
            f"{what} is {rate}; it must be in [0, 1), or None for the network as published"
        )


def _no_rate_of_hf(what: str, rate: float, name: str) -> UserError:
    return UserError(
        f"{what} is {rate}, and {name} is of transformers: leave it out, or set what its"
        " configuration has, such as --model-args drop_path_rate=0.1"
    )


def _of_timm(
    name: str, pretrained: bool, sizes: Sequence[int], num_classes: int, rates: Mapping[str, Any]
) -> Any:
    """The network of timm with these rates of what is left out in training."""
    try:
        return timm_classifier(name, pretrained, sizes, num_classes, **rates)
    except TypeError as error:
        if not rates:
            raise
        raise UserError(f"{name} does not take {' and '.join(rates)} in timm ({error})") from error


def _check_model_args(name: str, model_args: Sequence[str]) -> None:
    if model_args and not is_hf(name):
        raise UserError(
            f"model_args is {' '.join(model_args)}, and {name} takes none: they are of networks of"
            " transformers (hf:...)"
        )


class DropBlock(DropBlock2d):
    """torchvision's DropBlock, also for a block larger than the map.

    The block is cut to an odd side, as even ones fail there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Leave squares out of maps (N, C, H, W) in training."""
        side = min(self.block_size, *x.shape[-2:])
        return drop_block2d(x, self.p, side - 1 + side % 2, self.inplace, self.eps, self.training)


def _leave_out(model: nn.Module, name: str, rate: float) -> None:
    """Scale the rates of torchvision's StochasticDepth so that the last is `rate`."""
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if not layers:
        raise UserError(
            f"stochastic_depth is {rate}, and {name} has none in torchvision (ConvNeXt, Swin,"
            " EfficientNet and MaxViT have): leave it out, or take one of timm's"
        )
    last = layers[-1].p
    for layer in layers:
        layer.p *= rate / last


def _positions_resized(
    network: nn.Module,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """Make a function that fits published weights to a ViT for images of another size."""
    if not isinstance(network, VisionTransformer):
        return None
    return partial(interpolate_embeddings, network.image_size, network.patch_size)


def _torchvision(name: str, num_classes: int | None, sizes: Sequence[int] = ()) -> Any:
    """Build one of torchvision's with random weights; `num_classes` None: as many as published.

    `sizes` are of the images; a ViT is built for one.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = nearest(name, ["small", *known])
        there = f"{near} There" if near else "; there"
        raise UserError(
            f"no model {name!r}{there} are small, those of torchvision, timm:NAME and hf:NAME"
        )
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name.startswith("vit_") and sizes:
        patch = int(name.rpartition("_")[2])
        if len(set(sizes)) > 1 or sizes[0] % patch:
            raise UserError(
                f"{name} takes images of one size, divisible by {patch}, and not"
                f" {', '.join(map(str, sizes))}: give one size for training and evaluation, or take"
                " another network"
            )
        settings["image_size"] = sizes[0]
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        settings["zero_init_residual"] = True
    if name in ("googlenet", "inception_v3"):  # in training they would return three results
        settings |= {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, **settings)
