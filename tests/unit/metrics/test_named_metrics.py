"""Metrics by name, against torchmetrics given all labels and against numbers worked out by hand."""

import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from torchmetrics import functional

from helpers.interruptions import resume
from helpers.logs import rows
from helpers.toy_recipes import CLASSES, recognition, segmentation
from trainkit import Options, train
from trainkit.engine.metric_checks import try_metrics
from trainkit.errors import MissingFileError, UserError
from trainkit.metrics.named import WithArguments, named_metric
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

LOCAL = Path(__file__).parents[2] / "helpers" / "macro_recall.py"
FUNCTIONS = {
    "F1Score:average=macro": (functional.f1_score, {"average": "macro"}),
    "F1Score:average=micro": (functional.f1_score, {"average": "micro"}),
    "F1Score:average=none": (functional.f1_score, {"average": "none"}),
    "Precision:average=weighted": (functional.precision, {"average": "weighted"}),
    "Recall:average=macro": (functional.recall, {"average": "macro"}),
    "Accuracy:average=macro": (functional.accuracy, {"average": "macro"}),
    "Specificity:average=macro": (functional.specificity, {"average": "macro"}),
    "FBetaScore:beta=2.0,average=macro": (functional.fbeta_score,
                                          {"beta": 2.0, "average": "macro"}),
    "JaccardIndex": (functional.jaccard_index, {}),
    "CohenKappa:weights=linear": (functional.cohen_kappa, {"weights": "linear"}),
    "MatthewsCorrCoef": (functional.matthews_corrcoef, {}),
    "ConfusionMatrix:normalize=true": (functional.confusion_matrix, {"normalize": "true"}),
}  # fmt: skip


def labels(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randint(5, shape, generator=generator)
    noise = torch.randint(5, shape, generator=generator)
    kept = torch.rand(shape, generator=generator) < 0.6
    return torch.where(kept, references, noise), references


def expected(name, predictions, references):
    function, arguments = FUNCTIONS[name]
    return function(predictions, references, task="multiclass", num_classes=5, **arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_metric_of_torchmetrics_by_name(name):
    """Of two batches, twice; labels below 0 count nowhere."""
    metric = named_metric(f"torchmetrics:{name}", 5)
    for seed in range(2):
        predictions, references = labels((90,), seed)
        for part in (slice(0, 40), slice(40, 90)):
            metric.add_batch(
                predictions=predictions[part].numpy(), references=references[part].numpy()
            )
        metric.add_batch(predictions=np.array([3, 3]), references=np.array([-1, -1]))
        (value,) = metric.compute().values()
        torch.testing.assert_close(value, expected(name, predictions, references))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_segmentation_it_follows_from_the_confusion_matrix(name):
    predictions, references = labels((4, 9, 11))
    stored = references.clone()
    stored[:, 0] = 255
    task = Segmentation(5, extra_metrics=[f"torchmetrics:{name}"])
    (metric,) = task.metrics()
    for part in (slice(0, 1), slice(1, 4)):
        metric.add_batch(predictions=predictions[part], references=stored[part])
    results = metric.compute()
    (key,) = results.keys() - Segmentation(5).metrics()[0].compute().keys()
    torch.testing.assert_close(results[key], expected(name, predictions[:, 1:], references[:, 1:]))


def test_names_of_results():
    def keys(*names):
        task = Recognition(5, extra_metrics=names)
        results = []
        for metric in task.metrics()[-len(names) :]:
            metric.add_batch(predictions=np.arange(5), references=np.arange(5))
            results += metric.compute()
        return results

    assert keys("torchmetrics:F1Score", "torchmetrics:F1Score:average=macro") == [
        "F1Score",
        "F1Score_macro",
    ]
    assert keys("torchmetrics:FBetaScore:beta=2.0,average=none") == ["FBetaScore_beta_2.0_none"]
    assert keys(f"evaluate:{LOCAL}:average=macro") == ["recall_macro"]


def test_a_metric_of_evaluate_from_a_file():
    metric = named_metric(f"evaluate:{LOCAL}:average=macro", 3)
    metric.add_batch(predictions=np.array([0, 1, 1]), references=np.array([0, 1, 0]))
    metric.add_batch(predictions=np.array([2, 0, 2]), references=np.array([1, -1, 1]))
    assert metric.compute() == {"recall_macro": (1 / 2 + 1 / 3) / 2}
    metric.add_batch(predictions=np.array([1]), references=np.array([1]))
    assert metric.compute() == {"recall_macro": 1.0}  # the first ones are forgotten


def test_an_object_of_evaluate_with_arguments(tmp_path):
    metric = evaluate.load(str(LOCAL), keep_in_memory=True)
    recipe = recognition(
        epochs=0.75,
        task=Recognition(CLASSES, extra_metrics=[WithArguments(metric, average="macro")]),
    )
    train(recipe, Options(out=tmp_path / "run", workers=0))
    (results,) = rows(tmp_path / "run", "evaluate")
    assert 0 <= results["recall"] <= 1


def recognised(*metrics):
    return lambda: Recognition(3, extra_metrics=metrics)


def segmented(*metrics):
    return lambda: Segmentation(3, extra_metrics=metrics)


@pytest.mark.parametrize(
    "task, message",
    [
        (
            lambda: Recognition(3, extra_metrics=[evaluate.load(str(LOCAL), keep_in_memory=True)]),
            r"metric \w+ cannot be computed: TypeError: .*missing.*'average'.*WithArguments",
        ),
        (recognised("torchmetrics:F1Scor"),
         "no classification metric F1Scor; did you mean F1Score"),
        (recognised("torchmetrics:F1Score:average=makro"), "not take its arguments: .*average"),
        (recognised("torchmetrics:F1Score:avrage=macro"), "does not take its arguments: .*avrage"),
        (recognised("torchmetrics:AUROC"), "metric torchmetrics:AUROC cannot be computed"),
        (recognised("F1Score"), "metric F1Score is unknown: give torchmetrics:NAME"),
        (
            recognised("torchmetrics:Recall", "torchmetrics:Recall"),
            "metric torchmetrics:Recall computes Recall, and so does metric torchmetrics:Recall",
        ),
        (segmented("torchmetrics:BinaryF1Score"), "BinaryF1Score is not of 3 classes"),
        (segmented("torchmetrics:F1Score:task=binary"), "leave task and num_classes out"),
        (segmented("torchmetrics:F1Score:num_classes=5"), "leave task and num_classes out"),
        (segmented("torchmetrics:MultilabelF1Score:num_labels=2"), "is not of 3 classes"),
        (segmented("torchmetrics:AUROC"), "does not follow from the confusion matrix"),
        (segmented("torchmetrics:F1Score:ignore_index=1"), "ignore_index is no argument"),
        (segmented(f"evaluate:{LOCAL}:average=macro"), "give torchmetrics:NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_before_the_first_step(task, message):
    with pytest.raises(UserError, match=message):
        try_metrics(task())


def test_a_metric_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        MissingFileError, match=re.escape("metric evaluate:no/such_metric: its script")
    ):
        named_metric("evaluate:no/such_metric", 3)


def test_on_two_processes_as_on_one(tmp_path):
    """Each process is given the labels of both, and torchmetrics does not add them up again."""
    resume(tmp_path / "1", "named-metrics")
    resume(tmp_path / "2", "named-metrics", processes=2)
    one, two = (rows(tmp_path / each / "named-metrics", "evaluate") for each in "12")
    for mine, theirs in zip(one, two, strict=True):
        for name in ("F1Score_macro", "recall_macro"):
            assert mine[name] == pytest.approx(theirs[name])
        assert sum(map(sum, mine["ConfusionMatrix"])) == 13  # images of the validation data
        assert mine["ConfusionMatrix"] == theirs["ConfusionMatrix"]


def test_segmentation_trains_with_them(tmp_path):
    task = Segmentation(CLASSES, extra_metrics=["torchmetrics:F1Score:average=micro"])
    recipe = segmentation(epochs=0.3, task=task)
    train(recipe, Options(out=tmp_path / "run", workers=0))
    (results,) = rows(tmp_path / "run", "evaluate")
    assert results["F1Score_micro"] == pytest.approx(results["pixAcc"])


@pytest.mark.parametrize("name", ["R2Score", "PearsonCorrCoef", "MeanAbsolutePercentageError"])
def test_a_metric_of_values_is_of_known_pixels_within_the_limits(name):
    """Against torchmetrics' own function, given these pixels alone."""
    generator = torch.Generator().manual_seed(0)
    wanted = 0.5 + 4 * torch.rand(3, 5, 7, generator=generator)
    found = wanted + 0.3 * torch.randn(wanted.shape, generator=generator)
    wanted[:, 0] = torch.nan
    known = wanted.isfinite() & (wanted >= 1) & (wanted <= 4)
    task = DenseRegression(limits=(1.0, 4.0), extra_metrics=[f"torchmetrics:{name}"])
    try_metrics(task)
    metric = task.metrics()[-1]
    for one, other in zip(found, wanted):
        metric.add_batch(predictions=one[None].numpy(), references=other[None].numpy())
    reference = {
        "R2Score": functional.r2_score,
        "PearsonCorrCoef": functional.pearson_corrcoef,
        "MeanAbsolutePercentageError": functional.mean_absolute_percentage_error,
    }[name]
    expected = reference(found[known].double(), wanted[known].double()).item()
    assert metric.compute()[name].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name, message", [
    ("evaluate:mse", "is given labels, and each pixel has a number"),
    ("torchmetrics:F1Score", "torchmetrics has no regression metric F1Score"),
    ("torchmetrics:R2Scor", "did you mean R2Score?"),
    ("torchmetrics:SpearmanCorrCoef", "keeps every pixel of the validation images"),
    ("torchmetrics:R2Score:adjust=1", "does not take its arguments"),
    ("torchmetrics:CosineSimilarity", "keeps every pixel"),
    ("torchmetrics:KLDivergence", "cannot be computed"),
])  # fmt: skip
def test_metrics_that_are_none_of_values(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        try_metrics(DenseRegression(extra_metrics=[name]))
