"""Options of the commands, beside the recipe's own settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainkit.errors import UserError
from trainkit.inference import Inference

LONGEST_S = 2**31 // 1000  # of waiting for other processes: torch counts it in milliseconds


@dataclass(frozen=True)
class Options:
    """Options of a training run, beside the recipe's own settings."""

    out: Path | None = None
    """the run's folder; default: runs/<recipe>"""
    seed: int = 0
    """decides initial weights, order, augmentation, mixing and dropout"""
    workers: int | None = None
    """data-loading workers per process (0: none); default: its share of the cores, up to 8"""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume from the last checkpoint, or start. never: start at step 0; the folder of an
    older run is renamed to OUT.1, or the next number that is free, with all that is in it"""
    init_from: Path | None = None
    """start from weights of a run or file, but for layers with a shape mismatch; not on a resume"""
    weights_key: str | None = None
    """which weights of a file that holds several, such as model_ema; default: the usual ones"""
    log_every: int = 10
    """steps between two rows of the log"""
    checkpoint_every: int | None = None
    """steps between two checkpoints; default: one at the end of each epoch"""
    evaluate_every: int = 1
    """epochs between two evaluations; there is always one after the last step"""
    patience: int | None = None
    """early stopping: end after so many evaluations without a better headline metric"""
    min_delta: float = 0.0
    """what a better one must be better by to count for --patience, such as 0.001"""
    headline: str | None = None
    """metric that selects the best checkpoint, or max:NAME, min:NAME; default: the task's"""
    micro_batch: int | None = None
    """maximum micro-batch size per process, with gradient accumulation; default: its whole share"""
    channels_last: bool = False
    """hold images and weights with the channels last, which tensor cores and some CPUs prefer"""
    tf32: bool = False
    """on GPUs: multiply float32 in TF32 (10 bits of mantissa), which is several times faster"""
    activation_checkpointing: bool = False
    """keep only the inputs of the model's blocks for the backward: less memory, slower"""
    static_graph: bool = False
    """every forward pass uses the same weights, which DDP learns from the first (static_graph)"""
    timeout_s: int = 600
    """timeout of a collective operation in seconds; the same command resumes the run after it"""
    precise_bn: int | None = None
    """precise BN: training images, in batches of 16, to re-estimate BatchNorm statistics from"""
    teacher: Path | None = None
    """knowledge distillation: a run (its best checkpoint), a checkpoint, or owner/name on the Hub,
    of the same classes"""
    distill: float | None = None
    """weight of the teacher's probabilities, from 0 to 1, against the labels; default: 0.5"""
    temperature: float | None = None
    """that softens the probabilities of teacher and student; default: 2"""
    trust_recipe: bool = False
    """run code of a teacher that was not trained here, if it is not one of trainkit's recipes"""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """trackers that the rows of the log are sent to, beside the training"""
    profile: bool = False
    """record steps 10 to 20: a trace for Perfetto in profile/, and a table of what they spend"""
    keep_checkpoints: int = 2
    """number of newest checkpoints kept, beside the best and the one resumed from"""
    allow_schedule_change: bool = False
    """resume with a different length or learning-rate schedule"""
    allow_change: tuple[str, ...] = ()
    """resume with other values of these settings of the recipe, such as clip_norm, from there on"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """non-finite (NaN/Inf) loss or gradient: stop and save the step to failures/, or skip it"""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """unusable training image, mask or label: stop, or list it and use the next one in the order"""
    on_save_error: Literal["stop", "continue"] = "stop"
    """failure to write to the run's folder: stop, or train on without saving"""
    async_checkpoint: bool = False
    """write checkpoints in the background; a kill may lose the steps taken during the writing"""
    checkpoint_format: Literal["full", "sharded"] = "full"
    """full: one process writes whole tensors. sharded: under FSDP each process writes its part"""
    report: bool = True
    """write report.html into the run's folder at the end of the training"""
    pictures: bool = True
    """draw the first batch and predictions into the run's folder; --no-pictures: none"""
    preview: int | None = None
    """keep the predictions of so many fixed validation images at each evaluation, in preview/"""

    def __post_init__(self) -> None:
        for name in ("out", "init_from", "teacher"):  # also given as strings, from Python
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        _require_at_least(self, {
            "workers": 0, "log_every": 1, "checkpoint_every": 1, "evaluate_every": 1,
            "micro_batch": 1, "keep_checkpoints": 1, "precise_bn": 16, "timeout_s": 1,
            "patience": 1, "min_delta": 0, "preview": 1,
        })  # fmt: skip
        if self.preview is not None and not self.pictures:
            raise UserError(
                f"preview is {self.preview} and pictures is False: its predictions are pictures;"
                " leave --preview or --no-pictures out"
            )
        if self.min_delta and self.patience is None:
            raise UserError(
                f"min_delta is {self.min_delta:g} and patience is None: it says what counts as"
                " better for --patience, which is to be given too"
            )
        _check_distillation(self)
        if self.timeout_s > LONGEST_S:
            raise UserError(
                f"timeout_s is {self.timeout_s}; it can be up to {LONGEST_S}, which is"
                f" {LONGEST_S / 86400:.0f} days"
            )


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How images are seen, where not as in the recipe's evaluations."""

    as_stored: bool = False
    """segmentation: images at original resolution, not at the recipe's evaluation size"""
    scales: tuple[float, ...] | None = None
    """segmentation: multi-scale inference (TTA) at these scales, such as 0.5 0.75 1 1.25 1.5"""
    flip: bool = False
    """segmentation: also predict the horizontally flipped image (TTA)"""
    window: int | None = None
    """segmentation: sliding-window inference with windows of this side; default: none"""
    window_width: int | None = None
    """width of the windows, whose height --window is; default: squares"""
    stride: int | None = None
    """pixels from one window to the next; default: two thirds of the window"""
    window_batch: int | None = None
    """windows per forward pass, of any images; default: 8"""
    crops: Literal["center", "ten"] | None = None
    """recognition: one crop, or corners and centre, flipped too; default: as in the recipe"""

    def inference(self, recipes: Inference | None) -> Inference | None:
        """Return the recipe's inference settings, with those given here in place of its own.

        Args:
            recipes: the recipe's own, or None for whole images.

        Returns:
            `recipes` itself, which may be None, where no option of inference is given.
        """
        names = ("scales", "window", "window_width", "stride", "window_batch")
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        asked |= {"flip": True} if self.flip else {}
        if self.window is not None:  # the recipe's width is of its own windows
            asked["window_width"] = self.window_width
        return replace(recipes or Inference(), **asked) if asked else recipes


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Which weights are taken, and whose code."""

    weights: Path | None = None
    """with a recipe: a run (its best checkpoint), a checkpoint, a weights file, or owner/name"""
    weights_key: str | None = None
    """which weights of a file that holds several, such as model_ema; default: the usual ones"""
    partial: bool = False
    """load only the matching weights, and leave the rest of the model as it is"""
    trust_recipe: bool = False
    """run code that was not trained here, if it is not one of trainkit's recipes"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(InferenceOptions, WeightsOptions):
    """Options of an evaluation, beside the recipe's own settings."""

    out: Path | None = None
    """where results.json goes; default: the run, nowhere for a bare file of weights"""
    seed: int | None = None
    """of random validation data, and of the images of --precise-bn; default: the run's, or 0"""
    workers: int | None = None
    """data-loading workers per process; default: its share of the cores, up to 8"""
    channels_last: bool = False
    """hold images and weights with the channels last, as in a run"""
    tf32: bool = False
    """on GPUs: multiply float32 in TF32, as in a run"""
    precise_bn: int | None = None
    """precise BN: training images for the statistics (0: off); default: as in the run"""
    report: bool = True
    """write report.html anew into the run's folder, with these results"""
    eval_batch: int | None = None
    """images per forward pass; default: the recipe's eval_batch_size"""
    eval_data: Path | None = None
    """recognition: a folder of class folders in place of the recipe's images, such as ImageNet-V2,
    -A or -R; where it has some of the classes, predictions are restricted to them"""
    label_sets: Path | None = None
    """recognition: JSON with any number of labels for each of ImageNet's validation images, as
    real.json of ImageNet-ReaL"""
    pictures: bool = True
    """draw predictions and the worst images into the folder of results.json"""

    def __post_init__(self) -> None:
        for name in ("eval_data", "label_sets"):  # also given as strings, from Python
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.eval_data is not None and self.label_sets is not None:
            raise UserError(
                f"eval_data is {self.eval_data} and label_sets is {self.label_sets}: these are of"
                " the recipe's own validation images; leave one of the two out"
            )
        _require_at_least(self, {"workers": 0, "eval_batch": 1})
        if self.precise_bn:  # 0: off
            _require_at_least(self, {"precise_bn": 16})


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InferenceOptions, WeightsOptions):
    """Options of a prediction: which images, and where the results go."""

    paths: tuple[Path, ...]
    """images, and folders with images at any depth"""
    out: Path
    """folder for the predictions"""
    top_k: int = 5
    """classes named for each image: the most probable ones; of a mask the largest ones"""
    threshold: float | None = None
    """multi-label: probability above which a class is named, or a pixel is of it; default: the best
    found, else 0.5; of pixels that of training"""
    overlay: bool = False
    """also write each image with its classes: names drawn on, or covered by colours"""
    probabilities: bool = False
    """also write the probability of each class, as .npz"""
    workers: int | None = None
    """data-loading workers (0: none); default: all cores but one, up to 8"""

    def __post_init__(self) -> None:
        _require_at_least(self, {"top_k": 1, "workers": 0})


@dataclass(frozen=True, kw_only=True)
class ExportOptions(WeightsOptions):
    """Options of an export: which format, and where it goes."""

    out: Path
    """the file to be written"""
    format: Literal["safetensors", "torch-export", "onnx"] | None = None
    """the weights alone; a program that torch.export.load opens; a graph for ONNX runtimes;
    default: by the file's suffix, .safetensors, .pt2 or .onnx"""
    half: bool = False
    """float16 weights; the metric is measured with both where the validation data can be opened"""
    images: int = 4
    """images to try the file on: of the validation data, or generated ones for a run"""

    def __post_init__(self) -> None:
        _require_at_least(self, {"images": 1})


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of a report: of which runs, and where it goes."""

    others: tuple[Path, ...] = ()
    """further runs to compare with the first; with any, each may also be a recipe"""
    out: Path | None = None
    """the HTML file to be written; default: report.html in the run, or here for several"""
    text: bool = False
    """print it as text, and write no file"""
    plots: bool = False
    """also draw curves.png, confusion.png and more into the run, which push publishes"""


@dataclass(frozen=True)
class ReplayOptions:
    """Options of a replay: which failed step."""

    step: int | None = None
    """its number, as in failures/step-<number>; default: the newest"""
    workers: int | None = None
    """data-loading workers per process; default: its share of the cores, up to 8"""
    trust_recipe: bool = False
    """run code that was not trained here, if it is not one of trainkit's recipes"""


@dataclass(frozen=True)
class RecipesOptions:
    """The recipes that are found by their names, with task, networks and dataset."""


@dataclass(frozen=True)
class NewOptions:
    """Where the copy of a recipe goes."""

    file: Path
    """the Python file to be written, such as my_recipe.py"""


@dataclass(frozen=True)
class DoctorOptions:
    """Options of a check of a recipe's data, beside the recipe's own settings."""

    out: Path | None = None
    """where doctor.json goes; default: runs/<recipe>-doctor"""
    workers: int | None = None
    """data-loading workers (0: none); default: all cores but one, up to 8"""

    def __post_init__(self) -> None:
        _require_at_least(self, {"workers": 0})


@dataclass(frozen=True)
class PushOptions:
    """Options of a push: what is published of a run, and where."""

    name: str
    """of the model on the Hugging Face Hub: owner/name"""
    folder: Path | None = None
    """write the same files into this folder, and upload nothing"""
    private: bool = False
    """only its owners see it"""
    license: str | None = None
    """of the weights, by the Hub's names, such as apache-2.0; default: the card names none"""
    dataset: str | None = None
    """the data's name on the Hub, for the card; default: the run's --data where that is one"""


def _require_at_least(options: Any, least: Mapping[str, int]) -> None:
    """Raise UserError where an option is below its minimum; None is off."""
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and value < number:
            raise UserError(f"{name} is {value}; it must be at least {number}")


def _check_distillation(options: Options) -> None:
    """Raise UserError for a weight or a temperature that cannot be, or that is of no teacher."""
    for name in ("distill", "temperature"):
        if getattr(options, name) is not None and options.teacher is None:
            raise UserError(
                f"{name} is {getattr(options, name):g} and teacher is None: give --teacher too, a"
                " run, a checkpoint or a name on the Hub"
            )
    if options.distill is not None and not 0 <= options.distill <= 1:
        raise UserError(
            f"distill is {options.distill:g}; it must be from 0 (labels alone) to 1 (the teacher"
            " alone)"
        )
    if options.temperature is not None and options.temperature <= 0:
        raise UserError(f"temperature is {options.temperature:g}; it must be above 0, such as 2")
