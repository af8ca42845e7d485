"""Record every number, text and exit code that a change of the code's shape must leave as it is.

Compare two records.

    python tests/helpers/frozen_numbers.py record OUT.json [--quick] [--only 'toy/*'] [--workers 2]
    python tests/helpers/frozen_numbers.py compare BEFORE.json AFTER.json [--allow LIST.txt]

Of every toy run and every recipe on generated data: the final weights, EMA weights and optimizer
state (SHA-256 of their bytes, with and without their names), the log without times, settings.json;
what evaluate, predict, export, doctor and push write; every help text; exit code and message of the
user errors in user_errors.txt. On one machine with one set of packages two records of the same code
are equal, bit for bit: one thread each, and no worker decides anything.

Only what outlives a change of the package's layout is used: `python -m trainkit`, the toy recipes'
RUNS and `run`, and the files of a run. Each command runs in a process forked from one that has
torch imported.

LIST.txt names what was changed on purpose, one a line: a pattern of paths as `compare` prints them,
and the reason. changed_on_purpose.txt is that of the redesign, from commit a5e1e33 on.
"""

import argparse
import atexit
import csv
import fnmatch
import functools
import hashlib
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TOYS = next(
    file
    for name in ("toys.py", "helpers/toy_recipes.py")
    if (file := ROOT / "tests" / name).exists()
)
USER_ERRORS = Path(__file__).with_name("user_errors.txt")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
# push and replay take no recipe
COMMANDS = ("train", "check", "doctor", "evaluate", "predict", "export")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb", "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}  # fmt: skip
LIMIT_S = 300  # of one command
CACHE = "cache"  # beside the runs; generated data were in data/sample before
# the size of a checkpoint has the digits of its seconds
TIMED = re.compile(r"((?<!timeout)_s|seconds|_gib|_per_device|data_wait)$|^bytes$")
MEASURED_OR_VERSION = re.compile(
    r", s \||images/s|GiB|git commit|\d+\.\d+\.\d+"
)  # lines of a model card
SURROUNDINGS = ("command", "versions", "git_commit", "git_changed")
TRAIN = ("--sample", "--workers", 0, "--seed", 3, "--log-every", 1, "--out", "run")
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
    "FSDP_MIN_NUM_PARAMS": "100",
}  # fmt: skip

# What a toy run needs from outside; None: not to be recorded here.
NEEDS = {
    "errors": {"ERRORS_CACHE": "cache"},
    "streamed": {"TOY_PARQUET": "parquet"},
    "long": {"TOY_STEPS": "40"},
    "hungry": {"TOY_MEMORY_GIB": "6"},
    "hungry-gpu": None,
    "hungry-gpu-2": None,
}
# Name -> toy run, number of processes, environment, options of trainkit.
WAYS = {
    "recognition-two": ("recognition", 2, {}, {}),
    "recognition-3-two": ("recognition-3", 2, {}, {}),
    "recognition-mixup-two": ("recognition-mixup", 2, {}, {}),
    "segmentation-two": ("segmentation", 2, {}, {}),
    "segmentation-lonely-two": ("segmentation-lonely", 2, {}, {}),
    "batch-norm-averaged-two": ("batch-norm-averaged", 2, {}, {}),
    "spare-two": ("spare", 2, {}, {}),
    "all-two": ("all", 2, {}, {}),
    "all-fsdp": ("all", 2, FSDP, {}),
    "segmentation-3-fsdp": ("segmentation-3", 2, FSDP, {}),
    "all-three": ("all", 3, {}, {}),
    "all-bf16": ("all", 1, {"ACCELERATE_MIXED_PRECISION": "bf16"}, {}),
    "segmentation-3-bf16": ("segmentation-3", 1, {"ACCELERATE_MIXED_PRECISION": "bf16"}, {}),
    "all-workers": ("all", 1, {}, {"workers": 2}),
    "all-background": ("all", 1, {}, {"async_checkpoint": True}),
    "segmentation-channels-last": ("segmentation", 1, {}, {"channels_last": True}),
    "batch-norm-precise": ("batch-norm", 1, {}, {"precise_bn": 16}),
    "skipped": ("planted", 1, {}, {"on_nonfinite": "skip"}),
    "skipped-two": ("planted", 2, {}, {"on_nonfinite": "skip"}),
    "stopped": ("planted", 1, {}, {}),
}
# Name -> recipe and settings, beside each recipe with none.
SETTINGS: dict[str, tuple] = {
    "recog_folder-decay": ("recog_folder", "--layer-decay", 0.5),
    "recog_imagenet-repeats": ("recog_imagenet", "--repeats", 2, "--image-sizes", "40:0,48:1"),
    "recog_imagenet-augment": (
        "recog_imagenet",
        "--rand-augment",
        2,
        9,
        "--erase",
        0.3,
        "--jitter",
        0.4,
        0.4,
        0.4,
    ),
    "recog_imagenet-cutmix": ("recog_imagenet", "--cutmix", 1.0, "--ema", 0.9),
    "seg_folder-losses": (
        "seg_folder",
        "--loss",
        "cross_entropy",
        "dice",
        "--photometric",
        "--cat-max-ratio",
        0.75,
    ),
    "seg_folder-windows": ("seg_folder", "--loss", "ohem", "--eval-window", 64, 48),
    "seg_voc-lovasz": ("seg_voc", "--model", "pspnet"),
}
QUICK = [
    "help", "errors/*", "recipe/recog_folder", "recipe/seg_folder", "toy/all", "toy/segmentation-3",
    "toy/recognition-two", "toy/skipped",
]  # fmt: skip


class Done(NamedTuple):
    """A command that has ended, and what it printed."""

    code: int
    out: str
    err: str


def start(call: Callable[[], Any], printed: Path, env: dict[str, str] | None = None) -> int:
    """Fork a process that does `call` and prints into `printed`.out and .err; its pid.

    It ends after LIMIT_S.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code: Any = 1
    try:
        signal.alarm(LIMIT_S)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(
                os.open(f"{printed}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number
            )
        os.environ.update(env or {})
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # an interpreter's end, which a forked process has not
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a forked process; -9 where signal 9 ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(call: Callable[[], Any], num_processes: int = 1, **env: str) -> Done:
    """Do `call` in forked processes, which find each other as those of torchrun do.

    What the first one printed.
    """
    printed = Path.cwd() / ".printed"
    if num_processes == 1:
        code = wait(start(call, printed, env))
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        group |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
        ranks = [str(rank) for rank in range(num_processes)]
        pids = [
            start(
                call,
                printed.with_name(f".printed{rank}"),
                {**env, **group, "RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in ranks
        ]
        code = max(map(wait, pids), key=abs)
        printed = printed.with_name(".printed0")
    return Done(
        code,
        *(Path(f"{printed}{suffix}").read_text(errors="replace") for suffix in (".out", ".err")),
    )


def trainkit(*words: Any, num_processes: int = 1, **env: str) -> Done:
    """`python -m trainkit ...`."""

    def command() -> None:
        sys.argv[:] = ["trainkit", *map(str, words)]
        sys.path[0] = os.getcwd()
        runpy.run_module("trainkit", run_name="__main__", alter_sys=True)

    return run(command, num_processes, **env)


def must(done: Done) -> Done:
    """Raises RuntimeError, with what it printed, where a command failed."""
    if done.code != 0:
        raise RuntimeError(f"exit code {done.code}: {done.out[-2000:]}\n{done.err[-4000:]}")
    return done


def without_places(text: str) -> str:
    """A text without the folders it was written in."""
    text = text.replace(str(Path.cwd() / CACHE / "trainkit" / "sample"), "data/sample")
    return text.replace(os.getcwd(), "HERE").replace(str(ROOT), "ROOT")


def in_one_line(done: Done) -> dict[str, Any]:
    """What a person reads, without boxes and folders; of a traceback the last line."""
    if "Traceback (most recent call last)" in done.err:
        done = done._replace(err=f"TRACEBACK {done.err.strip().splitlines()[-1]}")
    out, err = (
        " ".join(re.sub("[\u2500-\u257f]", " ", without_places(text)).split())
        for text in (done.out, done.err)
    )
    return {"exit": done.code, "stdout": without_measured(out), "stderr": without_measured(err)}


def without_measured(text: str) -> str:
    """A text without times, speeds, memory, process ids, and numbers of lines in files of ours."""
    text = re.sub(r"\d[\d.,]* ?(s|ms|min|images/s|GiB|MiB|KiB|MB|GB)\b", r"N \1", text)
    text = re.sub(r"\b\d+:\d\d(:\d\d)?\b|(?<=data wait )\d+(?= %)", "N", text)
    text = re.sub(r"\b(pid|process) \d+", r"\1 N", text)
    return re.sub(r"\b((?:recog|seg)\w*\.py, line) \d+", r"\1 N", text)


def without_times(value: Any) -> Any:
    """JSON without what is measured, and without the folders it was written in."""
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if not TIMED.search(name)}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return without_places(value) if isinstance(value, str) else value


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def hash_of(file: Path) -> str:
    return sha(file.read_bytes())


def read_safetensors(file: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> data type with shape, and bytes."""
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    found = {}
    for name, about in header.items():
        first, last = about["data_offsets"]
        found[name] = f"{about['dtype']} {about['shape']}", content[begin + first : begin + last]
    return found


def hash_tensors(tensors: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """One hash that knows the names, and one that stays when they change."""
    each = {name: sha(kind.encode() + content) for name, (kind, content) in tensors.items()}
    return {
        "number": len(each),
        "named": sha(json.dumps(sorted(each.items())).encode()),
        "values": sha(json.dumps(sorted(each.values())).encode()),
    }


def unpacked(value: Any) -> Any:
    """Plain JSON from a state.json, without its tensors."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {
            str(key): unpacked(item)
            for key, item in content
            if not (isinstance(item, dict) and "tensor" in item)
        }
    if kind in ("list", "tuple"):
        return [unpacked(item) for item in content]
    return value


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Part of the state, such as ema and optimizer -> hashes of its tensors, and its numbers."""
    found: dict[str, Any] = {}
    parts: dict[str, dict] = {}
    for name, content in read_safetensors(checkpoint / "state.safetensors").items():
        parts.setdefault(name.split(".")[1], {})[name] = content
    for name, tensors in parts.items():
        found[name] = {"tensors": hash_tensors(tensors)}
    for name, numbers in unpacked(json.loads((checkpoint / "state.json").read_text())).items():
        found.setdefault(name, {})["numbers"] = without_times(numbers)
    return found


def run_record(folder: Path = Path("run")) -> dict[str, Any]:
    """All that a run left and that does not depend on the clock."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    found: dict[str, Any] = {
        "files": [name for name in files if not Path(name).name.startswith(".")]
    }
    for name in ("settings.json", "summary.json", "results.json", "memory.json"):
        if (folder / name).exists():
            found[name] = without_times(json.loads((folder / name).read_text()))
    for name in SURROUNDINGS:
        found.get("settings.json", {}).pop(name, None)
    if (folder / "log.jsonl").exists():
        found["log"] = [
            without_times(json.loads(line))
            for line in (folder / "log.jsonl").read_text().splitlines()
        ]
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    if checkpoints:
        found["weights"] = hash_tensors(read_safetensors(checkpoints[-1] / "model.safetensors"))
        found["state"] = state_of(checkpoints[-1])
    return found


def load_toys() -> Any:
    """The module of toy recipes, with one run more, of which an image is NaN."""
    sys.path[:0] = [str(TOYS.parent), str(ROOT / "tests")]
    toys = importlib.import_module(TOYS.stem)

    def planted() -> Any:
        images = toys.Images(27, augment=False)
        images.images = images.images.float() / 64 - 1
        images.images[11, 1, 2, 3] = float("nan")
        return toys.recognition(train_data=images)

    toys.RUNS["planted"] = planted, {}
    return toys


def toy(
    name: str, num_processes: int, env: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """Train a toy recipe."""

    def train() -> None:
        toys = load_toys()
        if "TOY_PARQUET" in env and os.environ.get("RANK", "0") == "0":
            Path(env["TOY_PARQUET"]).mkdir(exist_ok=True)
            toys.write_parquet(Path(env["TOY_PARQUET"]))
        toys.run(name, Path("run"), **options)

    done = run(train, num_processes, **env)
    found = run_record()
    if options.get("async_checkpoint"):  # a save is logged when it has ended, among whatever steps
        found["log"].sort(key=lambda row: (row["step"], row["event"]))
    if done.code != 0:
        if done.code < 0:
            raise RuntimeError(f"signal {-done.code}: {done.err[-4000:]}")
        found |= {
            "exit": done.code,
            "error": re.sub(
                r"^[\w.]+\.(?=\w+: )", "", without_places(done.err.strip().splitlines()[-1])
            ),
        }
    return found


def toy_killed(name: str, reads: int) -> dict[str, Any]:
    """Kill a toy run where it reads its image number `reads`, and resume it."""
    killed = run(lambda: load_toys().run(name, Path("run")), TOY_READS=str(reads))
    must(run(lambda: load_toys().run(name, Path("run"))))
    return {"killed": killed.code, **run_record()}


def recipe(name: str, *settings: Any) -> dict[str, Any]:
    """Train a recipe on generated data for a fifth of an epoch."""
    short = ("--epochs", 0.2, "--warmup-epochs", 0)
    must(trainkit(f"recipes/{name}.py", *TRAIN, *short, *settings))
    found = run_record()
    if name in ("recog_folder", "seg_folder") and not settings:
        found["commands"] = commands(name)
    return found


def commands(name: str) -> dict[str, Any]:
    """What the commands make of the run of a recipe."""
    file, found = f"recipes/{name}.py", {}
    ways = {"evaluate": ()}
    if name == "seg_folder":
        ways["evaluate-scales"] = ("--scales", 0.75, 1.25, "--flip")
        ways["evaluate-windows"] = ("--window", 64, "--stride", 48)
        ways["evaluate-stored"] = ("--as-stored",)
    for way, words in ways.items():
        must(trainkit("evaluate", file, "--weights", "run", "--workers", 0, "--out", way, *words))
        found[way] = without_times(json.loads(Path(way, "results.json").read_text()))
    photos = sorted({path.parent for path in Path(CACHE).rglob("val/**/*.jpg")})[0]
    must(
        trainkit(
            "predict", file, photos, "--weights", "run", "--workers", 0, "--out", "predictions"
        )
    )
    written = sorted(path for path in Path("predictions").rglob("*") if path.is_file())
    found["predict"] = {str(path.relative_to("predictions")): hash_of(path) for path in written}
    for path in Path("predictions").glob("*.csv"):
        found["predict"][f"{path.name}-rows"] = list(csv.reader(path.open()))[:4]
    must(trainkit("export", file, "--weights", "run", "--out", "weights.safetensors"))
    found["export"] = {"safetensors": hash_tensors(read_safetensors(Path("weights.safetensors")))}
    must(
        trainkit(
            "export",
            file,
            "--weights",
            "run",
            "--out",
            "program.pt2",
            "--format",
            "torch-export",
        )
    )
    must(run(lambda: Path("outputs").write_bytes(outputs_of("program.pt2"))))
    found["export"]["torch-export"] = hash_of(Path("outputs"))
    done = trainkit("export", file, "--weights", "run", "--out", "graph.onnx", "--format", "onnx")
    if done.code == 0:  # the file holds the commit and names of classes
        must(run(lambda: Path("outputs").write_bytes(outputs_of_onnx("graph.onnx"))))
        found["export"]["onnx"] = hash_of(Path("outputs"))
    else:
        found["export"]["onnx"] = in_one_line(done)
    found["doctor"] = in_one_line(
        trainkit("doctor", file, "--sample", "--workers", 0, "--out", "doctor")
    )
    found["doctor"]["doctor.json"] = without_times(
        json.loads(Path("doctor", "doctor.json").read_text())
    )
    found["check"] = {"exit": trainkit("check", file, "--sample", "--workers", 0).code}
    must(trainkit("push", "run", "me/toy", "--folder", "published"))
    written = sorted(path for path in Path("published").rglob("*") if path.is_file())
    found["push"] = {"files": [str(path.relative_to("published")) for path in written]}
    card = without_measured(without_places(Path("published", "README.md").read_text()))
    found["push"]["card"] = [
        line for line in card.splitlines() if not MEASURED_OR_VERSION.search(line)
    ]
    return found


def outputs_of(program: str) -> bytes:
    """What an exported program says of a fixed image."""
    import torch

    pixels = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    model = torch.export.load(program).module()
    with torch.no_grad():
        outputs = model(pixels)
    values = outputs.values() if isinstance(outputs, dict) else [outputs]
    return b"".join(value.contiguous().numpy().tobytes() for value in values)


def outputs_of_onnx(graph: str) -> bytes:
    """What an exported graph says of the same image."""
    import onnxruntime
    import torch

    pixels = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64).numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return b"".join(
        each.tobytes() for each in session.run(None, {session.get_inputs()[0].name: pixels})
    )


def helps() -> dict[str, Any]:
    """Every help text, 100 columns wide."""
    asked = [("--help",), *((command, "--help") for command in (*COMMANDS[1:], "push", "replay"))]
    asked += [(f"recipes/{name}.py", "--help") for name in RECIPES]
    asked += [
        (command, f"recipes/{name}.py", "--help")
        for command in COMMANDS[1:]
        for name in ("recog_folder",)
    ]
    asked += [(command, "run", "--help") for command in ("push", "replay")]
    found = {}
    for words in asked:
        done = trainkit(*words, COLUMNS="100")
        found[" ".join(words)] = {
            "exit": done.code,
            "text": without_places(done.out + done.err).splitlines(),
        }
    return found


def user_errors(kind: str) -> dict[str, Any]:
    """Exit code and message of the lines of user_errors.txt under [kind], in their order."""
    write_faulty_files()
    if kind == "runs":
        train_for_errors()
    found: dict[str, Any] = {}
    section = None
    for line in USER_ERRORS.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == kind and line.strip() and not line.startswith("#"):
            name, words = line.split(":", 1)
            assert name not in found, f"two errors are called {name}"
            found[name] = in_one_line(trainkit(*shlex.split(words), COLUMNS="1000"))
    return found


def write_faulty_files() -> None:
    """Recipes, folders and images that user_errors.txt names."""
    from PIL import Image

    for name, text in {
        "empty.py": "x = 1\n",
        "number.py": "def recipe(lr: float = 0.1): return 3\n",
        "taken.py": "def recipe(seed: int = 1, lr: float = 0.1, window: int = 2): return 3\n",
        "imports.py": "import no_such.thing\n",
        "later.py": "def recipe():\n    import no_such\n",
        "syntax.py": "def recipe(:\n",
        "refused.py": (
            "import torch\ndef recipe(lr: float = 0.1):\n    torch.optim.SGD([torch.ones(1)],"
            " lr=-lr)\n"
        ),
        "bug.py": "def recipe():\n    return {}['deep inside']\n",
        "notes.txt": "hello",
        "full/thesis.tex": "...",
        "html.pth": "<!DOCTYPE html>",
        "torn.safetensors": "no header",
        "two.txt": "ant\nbee\n",
        "twice.txt": "ant\nant\n",
        "table.txt": "1 2\n",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    for split in ("train", "val"):
        for number in range(4):
            for name, value in (("ant", 60), ("bee", 180)):
                path = Path("mine", split, name, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24, 20), (value, 10 * number, 0)).save(path)
            for kind, image in (
                ("images", Image.new("RGB", (24, 20), (9 * number, 0, 0))),
                ("annotations", Image.new("L", (24, 20), 255 * (number % 2))),
            ):
                path = Path("masks", kind, split, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    shutil.copytree("mine", "torn_images")
    for path in Path("torn_images", "train", "ant").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    shutil.copytree("mine", "one_class")
    for split in ("train", "val"):
        shutil.rmtree(Path("one_class", split, "bee"))
    shutil.copytree("mine", "other_classes")
    for split in ("train", "val"):
        Path("other_classes", split, "bee").rename(Path("other_classes", split, "wasp"))
    Path("nothing_in_it").mkdir()


def train_for_errors() -> None:
    """Two runs, and copies of one of them that are damaged in one place each."""
    small = ("--epochs", 1, "--batch-size", 4, "--workers", 0, "--warmup-epochs", 0)
    folder, masks = ("recipes/recog_folder.py", "recipes/seg_folder.py")
    model = ("--model", "small", "--no-pretrained", "--size", 16)
    must(
        trainkit(folder, "--data", "mine", *model, *small, "--checkpoint-every", 1, "--out", "run")
    )
    words = (
        "--data",
        "masks",
        "--classes",
        "sky,road",
        "--mask-values",
        "0,255",
        "--model",
        "fcn",
        "--backbone",
        "small",
        "--no-pretrained",
    )
    must(trainkit(masks, *words, "--long-side", 24, "--crop", 16, *small, "--out", "seg"))
    trainkit(
        folder, "--sample", "--lr", "1e30", "--warmup-epochs", 0, "--workers", 0, "--out", "nan"
    )
    for name in (
        "lacks",
        "json",
        "setting",
        "summary",
        "log",
        "weights",
        "state",
        "manifest",
        "recipe",
        "results",
    ):
        shutil.copytree("run", f"run-{name}")
    Path("run-lacks/settings.json").write_text("{}")
    Path("run-json/settings.json").write_text('{"settings": {')
    settings = json.loads(Path("run/settings.json").read_text())
    settings["settings"]["no_such"] = 7
    Path("run-setting/settings.json").write_text(json.dumps(settings))
    Path("run-summary/summary.json").write_text("[]")
    Path("run-log/summary.json").unlink()
    Path("run-log/log.jsonl").write_text("not a row\n" * 3)
    for checkpoint in Path("run-weights/checkpoints").glob("step-*"):
        (checkpoint / "model.safetensors").write_bytes(
            (checkpoint / "model.safetensors").read_bytes()[:-9]
        )
    for checkpoint in Path("run-state/checkpoints").glob("step-*"):
        (checkpoint / "state.json").unlink()
    for checkpoint in Path("run-manifest/checkpoints").glob("step-*"):
        (checkpoint / "manifest.json").write_text("{")
    for name in ("weights", "state", "manifest"):
        Path(f"run-{name}/summary.json").unlink()
    Path("run-recipe/recipe.py").unlink()
    Path("run-results/results.json").write_text("{")
    shutil.copy(
        sorted(Path("run/checkpoints").glob("step-*"))[-1] / "model.safetensors", "bare.safetensors"
    )
    shutil.copy(
        sorted(Path("seg/checkpoints").glob("step-*"))[-1] / "model.safetensors",
        "foreign.safetensors",
    )


def all_jobs() -> dict[str, Callable[[], Any]]:
    """Name -> what to do in a folder of its own, the longest first."""
    jobs: dict[str, Callable[[], Any]] = {"errors/runs": functools.partial(user_errors, "runs")}
    jobs["recipe/seg_folder"] = functools.partial(recipe, "seg_folder")
    jobs["recipe/recog_folder"] = functools.partial(recipe, "recog_folder")
    jobs["errors/recipes"] = functools.partial(user_errors, "recipes")
    jobs["help"] = helps
    for name in RECIPES:
        jobs.setdefault(f"recipe/{name}", functools.partial(recipe, name))
    for name, words in SETTINGS.items():
        jobs[f"recipe/{name}"] = functools.partial(recipe, *words)
    ways = {
        name: (name, 1, NEEDS.get(name, {}), {}) for name in load_toys().RUNS if name != "planted"
    }
    for name, (which, num_processes, env, options) in {**ways, **WAYS}.items():
        if env is not None:
            jobs[f"toy/{name}"] = functools.partial(toy, which, num_processes, env, options)
    jobs["toy/all-killed"] = functools.partial(toy_killed, "all", 70)
    jobs["toy/all-dense-killed"] = functools.partial(toy_killed, "all-dense", 70)
    return jobs


def record(out: Path, patterns: list[str], num_jobs: int) -> int:
    """Do the jobs that match, `num_jobs` at a time, and write the results; 1 where one failed."""
    import accelerate  # noqa: F401
    import rich  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401
    import tyro  # noqa: F401

    from trainkit import train  # noqa: F401, and with it most of the package

    torch.set_num_threads(1)
    jobs = all_jobs()
    waiting = [name for name in jobs if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    found: dict[str, Any] = {}
    failed: list[str] = []
    running: dict[int, tuple[str, Path, float]] = {}
    scratch = Path(
        tempfile.mkdtemp(prefix="frozen-numbers-")
    )  # a TemporaryDirectory would go with the first forked process that ends
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                name = waiting.pop(0)
                folder = scratch / name.replace("/", "-")
                folder.mkdir()
                (folder / "recipes").symlink_to(ROOT / "recipes")
                pid = start(functools.partial(do, jobs[name], folder), folder.with_suffix(".job"))
                running[pid] = name, folder, time.monotonic()
            pid, status = os.wait()
            name, folder, began = running.pop(pid)
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
            if status == 0:
                found[name] = json.loads((folder / ".result.json").read_text())
            else:
                failed.append(name)
                print(folder.with_suffix(".job.err").read_text(), flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch)
    about = {
        "commit": git("rev-parse", "HEAD"),
        "changed": git("status", "--porcelain").splitlines(),
    }
    about |= {"torch": torch.__version__, "all": patterns == ["*"]}
    out.write_text(
        json.dumps({"about": about, "jobs": dict(sorted(found.items()))}, indent=1) + "\n"
    )
    print(f"{len(found)} jobs in {out}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def do(job: Callable[[], Any], folder: Path) -> None:
    """A job, in its folder, which gets its result."""
    signal.alarm(0)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path.cwd() / CACHE)  # generated data lie in it
    result = job()
    (folder / ".result.json").write_text(json.dumps(result))


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True
    ).stdout.strip()


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path -> number, text or list of such, of nested JSON."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        yield path, value
        return
    for name, item in value.items():
        yield from flat(item, f"{path} > {name}" if path else name)


def compare(before: Path, after: Path, allow: Path | None) -> int:
    """Print what differs and is not allowed; 1 where there is any.

    Of a record of some jobs only these are compared.
    """
    old, new = (json.loads(path.read_text()) for path in (before, after))
    names = old["jobs"].keys() | new["jobs"].keys()
    for each in (old, new):
        if not each["about"]["all"]:
            names &= each["jobs"].keys()
    mine, theirs = (
        dict(flat({name: each["jobs"].get(name, {}) for name in sorted(names)}))
        for each in (old, new)
    )
    lines = allow.read_text().splitlines() if allow else []
    patterns = {
        line.split("  ")[0].strip(): 0
        for line in lines
        if line.strip() and not line.startswith("#")
    }
    different = 0
    for path in sorted(mine.keys() | theirs.keys()):
        if path in mine and path in theirs and mine[path] == theirs[path]:
            continue
        matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)]
        for pattern in matching:
            patterns[pattern] += 1
        if not matching:
            different += 1
            print(f"{path}\n{difference(mine.get(path, 'nothing'), theirs.get(path, 'nothing'))}")
    for pattern, number in patterns.items():
        print(f"allowed {number:5d}  {pattern}")
    print(
        f"{len(names)} jobs, {len(mine)} values before and {len(theirs)} after: {different} differ,"
        " unasked"
    )
    return 1 if different else 0


def difference(before: Any, after: Any) -> str:
    """Both, or of long lists and texts the lines that differ."""
    if isinstance(before, list) and isinstance(after, list):
        lines = [f"  - {item}" for item in before if item not in after]
        lines += [f"  + {item}" for item in after if item not in before]
        return "\n".join(lines[:40]) or "  (another order)"
    return f"  - {before}\n  + {after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument(
        "--only", action="append", help="pattern of jobs, such as 'toy/*'; may be given again"
    )
    recording.add_argument("--quick", action="store_true", help="some of each kind, in about 90 s")
    recording.add_argument("--workers", type=int, default=2, help="jobs at a time")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument(
        "--allow", type=Path, help="patterns of paths, two spaces, the reason; one a line"
    )
    asked = parser.parse_args()
    if asked.command == "compare":
        return compare(asked.before, asked.after, asked.allow)
    return record(
        asked.out.resolve(), (asked.only or []) + QUICK * asked.quick or ["*"], asked.workers
    )


if __name__ == "__main__":
    if "record" in sys.argv[1:2] and any(
        os.environ.get(name) != value for name, value in ENVIRONMENT.items()
    ):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    sys.exit(main())
