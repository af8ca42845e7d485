"""The project structure.

Layers, who may use which library, one backward, a tree that tells the truth.
"""

import ast
import re
import shutil
import subprocess

from helpers.processes import ROOT

PACKAGE = ROOT / "trainkit"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {
    path: ast.parse(path.read_text()) for path in [*FILES, *sorted((ROOT / "recipes").glob("*.py"))]
}
LIBRARIES = {
    "jinja2": {"report.page"},
    "matplotlib": {"report.plots"},
    "rich": {
        "display.notebook",
        "display.result_tables",
        "display.terminal",
        "display.training_line",
    },
    "tyro": {"commands.arguments", "commands.help_text"},
    "datasets": {
        "data.datasets.columns",
        "data.datasets.hub",
        "data.datasets.hub_tables",
        "data.datasets.synthetic",
    },
    "huggingface_hub": {
        "commands.hub_upload",
        "commands.model_card",
        "models.hf_files",
        "models.pretrained",
        "storage.hub_download",
    },
    "pyarrow": {"data.datasets.pack_shards", "data.datasets.parquet"},
}


def module_of(path) -> str:
    """trainkit/data/sampler.py -> data.sampler"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(tree: ast.AST) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_imports_point_one_way():
    """The contracts of import-linter in pyproject.toml: layers, and so no cycles."""
    done = subprocess.run(
        [shutil.which("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_package_imports_no_recipe():
    assert not [path for path in FILES if "recipes" in imported(TREES[path])]


def test_each_library_has_its_place():
    for library, places in LIBRARIES.items():
        users = {module_of(path) for path in FILES if library in imported(TREES[path])}
        assert users == places, library


def test_one_module_starts_workers():
    """torch's own DataLoader starts some that may never begin, and that a group's signal ends."""
    users = {
        module_of(path)
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.alias) and node.name == "DataLoader"
    }
    assert users == {"data.workers"}


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
    assert {name for name, called in calls if called == "print"} == {
        "notebook.py",
        "result_tables.py",
        "terminal.py",
    }


def test_what_the_user_did_wrong_is_a_user_error():
    """A plain ValueError would end a command with a traceback, as a bug."""
    plain = [
        f"{path.relative_to(ROOT)}, line {node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and getattr(getattr(node.exc, "func", node.exc), "id", "") in ("ValueError", "Exception")
    ]
    assert not plain


def test_optional_attributes_are_read_in_two_files():
    """What a task may lack is in trainkit.recipe, what a dataset may lack in
    trainkit.data.dataset_info."""
    probes = {
        (module_of(path), ast.unparse(node))
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and re.search(r"(^|[._])(task|data|dataset)$", ast.unparse(node.args[0]))
    }
    assert {module for module, _ in probes} == {"data.dataset_info"}, probes


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


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


def test_the_tree_is_true():
    """Every folder of the package, and every module at its top, has a line with a comment.

    No line is of nothing.
    """
    page = (ROOT / "docs/architecture.md").read_text()
    tree = re.search(r"```text\n(trainkit/.*?)```", page, re.DOTALL).group(1)
    listed, folders = set(), []
    for line in tree.splitlines():
        assert len(line.split(maxsplit=1)) == 2, f"{line} has no comment"
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [entry.rstrip("/")]
        listed.add("/".join(folders))
    packages = {path.parent for path in FILES} | {
        path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
    }
    assert {name for name in listed if name.startswith("trainkit")} == {
        str(p.relative_to(ROOT)) for p in packages
    }
    assert all((ROOT / name).exists() for name in listed)


def test_both_commands_are_in_the_readme_and_the_gate():
    for command in (
        "pip install . && accelerate launch -m trainkit recipes/seg_ade20k.py --sample",
        'pip install ".[test]" && pytest',
    ):
        for file in ("README.md", ".ci/run"):
            assert command in (ROOT / file).read_text(), (file, command)


def test_tests_share_helpers_alone():
    """No test module imports another.

    Names of test files are unique over their folders, which are no packages.
    """
    files = sorted((ROOT / "tests").rglob("*.py"))
    for path in files:
        found = re.findall(r"\b(?:from|import) (?:conftest|test_\w+)\b", path.read_text())
        assert not found, f"{path.relative_to(ROOT)}: {found}"
    names = [path.name for path in files if path.name.startswith("test_")]
    assert len(set(names)) == len(names) > 60
