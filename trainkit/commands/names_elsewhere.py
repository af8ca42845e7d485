"""What settings and options are called in other programs, and here."""

from collections.abc import Collection

# Ours -> names in timm, transformers, Lightning, ultralytics, and others that people try. Where
# several of ours are meant, the first is named that the command or the recipe has.
ELSEWHERE = {
    "--lr": ("learning-rate", "lr0", "base-lr", "lr-base", "init-lr"),
    "--batch-size": (
        "batchsize", "batch", "bs", "batch-size-train", "train-batch-size",
        "per-device-train-batch-size", "per-gpu-train-batch-size", "devices-batch-size",
    ),
    "--eval-batch": (
        "eval-batch-size", "val-batch-size", "validation-batch-size", "test-batch-size",
        "per-device-eval-batch-size", "batch-size", "batch",
    ),
    "--epochs": ("max-epochs", "num-epochs", "num-train-epochs", "n-epochs", "nb-epochs"),
    "--out": (
        "output", "output-dir", "out-dir", "save-dir", "save-path", "project", "default-root-dir",
        "work-dir", "log-dir", "logdir", "checkpoint-dir", "run-dir",
    ),
    "--data": (
        "data-dir", "data-path", "data-root", "dataset", "dataset-dir", "dataset-name",
        "dataset-path", "train-dir", "train-data", "root", "input-dir",
    ),
    "--workers": (
        "num-workers", "n-workers", "dataloader-num-workers", "data-workers", "loader-workers",
        "jobs", "num-proc",
    ),
    "--weight-decay": ("wd", "decay", "l2", "opt-weight-decay"),
    "--model": ("arch", "architecture", "network", "net", "model-name", "model-name-or-path"),
    "--classes": ("num-classes", "nb-classes", "n-classes", "class-names", "names", "labels"),
    "--size": (
        "img-size", "image-size", "imgsz", "input-size", "img", "imsize", "resolution",
        "train-crop-size", "crop-size",
    ),
    "--crop": ("crop-size", "train-crop-size", "img-size", "image-size", "imgsz", "input-size"),
    "--crop-fraction": ("crop-pct", "crop-ratio"),
    "--optimizer": ("opt", "optim"),
    "--schedule": (
        "sched", "scheduler", "lr-scheduler", "lr-schedule", "lr-scheduler-type", "cos-lr",
    ),
    "--warmup-epochs": (
        "warmup", "warmup-steps", "warmup-ratio", "lr-warmup-epochs", "num-warmup-steps",
    ),
    "--clip-norm": (
        "clip-grad", "clip-grad-norm", "grad-clip", "max-grad-norm", "gradient-clip-val",
        "gradient-clip",
    ),
    "--ema": ("model-ema", "model-ema-decay", "ema-decay", "use-ema"),
    "--label-smoothing": ("smoothing", "label-smoothing-factor"),
    "--auto-augment": ("aa",),
    "--repeats": ("aug-repeats", "repeated-aug"),
    "--erase": ("reprob", "random-erasing"),
    "--erase-with": ("remode",),
    "--jitter": ("color-jitter",),
    "--stochastic-depth": ("drop-path", "drop-path-rate"),
    "--loss": ("bce-loss",),
    "--bce-threshold": ("bce-target-thresh",),
    "--label-sets": ("real-labels",),
    "--micro-batch": (
        "gradient-accumulation-steps", "accumulate-grad-batches", "grad-accum-steps",
        "accumulation-steps", "accum-iter", "grad-accum",
    ),
    "--init-from": (
        "checkpoint", "ckpt", "ckpt-path", "initial-checkpoint", "load-from", "finetune",
        "pretrained-weights", "weights", "from-checkpoint",
    ),
    "--resume": ("resume-from-checkpoint", "auto-resume", "resume-from"),
    "--log-every": ("log-interval", "logging-steps", "log-every-n-steps", "print-freq"),
    "--checkpoint-every": ("save-steps", "save-interval", "save-period", "save-freq"),
    "--keep-checkpoints": ("save-total-limit", "checkpoint-hist", "save-top-k"),
    "--evaluate-every": (
        "eval-steps", "eval-interval", "eval-every", "val-interval", "check-val-every-n-epoch",
    ),
    "--headline": ("eval-metric", "metric-for-best-model", "monitor"),
    "--metrics": ("metric",),
    "--patience": ("early-stopping", "early-stopping-patience", "early-stop"),
    "--track": ("report-to", "logger", "tensorboard", "wandb", "log-wandb", "mlflow"),
    "--activation-checkpointing": ("gradient-checkpointing", "grad-checkpointing"),
    "--sync-batch-norm": ("sync-bn", "sync-batchnorm"),
    "--val-share": (
        "val-split", "validation-split", "val-fraction", "val-ratio", "test-size", "valid-size",
        "val-size",
    ),
    "--fold": ("folds", "n-folds", "num-folds", "k-fold", "kfold"),
    "--ignore": ("ignore-index", "ignore-label", "ignore-id"),
    "--channels": ("in-chans", "in-channels", "num-channels"),
    "--no-pretrained": ("from-scratch", "scratch", "random-init"),
    "--threshold": ("conf", "confidence", "conf-threshold", "score-threshold"),
    "--top-k": ("topk",),
    "--half": ("fp16", "float16"),
    "--on-nonfinite": ("terminate-on-nan", "detect-anomaly"),
}  # fmt: skip
# what one of ours says beside its name
MEANING = {
    "--batch-size": ", the images of a step over all processes",
    "--micro-batch": ", the images of a forward pass, which sets the steps of accumulation",
    "--warmup-epochs": ", in epochs",
    "--erase-with": ", mean or noise",
    "--repeats": ", such as --repeats 3 with a third of the epochs",
    "--track": ", such as --track tensorboard",
    "--val-share": ", such as --val-share 0.2",
    "--fold": ", such as --fold 1/5",
    "--resume": ", which is auto: the same command again resumes its run",
    "--out": ", the folder of a run or of results",
}
PRECISION = (
    "the launcher chooses the precision: accelerate launch --mixed_precision bf16 -m trainkit ..."
)
LAUNCHERS = dict.fromkeys(
    ("--amp", "--use-amp", "--fp16", "--bf16", "--precision", "--mixed-precision", "--amp-dtype"),
    PRECISION,
)


def name_here(flag: str, flags: Collection[str]) -> str | None:
    """What a flag of another program is called here, as the end of a message.

    Args:
        flag: with two hyphens.
        flags: those that the command and the recipe have.

    Returns:
        None where it is one of `flags`, or no known one, or what it means is not among them.
    """
    flag = flag.replace("_", "-")
    if flag in flags:
        return None
    for ours, others in ELSEWHERE.items():
        known = ours in flags or ours.replace("--no-", "--") in flags
        if known and flag.removeprefix("--") in others:
            return f"here it is {ours}{MEANING.get(ours, '')}"
    return LAUNCHERS.get(flag)
