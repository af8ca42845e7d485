"""What `import trainkit` gives, to programs and to editors."""

import ast
import sys
from pathlib import Path

import trainkit
from helpers.processes import ROOT, run


def test_public_names_are_listed_without_torch(tmp_path):
    program = (
        "import sys, trainkit; names = dir(trainkit); "
        "assert {'train', 'evaluate', 'Recipe', 'Options', '__version__'} <= set(names), names; "
        "assert 'torch' not in sys.modules; "
        "from trainkit import Recipe; assert 'torch' in sys.modules; print(Recipe.__name__)"
    )
    assert (
        run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout == "Recipe\n"
    )


def test_editors_see_the_names_that_load_late():
    """The imports below TYPE_CHECKING, which never run, are the names that `__getattr__` finds."""
    tree = ast.parse(Path(trainkit.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    shown = {alias.name: node.module for node in block.body for alias in node.names}
    assert shown == trainkit._HOMES and sorted(shown) == trainkit.__all__
    assert all(getattr(trainkit, name).__module__.startswith("trainkit.") for name in shown)


def test_annotations_are_for_others_too():
    assert (ROOT / "trainkit" / "py.typed").read_text() == ""
    assert "trainkit = py.typed" in (ROOT / "setup.cfg").read_text()
