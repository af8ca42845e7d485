"""The house stays in order: arrows, sizes, one backward, a README that tells the truth."""

import ast
import re
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "trainkit"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {
    path: ast.parse(path.read_text()) for path in [*FILES, *sorted((ROOT / "recipes").glob("*.py"))]
}


def name_of(path: Path) -> str:
    """trainkit/data/sampler.py -> trainkit.data.sampler"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file; `from trainkit import x` counts as what x is."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found


def ours(path: Path) -> set[str]:
    return {
        name.removeprefix("trainkit.") for name in imports(path) if name.split(".")[0] == "trainkit"
    }


# Who may import what of ours. A file that is not here imports nothing of ours.
ARROWS = {
    "__main__": {"cli"},
    "cli": {"trainkit", "recipe", "options", "finding", "loop", "check", "doctor", "predict", "export", "push",
            "replay", "data.seeds", "display", "launched", "mistakes", "results", "run_files",
            "setting_values", "streams"},
    "loop": {
        "recipe", "options", "checkpoint", "display", "launch", "plan", "probe", "training", "step", "records",
        "nonfinite", "ema", "weights", "objective", "sharding", "evaluation", "finding", "data.repeatability",
        "data.workers",
        "signals", "metrics", "introduction", "labels", "optimizer_state",
    },
    "replay": {
        "recipe", "options", "run", "display", "launch", "plan", "training", "step", "records", "nonfinite",
        "data.reading", "checkpoint", "weights", "run_files",
    },
    "check": {
        "freezing", "probe", "recipe", "options", "run", "checkpoint", "display", "launch", "plan", "training", "step",
        "records", "nonfinite", "sharding", "weights", "data.loader", "data.order", "data.repeatability",
        "data.workers", "introduction", "labels", "optimizer_state", "evaluation",
    },
    "step": {
        "outputs", "training", "records", "memory", "optimizer_state", "sharding", "data.order", "data.seeds",
        "data.loader",
    },
    "labels": {"memory", "data.inventory", "data.masks", "data.reading", "data.repeated", "data.stages"},
    "records": {
        "labels", "training", "weights", "checkpoint", "packing", "nonfinite", "optimizer_state", "signals", "sharding",
        "data.inventory",
    },
    "nonfinite": {"training", "checkpoint", "finding", "data.loader", "data.reading"},
    "training": {
        "signals", "recipe", "options", "run", "run_files", "checkpoint", "saving", "undo", "ema", "display", "plan",
        "probe",
        "outputs", "objective", "sharding", "activations", "batch_norm", "evaluation", "introduction", "data.workers",
        "optimizer_state", "sharded_updates",
    },
    "evaluation": {
        "labels",
        "outputs", "recipe", "ema", "batch_norm", "metrics", "intervals", "windows", "objective", "sharding", "memory",
        "data.order", "data.seeds", "data.loader",
    },
    "windows": {"inference", "sharding"},
    "probe": {"recipe", "options", "outputs", "plan", "objective", "data.loader"},
    "recipe": {"outputs", "inference", "mistakes", "data.on_device", "data.spawning"},
    "options": {"inference"},
    "batch_norm": {"recipe", "objective", "sharding", "data.order", "data.seeds", "data.loader"},
    "ema": {"sharding"},
    "undo": {"sharding"},
    "optimizer_state": {"sharding"},
    "packing": {"sharding"},
    "sharded_updates": {"memory", "optimizer_state", "sharding"},
    "launch": {"launched", "limits", "sharding", "data.workers"},
    "objective": {"outputs", "recipe"},
    "display": {"launched", "streams"},
    "memory": {"limits"},
    "mistakes": {"limits"},
    "signals": {"launched"},
    "plan": {"recipe", "options", "data.order"},
    "finding": {"run", "recorded", "checkpoint"},
    "results": {"run", "setting_values", "checkpoint"},
    "run": {"options", "recorded", "checkpoint", "run_files", "setting_values"},
    "recorded": {"trainkit", "recipe", "run_files"},
    "checkpoint": {"packing", "run_files"},
    "saving": {"checkpoint"},
    "weights": {"checkpoint", "ema", "finding", "sharding", "weight_files"},
    "weight_files": {"checkpoint"},
    "introduction": {"recipe", "data.inventory"},
    "doctor": {
        "recipe", "display", "results", "data.examine", "data.reading", "data.repeatability", "data.workers",
        "introduction",
    },
    "predictions": {"recipe", "recognition", "segmentation", "data.palette"},
    "predict": {
        "outputs", "recipe", "options", "checkpoint", "display", "launch", "losses", "memory", "objective",
        "predictions", "results", "sharding", "weights", "windows", "data.folder", "data.images", "data.on_device",
        "data.reading", "data.workers", "data.listing", "data.file_names", "data.inventory",
        "finding",
    },
    "export": {"checkpoint", "display", "finding", "objective", "options", "outputs", "recipe", "trainkit", "weights"},
    "data.images": {"data.decoding", "data.headers", "data.palette", "data.sound_png"},
    "data.sound_png": {"data.headers"},
    "data.decoding": {"data.headers"},
    "data.examine": {
        "data.decoding", "data.images", "data.on_device", "data.order", "data.seeds", "data.reading", "data.repeated",
        "data.stages", "data.targets",
    },
    "push": {
        "card", "upload", "run", "run_files", "recorded", "checkpoint", "display", "finding", "options", "weights",
    },
    "data.minc": {"data.folder", "data.text"},
    "criteria": {"losses"},
    "metrics": {"pixels"},
    "overlap": {"criteria", "losses"},
    "calibration": {"metrics"},
    "recognition": {"outputs", "calibration", "criteria", "losses", "metrics", "data.targets", "data.transforms"},
    "segmentation": {
        "outputs", "criteria", "losses", "overlap", "metrics", "pixels", "data.targets", "data.transforms",
    },
    "data.repeatability": {
        "memory", "data.on_device", "data.reading", "data.seeds", "data.spawning", "data.workers",
    },
    "data.workers": {"data.spawning", "launched", "limits"},
    "data.seeds": {"data.generators"},
    "data.repeated": {"data.seeds", "data.wrapper"},
    "data.stages": {"data.wrapper"},
    "data.wrapper": {"data.on_device", "data.order", "data.reading"},
    "data.parquet": {"data.order", "display"},
    "data.loader": {"data.on_device", "data.reading", "data.workers"},
    "data.reading": {"data.on_device", "data.seeds", "data.targets", "memory"},
    "data.on_device": {"data.seeds", "data.targets"},
    "data.order": {"data.seeds"},
    "data.folder": {
        "data.file_names", "data.images", "data.inventory", "data.listing", "data.masks", "data.palette",
        "data.text",
    },
    "data.inventory": {"data.file_names", "data.on_device", "data.wrapper"},
    "data.listing": {"data.cache", "data.file_names", "data.inventory", "display"},
    "data.mask_colors": {"data.cityscapes", "data.palette", "data.text", "data.voc"},
    "models.backbone": {"models.names", "models.pretrained", "models.small"},
    "models.classifiers": {"recipe", "recognition", "models.names", "models.pretrained", "models.small"},
    "models.encnet": {"models.dense", "models.encoding"},
    "models.pspnet": {"models.dense"},
    "models.upernet": {"models.dense", "models.pspnet"},
    "models.deepten": {"models.encoding"},
    "models.segmenters": {
        "models.backbone", "models.encnet", "models.pretrained", "models.pspnet", "models.small", "models.upernet",
    },
    "data.masks": {"data.file_names", "data.images", "data.palette", "data.text"},
    "data.ade20k": {"data.folder", "data.masks"},
    "data.voc": {"data.folder", "data.masks"},
    "data.pcontext": {"data.folder", "data.masks", "data.text"},
    "data.cityscapes": {"data.folder", "data.masks"},
    "data.coco": {"data.coco_index", "data.masks", "data.voc", "display"},
    "data.coco_index": {"data.cache", "data.rle", "data.text"},
    "data.hub": {
        "data.images", "data.masks", "data.order", "data.parquet", "data.columns", "data.inventory",
        "data.split_files",
    },
    "data.split_files": {"data.inventory"},
    "data.source": {
        "data.folder", "data.hub", "data.masks", "data.palette", "data.split_files", "data.file_names",
        "data.inventory", "data.listing",
    },
    "data.sample": {"data.folder"},
}  # fmt: skip


def test_arrows_point_one_way():
    assert len(FILES) >= 25
    for name, path in MODULES.items():
        short = name.removeprefix("trainkit").removeprefix(".") or "trainkit"
        assert ours(path) <= ARROWS.get(short, set()), (
            f"{short} imports {ours(path) - ARROWS.get(short, set())}"
        )
        assert not any(each.split(".")[0] == "recipes" for each in imports(path))


def test_no_circles():
    def reach(name: str, seen: frozenset) -> None:
        assert name not in seen, f"circle through {name}"
        for each in ARROWS.get(name, ()):
            reach(each, seen | {name})

    for name in ARROWS:
        reach(name, frozenset())


def test_who_may_know_whom():
    for library, rooms in {
        "accelerate": {
            "sharded_updates",
            "launch",
            "sharding",
            "batch_norm",
            "windows",
            "check",
            "training",
            "records",
            "replay",
            "evaluation",
            "predict",
        },
        "rich": {"display"},
        "tyro": {"cli"},
        "datasets": {"data.columns", "data.hub", "data.sample"},
        "huggingface_hub": {"upload", "card"},
        "pyarrow": {"data.parquet"},
    }.items():
        users = {
            name.removeprefix("trainkit.")
            for name, path in MODULES.items()
            if any(each.split(".")[0] == library for each in imports(path))
        }
        assert users == rooms, library


def test_one_room_starts_processes():
    """torch's own loader starts some that may never begin, and that a signal to the group ends."""
    users = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.alias) and node.name == "DataLoader"
    }
    assert users == {"trainkit.data.workers"}


def test_one_backward_and_no_print():
    calls = [
        (path.name, node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name))
    ]
    assert [name for name, called in calls if called == "backward"] == ["step.py"]
    names = [
        node.id for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Name)
    ]
    assert not {"eval", "exec"} & set(names)
    assert {name for name, called in calls if called == "print"} == {"display.py"}


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_rooms_stay_small():
    for path, tree in TREES.items():
        lines = len(path.read_text().splitlines())
        assert lines <= 350, f"{path.name} has {lines} lines"
        for function in functions(tree):
            length = function.end_lineno - function.lineno + 1
            assert length <= (100 if function.name == "recipe" else 80), (
                f"{path.name}: {function.name} has {length} lines"
            )


def test_public_functions_are_typed_and_described():
    for path in FILES:
        for node in ast.walk(TREES[path]):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.FunctionDef):
                if any(
                    node in ast.walk(outer) and node is not outer
                    for outer in functions(TREES[path])
                ):
                    continue  # a function inside a function
                assert node.returns is not None, (
                    f"{path.name}: {node.name} does not say what it returns"
                )
                typed = [
                    a
                    for a in [*node.args.args, *node.args.kwonlyargs]
                    if a.arg not in ("self", "cls")
                ]
                assert all(a.annotation for a in typed), f"{path.name}: {node.name}"
            is_property = any(
                getattr(d, "id", "") == "property" for d in getattr(node, "decorator_list", [])
            )
            assert ast.get_docstring(node) or is_property, (
                f"{path.name}: {node.name} has no docstring"
            )


def test_readme_tree_is_true():
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(trainkit/.*?)```", readme, re.DOTALL).group(1)
    listed, folders = set(), []
    for line in tree.splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [entry.rstrip("/")]
        if entry.endswith("/"):
            continue
        listed.add("/".join(folders))
    real = {
        str(path.relative_to(ROOT))
        for folder in ("trainkit", "recipes", "accelerate_configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "__init__.py"
    }
    assert {
        name
        for name in listed
        if name.split("/")[0] in ("trainkit", "recipes", "accelerate_configs")
    } == real
    assert all((ROOT / name).exists() for name in listed)
    lines = tree.splitlines()
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "every file has a comment"


def test_both_commands_are_in_the_readme_and_the_gate():
    for command in (
        "pip install . && accelerate launch -m trainkit recipes/seg_ade20k.py --sample",
        'pip install ".[test]" && pytest',
    ):
        for file in ("README.md", ".ci/run"):
            assert command in (ROOT / file).read_text(), (file, command)
