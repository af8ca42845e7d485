"""The model card of a run: what Hugging Face's Hub reads of it, and what people do."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

WEIGHTS = "model.safetensors"
# by the metric that only such a task has
PIPELINES = {
    "top1": "image-classification",
    "mAP": "image-classification",
    "mIoU": "image-segmentation",
}
METRICS = {"top1": "accuracy", "mIoU": "mean_iou"}  # the Hub's names


@dataclass(frozen=True)
class Published:
    """What is published of a run; nothing in it names the machine."""

    name: str
    """on the Hub"""
    recipe: str
    """the name of its file, without the extension, or of its function"""
    recorded: dict[str, Any]
    """settings.json: settings, what else affects the result, options, command, versions"""
    summary: dict[str, Any]
    """summary.json; empty where the run has not ended"""
    step: int
    """after which the weights were those"""
    epoch: float | None
    """the same in epochs, where they were evaluated then"""
    averaged: bool
    """the weights are the moving average"""
    evaluated: dict[str, Any]
    """of the training's evaluation of these weights; empty where there was none"""
    measured: dict[str, Any]
    """of `trainkit evaluate` on these weights; empty where there was none"""
    results: dict[str, Any]
    """what is published as results.json"""
    dataset: str | None
    """its name on the Hub"""
    license: str | None
    """of the weights, by the Hub's names"""
    has_recipe: bool = True
    """recipe.py is published with it"""
    loads: bool = False
    """`trainkit.load` takes it: model.json says all about the model"""
    trust: bool = False
    """and runs code of the recipe for it"""
    pictures: Sequence[str] = ()
    """names of PNG files beside it, see `trainkit.report.plots`"""
    plain: Sequence[str] | None = None
    """lines of Python that use it without trainkit"""
    own_network: bool = False
    """neither torchvision nor timm takes the weights"""


def model_card(run: Published) -> ModelCard:
    """Metadata and text of the card."""
    metrics = run.evaluated or run.measured
    pipeline = next((PIPELINES[name] for name in metrics if name in PIPELINES), None)
    data = ModelCardData(
        model_name=run.name.split("/")[-1],
        library_name="trainkit",
        license=run.license,
        pipeline_tag=pipeline,
        datasets=run.dataset,
        tags=[run.recipe],
        eval_results=_eval_results(run, metrics, pipeline) or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(run)}")


def _eval_results(
    run: Published, metrics: dict[str, Any], pipeline: str | None
) -> list[EvalResult]:
    generated = run.recorded["settings"].get("sample")
    name = run.dataset or ("generated images" if generated else f"the data of {run.recipe}")
    return [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=run.dataset or run.recipe,
            dataset_name=name,
            metric_type=METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in metrics.items()
        if isinstance(value, float)
    ]


def _text(run: Published) -> str:
    settings, versions = run.recorded["settings"], run.recorded["versions"]
    whose = "the moving average of the weights" if run.averaged else "the weights"
    parts = [
        f"# {run.name.split('/')[-1]}",
        f"{_words_alone(run.recorded['model'])}, trained by the recipe"
        f" `{_words_alone(run.recipe)}` of trainkit. `{WEIGHTS}`"
        f" holds {whose} after step {run.step} of {run.recorded['total_steps']}"
        + (
            ", on generated images."
            if settings.get("sample")
            else f", on {run.dataset}."
            if run.dataset
            else "."
        ),
        "## Metrics",
    ]
    if run.evaluated:
        parts += [f"The training's evaluation after epoch {run.epoch:g}.", _table(run.evaluated)]
    if run.measured:
        parts += [
            "By `trainkit evaluate` on the same weights; more in `results.json`.",
            _table(run.measured),
        ]
    if not (run.evaluated or run.measured):
        parts.append("These weights were not evaluated.")
    parts += _pictures(run)
    parts += _from_python(run)
    parts += _again(run)
    parts += [
        "## How it was trained",
        _how(run),
        _table(
            {**_machine(run), **{f"version of {name}": value for name, value in versions.items()}}
        ),
        "Settings:",
        _table(settings),
    ]
    return "\n\n".join(parts) + "\n"


def _again(run: Published) -> list[str]:
    """How to use it from the command line."""
    if not run.has_recipe:
        return ["## Predict", _code(_predict(run))]
    return [
        "## Evaluate it again, predict, fine-tune",
        _code(
            f"hf download {run.name} --local-dir {run.name.split('/')[-1]}",
            f"cd {run.name.split('/')[-1]}",
            f"trainkit evaluate recipe.py --weights {WEIGHTS}{_evaluated_with(run)}",
            _predict(run),
        ),
        (
            "Settings not given are those of the run, from `settings.json` beside the weights. A"
            f" training takes those of the recipe: `trainkit recipe.py --init-from {WEIGHTS}`"
            " fine-tunes, with the settings of the model given again."
        ),
    ]


def _how(run: Published) -> str:
    """The command, or the call from Python, that trained it."""
    call = run.recorded.get("call")
    if call is not None:
        keywords = (f"{name}={value!r}" for name, value in call["keywords"].items())
        words = ", ".join([call["recipe"], *keywords])
        return _code("import trainkit", "", f"trainkit.train({words})", language="python")
    if not run.has_recipe:
        return "From Python, by `trainkit.train` with a `Recipe` that was built before."
    return _code(f"trainkit {shlex.join(_words(run))}")


def _pictures(run: Published) -> list[str]:
    """Pictures of the run, each with what it shows."""
    titles = {
        "curves.png": "Curves of the training",
        "confusion.png": "Confusion of the classes",
        "predictions.png": "Validation images: the worst and the median",
        "train_batch.png": "The first batch of training, as the network gets it",
    }
    return [f"![{titles.get(name, name)}]({name})" for name in run.pictures]


def _from_python(run: Published) -> list[str]:
    """How to use it from Python, with trainkit and without."""
    if not run.loads:
        return []
    trust = ", trust_recipe=True" if run.trust else ""
    parts = [
        "## Use it from Python",
        _code(
            "import trainkit",
            "",
            f'model, info = trainkit.load("{run.name}"{trust})',
            'print(info.predict("photo.jpg"))',
            'logits = model(info.preprocess("photo.jpg"))',
            language="python",
        ),
    ]
    if run.trust:
        parts.append(
            "Its network is code of its own, in this repository, which runs with all your rights:"
            " read it first."
        )
    if run.plain is not None:
        parts += ["The same without trainkit:", _code(*run.plain, language="python")]
    if run.own_network:
        parts.append(
            "Neither torchvision nor timm has this network: without trainkit take a file that"
            f" needs no code, of `trainkit export {run.name} --out model.onnx`."
        )
    return parts


def _predict(run: Published) -> str:
    """The command that predicts with it."""
    if run.loads:
        trust = " --trust-recipe" if run.trust else ""
        return f"trainkit predict {run.name} my_photos --out predictions{trust}"
    weights = f"--weights {WEIGHTS}{_data(run)}"
    return f"trainkit predict recipe.py my_photos {weights} --out predictions"


def _words(run: Published) -> list[str]:
    """The command's words after the program."""
    return shlex.split(run.recorded["command"])[1:]


def _evaluated_with(run: Published) -> str:
    """What the command needs to measure as the training did."""
    options = run.recorded["options"]
    words = f" --precise-bn {options['precise_bn']}" if options.get("precise_bn") else ""
    words += f" --seed {run.recorded['seed']}" if run.recorded["seed"] else ""
    return words + _data(run)


def _data(run: Published) -> str:
    """The setting that names the images, where nobody else has them under that name.

    Classes are read there too.
    """
    settings = run.recorded["settings"]
    is_local = "data" in settings and not settings.get("sample") and settings["data"] != run.dataset
    return " --data FOLDER" if is_local else ""


def _machine(run: Published) -> dict[str, Any]:
    rows = {
        "processes": run.summary.get("num_processes"),
        "training, s": run.summary.get("seconds"),
        "images/s": run.summary.get("images_per_s"),
        "memory of a process, GiB": run.summary.get("peak_memory_gib"),
        "seed": run.recorded["seed"],
        "git commit": run.recorded["git_commit"],
    }
    return {name: value for name, value in rows.items() if value is not None}


def _table(rows: dict[str, Any]) -> str:
    """Names and single values; the lists are in results.json."""
    plain = {name: value for name, value in rows.items() if not isinstance(value, (dict, list))}
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in plain.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def _words_alone(text: str) -> str:
    """A name without what Markdown would take for more than words."""
    return " ".join(re.sub(r"[^\w.:+-]+", " ", str(text)).split())


def _code(*lines: str, language: str = "bash") -> str:
    """A block of code, which no line in it can end."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
