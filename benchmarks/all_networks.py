"""Whether every network by name trains, resumes, evaluates and exports.

    python benchmarks/all_networks.py                            # all that is not recorded yet
    python benchmarks/all_networks.py --only dense --again       # one kind, anew
    python benchmarks/all_networks.py --only timm:resnet18 upernet --limit 5

Kinds: `decoders` (each decoder on a spread of encoders), `transformers` (its segmenters), `masks`
(Mask2Former and EoMT), `hf` (classifiers of transformers), `dense` (a linear head, UPerNet or DPT
on timm's backbones) and `classifiers` (timm's, two of each of its modules, the smallest by name).

With random weights and two small images each: built; a step, saved as a training saves it, loaded
into a network that is built anew, and the second step bit-equal to that without the stop; evaluated
at odd sides, those of training + 3 and + 29, or in windows or at one size where a network takes no
other; exported to ONNX with the logits that the network has. What is done is written after each
network: the same command does the rest, the smallest first. Two calls with different --only may run
beside each other.
"""

import argparse
import contextlib
import fcntl
import json
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _results import Results, add_option
from torch import Tensor, nn

from trainkit.commands.export_formats import FORMATS, Logits
from trainkit.engine.task_module import TaskModule, set_images, set_step
from trainkit.errors import UserError, first_line
from trainkit.inference import Inference
from trainkit.models.mask_building import is_mask_network
from trainkit.models.outputs import fill_up, only_window, size_divisor
from trainkit.models.recognition import fine_tuned
from trainkit.models.segmentation import has_aux, segmenter
from trainkit.prediction.model_info import ModelInfo
from trainkit.storage import checkpoint
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

CLASSES = 5
SIDE = 64
# parts of names -> side that the network takes at least, or alone
SIDES = {
    "pan ": 128, "halonet": 256, "crossvit": 240, "efficientformer": 224, "inception_": 128,
    "eva02": 56, "maxvit": 256,
}  # fmt: skip
SECONDS = 150  # of the processor for one network, after which it is given up
LARGEST = 60_000_000  # parameters
WORDS = (
    "test", "femto", "zepto", "atto", "nano", "pico", "xxs", "xxtiny", "micro", "mini", "nano",
    "tiny", "xs", "xtiny", "extra_small", "small", "t0", "s0", "b0", "m0", "_0", "18", "s",
)  # fmt: skip
PER_MODULE = 2

ENCODERS = (
    "resnet50", "small", "timm:resnet18", "timm:convnext_atto", "timm:mobilenetv3_small_050",
    "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224",
)  # fmt: skip
SMP_ENCODERS = ("resnet18", "mit_b0", "mobilenet_v2", "efficientnet-b0", "timm:regnety_002",
                "timm:convnext_atto", "timm:vit_tiny_patch16_224")  # fmt: skip
OURS = ("fcn", "deeplabv3", "encnet", "pspnet", "upernet", "lraspp", "linear")
SMP = (
    "unet",
    "unetplusplus",
    "fpn",
    "manet",
    "linknet",
    "pan",
    "deeplabv3plus",
    "segformer",
    "dpt",
)
DENSE = [
    "test_vit", "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3",
    "vit_small_patch14_reg4_dinov2", "deit_tiny_patch16_224", "deit3_small_patch16_224",
    "eva02_tiny_patch14_224", "vit_pe_spatial_tiny_patch16_512", "vit_wee_patch16_reg1_gap_256",
    "flexivit_small", "xcit_nano_12_p16_224", "beit_base_patch16_224", "cait_xxs24_224",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "convnext_atto", "convnextv2_atto",
    "resnet18", "resnet26d", "resnest14d", "res2net50_14w_8s", "regnetx_002", "regnety_002",
    "efficientnet_b0", "efficientnetv2_rw_t", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "mobilenetv2_050", "mnasnet_small", "tf_efficientnet_lite0", "hrnet_w18_small", "dla34",
    "densenet121", "vgg11_bn", "edgenext_xx_small", "efficientformerv2_s0", "fastvit_t8",
    "focalnet_tiny_srf", "hgnetv2_b0", "inception_next_atto", "maxvit_rmlp_pico_rw_256",
    "mobilevitv2_050", "mvitv2_tiny", "nextvit_small", "poolformer_s12", "pvt_v2_b0", "repvit_m0_9",
    "rdnet_tiny", "starnet_s1", "tiny_vit_5m_224", "dpn48b", "ghostnet_050", "hardcorenas_a",
    "rexnet_100", "selecsls42b", "seresnet18", "skresnet18", "tresnet_m", "mambaout_femto",
]  # fmt: skip

VIT = "hidden_size=16 num_hidden_layers=4 num_attention_heads=2 intermediate_size=32"
PYRAMID = "depths=1,1,1,1 num_attention_heads=1,1,2,2"
# Type of transformers -> arguments of a tiny configuration
SEGMENTERS = {
    "beit": f"{VIT} image_size=32 patch_size=8 out_indices=1,2,3,4 pool_scales=1,2",
    "data2vec-vision": f"{VIT} image_size=32 patch_size=8 out_indices=1,2,3,4 pool_scales=1,2",
    "dpt": f"{VIT} image_size=32 backbone_out_indices=0,1,2,3 neck_hidden_sizes=8,8,16,16"
    " fusion_hidden_size=16",
    "mobilenet_v2": "depth_multiplier=0.25 min_depth=4",
    "mobilevit": "hidden_sizes=16,24,32 neck_hidden_sizes=8,8,16,16,24,24,32 num_attention_heads=2"
    " aspp_out_channels=16",
    "mobilevitv2": "width_multiplier=0.25 aspp_out_channels=16",
    "sapiens2": "hidden_size=32 num_hidden_layers=2 num_attention_heads=2 patch_size=8"
    " intermediate_size=32 num_key_value_attention_heads=2 pos_embed_rescale=none"
    " head_config.upsample_out_channels=[16] head_config.conv_out_channels=[16]",
    "segformer": f"hidden_sizes=8,8,16,16 {PYRAMID} decoder_hidden_size=16",
    "tipsv2_dpt": "backbone_config.hidden_size=16 backbone_config.num_hidden_layers=4"
    " backbone_config.num_attention_heads=2 backbone_config.image_size=28"
    " backbone_config.out_indices=1,2,3,4 backbone_config.reshape_hidden_states=false"
    " neck_hidden_sizes=8,8,16,16 fusion_hidden_size=16",
    "upernet": "backbone_config.embedding_size=8 backbone_config.hidden_sizes=8,8,16,16"
    " backbone_config.depths=1,1,1,1 backbone_config.layer_type=basic"
    " backbone_config.out_features=stage1,stage2,stage3,stage4 hidden_size=16"
    " auxiliary_channels=8 pool_scales=1,2",
}
QUERIES, POINTS = 5, 48
QUERY = f"num_queries={QUERIES} train_num_points={POINTS}"
EOMT = (
    f"{QUERY} hidden_size=16 num_hidden_layers=4 num_attention_heads=2 num_blocks=2"
    f" image_size={SIDE} patch_size=16 num_register_tokens=1 num_upscale_blocks=1"
)
MASKS = {
    "mask2former": f"{QUERY} backbone_config.embed_dim=8 backbone_config.depths=1,1,1,1"
    " backbone_config.num_heads=1,1,2,2 backbone_config.window_size=2"
    f" backbone_config.image_size={SIDE}"
    " backbone_config.out_features=stage1,stage2,stage3,stage4"
    " feature_size=32 mask_feature_size=32 hidden_dim=32 encoder_feedforward_dim=16"
    " dim_feedforward=16 encoder_layers=1 decoder_layers=3 num_attention_heads=2",
    "eomt": EOMT,
    "eomt_dinov3": f"{EOMT} intermediate_size=32",
}
HF = {
    "vit": f"{VIT} image_size={SIDE}",
    "deit": f"{VIT} image_size={SIDE}",
    "beit": f"{VIT} image_size={SIDE} patch_size=16",
    "dinov2": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 mlp_ratio=2"
    f" image_size={SIDE} patch_size=16",
    "dinov2_with_registers": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 mlp_ratio=2"
    f" image_size={SIDE} patch_size=16",
    "resnet": "embedding_size=8 hidden_sizes=8,8,16,16 depths=1,1,1,1",
    "convnext": "hidden_sizes=8,8,16,16 depths=1,1,1,1",
    "convnextv2": "hidden_sizes=8,8,16,16 depths=1,1,1,1",
    "segformer": f"hidden_sizes=8,8,16,16 {PYRAMID}",
    "mobilenet_v2": "depth_multiplier=0.25 min_depth=4",
    "mobilevit": "hidden_sizes=16,24,32 neck_hidden_sizes=8,8,16,16,24,24,32 num_attention_heads=2",
    "regnet": "embedding_size=8 hidden_sizes=8,8,16,16 depths=1,1,1,1 groups_width=4",
    "poolformer": "hidden_sizes=8,8,16,16 depths=1,1,1,1",
    "pvt_v2": "hidden_sizes=8,16,40,64 depths=1,1,1,1",
}


@dataclass(frozen=True)
class Case:
    """A network by name: what builds it, and its task."""

    kind: str
    name: str
    build: Callable[[], nn.Module]
    dense: bool

    @property
    def label(self) -> str:
        """Of its row."""
        return f"{self.kind}: {self.name}"

    @property
    def side(self) -> int:
        """Of its images in training."""
        known = [side for part, side in SIDES.items() if part in self.name]
        return known[0] if known else SIDE

    @property
    def odd(self) -> tuple[int, int]:
        """Height and width of its image in evaluation."""
        return self.side + 3, self.side + 29

    def task(self, network: Any) -> Any:
        if self.kind == "masks":
            return MaskClassification(CLASSES, num_queries=QUERIES, num_points=POINTS)
        if self.dense:
            usual = 0.4 if has_aux(self.name.partition(" ")[0]) else 0.0
            return Segmentation(CLASSES, aux_weight=getattr(network, "aux_weight", usual))
        return Recognition(CLASSES)


def cases() -> list[Case]:
    """All, in the order in which they are tried."""
    found = []

    def add(kind: str, label: str, name: str, *backbone: str, arguments: str = "") -> None:
        words = tuple(arguments.split())

        def build() -> nn.Module:
            return segmenter(
                name, CLASSES, *backbone, pretrained=False, channels=16, model_args=words
            )

        found.append(Case(kind, label, build, True))

    for kind, arguments in SEGMENTERS.items():
        add("transformers", f"hf:{kind}", f"hf:{kind}", arguments=arguments)
    for kind, arguments in MASKS.items():
        assert is_mask_network(f"hf:{kind}", arguments.split(), None)
        add("masks", f"hf:{kind}", f"hf:{kind}", arguments=arguments)
    for kind, arguments in HF.items():
        found.append(Case("hf", f"hf:{kind}", _hf(kind, arguments), False))
    for names, encoders in ((OURS, ENCODERS), (SMP, SMP_ENCODERS)):
        for name in names:
            for encoder in encoders:
                if name == "dpt":  # on timm: it is trainkit's
                    encoder = encoder.replace("timm:", "tu-")
                add("decoders", f"{name} {encoder}", name, encoder)
    for name in DENSE:
        for head in ("linear", "upernet", "dpt") if name in DENSE[:8] else ("upernet",):
            add("dense", f"{head} timm:{name}", head, f"timm:{name}")
    for name in classifiers():
        found.append(Case("classifiers", f"timm:{name}", _timm(name), False))
    return found


def _hf(kind: str, arguments: str) -> Callable[[], nn.Module]:
    return lambda: fine_tuned(
        f"hf:{kind}", CLASSES, False, [SIDE], model_args=tuple(arguments.split())
    )


def _timm(name: str) -> Callable[[], nn.Module]:
    side = next((side for part, side in SIDES.items() if part in name), SIDE)
    return lambda: fine_tuned(f"timm:{name}", CLASSES, False, [side])


def classifiers() -> list[str]:
    """The smallest two, by their names, of each of timm's modules."""
    import timm

    chosen = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        chosen += sorted(names, key=_size)[:PER_MODULE]
    return chosen


def _size(name: str) -> tuple[int, int, str]:
    parts = name.split("_")
    found = [rank for rank, word in enumerate(WORDS) if word in parts or word in name]
    return (min(found, default=len(WORDS)), len(name), name)


def images_and_targets(case: Case, network: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Two images of the side that the network takes, and what is to be learned of them."""
    generator = torch.Generator().manual_seed(seed)
    only = getattr(network, "image_size", None) if case.dense else None
    known = getattr(network, "patch_embed", None)
    built_for = getattr(known, "img_size", None) if not case.dense else None
    sides = tuple(only or built_for or (case.side, case.side))
    images = torch.randn(2, 3, *sides, generator=generator)
    shape = (2, *sides) if case.dense else (2,)
    return images, torch.randint(CLASSES, shape, generator=generator)


def step(case: Case, network: nn.Module, optimizer: Any, number: int) -> float:
    """One of two steps; the loss."""
    task = case.task(network)
    module = TaskModule(network, task).train()
    images, targets = images_and_targets(case, network, number)
    torch.manual_seed(number)
    set_step(module.task, network, (number, 2))
    set_images(module.task, network, 0, [2 * number, 2 * number + 1])
    sums = module(images, targets)
    counts = module.task.counts(targets)
    loss = (sums / counts.clamp(min=1)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def built(case: Case) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    network = case.build()
    trained = [each for each in network.parameters() if each.requires_grad]
    return network, torch.optim.SGD(trained, lr=1e-3, momentum=0.9)


def resumed(case: Case, folder: Path) -> nn.Module:
    """Two steps, and the second one again from a checkpoint; the network after them.

    Raises:
        AssertionError: they are not bit-equal.
    """
    network, optimizer = built(case)
    step(case, network, optimizer, 0)
    state = {"optimizer": optimizer.state_dict()}
    saved = checkpoint.write(folder, 1, checkpoint.Snapshot.of(network.state_dict(), state))
    loss = step(case, network, optimizer, 1)
    again, other = built(case)
    weights, state = checkpoint.load(saved)
    again.load_state_dict(weights)
    other.load_state_dict(state["optimizer"])
    assert step(case, again, other, 1) == loss, "the loss of the resumed step is another"
    ours, theirs = network.state_dict(), again.state_dict()
    unequal = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not unequal, f"after the resume {unequal[0]} is another"
    assert loss == loss, "the loss is NaN"
    return network


@torch.no_grad()
def evaluated(case: Case, network: nn.Module) -> str:
    """At which sides predictions were made."""
    task = case.task(network)
    images = torch.randn(1, 3, *case.odd, generator=torch.Generator().manual_seed(5))
    only = getattr(network, "image_size", None) if case.dense else None
    if only is not None or case.kind == "masks":
        side = (only or (case.side, case.side))[0]
        info = ModelInfo(network, task, None, inference=Inference(window=side, stride=side // 2))
        scores = info.infer()(images)
        assert tuple(scores.shape[-2:]) == case.odd
        return f"windows of {side}"
    module = TaskModule(network, task).eval()
    targets = torch.zeros(1, *case.odd, dtype=torch.long) if case.dense else torch.zeros(1).long()
    try:
        module(images, targets)
        return f"{case.odd[0]} x {case.odd[1]}"
    except (UserError, RuntimeError, AssertionError, ValueError, IndexError):
        if case.dense:
            raise
    images, targets = images_and_targets(case, network, 3)
    module(images, targets)
    return f"{images.shape[-2]} x {images.shape[-1]} alone"


def exported(case: Case, network: nn.Module, folder: Path) -> str:
    """Which axes of the ONNX file are free, whose logits are the network's."""
    write, load = FORMATS["onnx"]
    images, _ = images_and_targets(case, network, 4)
    images = images[:1]
    if case.dense:
        images = only_window(network, fill_up(images, size_divisor(network)))
    model = Logits(network).eval()
    with torch.no_grad():
        expected = model(images)
    fault: Exception | None = None
    for free in (("batch",), ()):
        path = folder / "network.onnx"
        try:
            write(model, images, free, path, "{}")
            found = load(path, model)(images)
        except TimeoutError:
            raise
        except Exception as error:  # exporters raise dozens of kinds
            fault = error
            continue
        difference = float((found - expected).abs().max())
        limit = 1e-3 * max(1.0, float(expected.abs().max()))
        assert difference <= limit, f"its logits differ by {difference:.2g}"
        return "any batch" if free else "one image"
    assert fault is not None
    raise fault


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Context manager: raises TimeoutError inside after so many seconds of the processor."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 5)  # again where a library went on
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(case: Case, onnx: bool) -> dict[str, str]:
    """What came out of each part; "refused" with the reason where a name is refused."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, limited(SECONDS):
        try:
            network, _ = built(case)
        except UserError as error:
            return {"built": f"refused: {first_line(error)}"}
        number = sum(each.numel() for each in network.parameters())
        found["parameters"] = f"{number:,}"
        if number > LARGEST:
            return {**found, "built": "left out: it is large"}
        found["built"] = "yes"
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("resumed", lambda: resumed(case, Path(folder)) and "bit-equal"),
            ("evaluated", lambda: evaluated(case, network)),
        ]
        if onnx:
            parts.append(("onnx", lambda: exported(case, network, Path(folder))))
        for part, run in parts:
            try:
                found[part] = run()
            except TimeoutError as error:
                found[part] = f"FAILED: {error}"
                break
            except Exception as error:  # of any library: it is what is to be found out
                found[part] = failed(error)
    return found


def failed(error: BaseException) -> str:
    """What is recorded of an error: its kind, and what it, or what it came from, says."""
    kind = type(error).__name__
    while error.__cause__ is not None:  # torch's exporter says what to do next
        error = error.__cause__
    said = re.sub(r"\x1b\[\d+m", "", first_line(error))  # colours
    return f"FAILED: {kind}: {said}"[:300]


def weights(case: Case, known: dict[str, dict[str, str]]) -> int:
    """How many a network had when it was tried; 0 of one that was not."""
    number = known.get(case.label, {}).get("parameters", "0")
    return int(number.replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="kinds, or parts of names")
    parser.add_argument("--limit", type=int, help="networks at most")
    parser.add_argument("--seconds", type=float, help="after which no other one is begun")
    parser.add_argument("--again", action="store_true", help="also those that are recorded")
    parser.add_argument("--no-onnx", action="store_true", help="leave the export out")
    add_option(parser)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = Results("all_networks", "torch", "torchvision", "timm", "transformers",
                      "segmentation-models-pytorch", "onnxruntime")  # fmt: skip
    file = asked.results / "all_networks.json"
    everything = cases()
    labels = {each.label for each in everything}
    known = recorded(file, labels)
    if known:  # the file holds what all calls found
        results.head["command"] = "python benchmarks/all_networks.py"
        results.head["note"] = "over several calls, with --only"
    begun, number = time.monotonic(), 0
    for case in sorted(everything, key=lambda case: weights(case, known)):
        label = case.label
        wanted = asked.only is None or any(
            each == case.kind or each in case.name for each in asked.only
        )
        before = known.get(label, {})
        lacks_onnx = before.get("built") == "yes" and "onnx" not in before
        done = label in known and (asked.no_onnx or not lacks_onnx)
        if not wanted or (done and not asked.again):
            continue
        late = asked.seconds is not None and time.monotonic() - begun > asked.seconds
        if late or number == asked.limit:
            break
        number += 1
        start = time.monotonic()
        try:
            found = tried(case, not asked.no_onnx)
        except TimeoutError as error:
            found = {"built": f"FAILED: {error}"}
        except Exception as error:  # of any library, as it is built
            found = {"built": failed(error)}
        print(f"{label:60} {time.monotonic() - start:5.1f} s  {found}", flush=True)
        record(label, found, labels, results, asked.results)


def recorded(file: Path, labels: Container[str]) -> dict[str, dict[str, str]]:
    """Network -> column -> what was found, of all calls up to now, of networks still tried."""
    known: dict[str, dict[str, str]] = {}
    if file.is_file():
        for row in json.loads(file.read_text())["measurements"]:
            if row["row"] in labels:
                known.setdefault(row["row"], {})[row["column"]] = row["value"]
    return known


def record(
    label: str, found: dict[str, str], labels: Container[str], results: Results, folder: Path
) -> None:
    """Write what was found of a network beside what other calls have written by now."""
    with open(__file__) as program:
        fcntl.flock(program, fcntl.LOCK_EX)
        known = recorded(folder / "all_networks.json", labels)
        known[label] = found
        results.measurements = []
        for row, columns in known.items():
            for column, value in columns.items():
                results.put(row, column, "", value)
        with contextlib.redirect_stdout(None):
            results.write(folder)


if __name__ == "__main__":
    main()
