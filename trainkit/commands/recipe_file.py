"""Makes a Recipe from a recipe's file: loading, signature, settings, --sample."""

import ast
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import trainkit
from trainkit.commands.recipe_names import instead_of
from trainkit.data.spawning import load_file
from trainkit.errors import MissingFileError, MissingPackageError, ReportedError, UserError
from trainkit.recipe import Recipe
from trainkit.settings.variants import flat_doc, flat_signature, packed
from trainkit.storage.shipped import shipped


class RecipeFile:
    """The `recipe` of a Python file, whatever callable it is, and the module around it.

    Called and inspected as the function itself; its signature has annotations as objects.

    Args:
        function: that builds the recipe.
        module: it is of.
        path: the file of the function; None for that of the module.
    """

    def __init__(
        self, function: Callable[..., Recipe], module: ModuleType, path: Path | None = None
    ):
        self.function, self.module = function, module
        if path is None:
            assert module.__file__ is not None  # it was loaded from one
            path = Path(module.__file__)
        self.path = path
        self.__signature__ = _signature(function, self.path)
        self.__doc__ = flat_doc(_documented(function))

    def __call__(self, **settings: Any) -> Any:
        """Call the function with the flat settings."""
        return self.function(**packed(self.function, settings))

    @property
    def sample(self) -> Any:
        """SAMPLE of the file, or of the one that its function was imported from."""
        elsewhere = getattr(innermost(self.function), "__globals__", {})
        return getattr(self.module, "SAMPLE", elsewhere.get("SAMPLE", {}))

    def sample_settings(self) -> dict[str, Any]:
        """What `--sample` changes.

        Raises:
            UserError: SAMPLE is no dict of settings of the recipe.
        """
        if not isinstance(self.sample, Mapping):
            raise UserError(
                f"SAMPLE in {self.path} is of type {type(self.sample).__name__}; it must be a dict"
            )
        unknown = sorted(set(self.sample) - set(self.__signature__.parameters))
        if unknown:
            raise UserError(f"SAMPLE in {self.path} names {unknown}, which are no settings of it")
        return dict(self.sample)


def innermost(function: Callable) -> Callable:
    """The function that decorators and partials wrap."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = (
            function.func if isinstance(function, functools.partial) else function.__wrapped__
        )
    return function


def _documented(function: Callable) -> Callable:
    """The function itself where it has a docstring, else what decorators and partials wrap."""
    own = not isinstance(function, functools.partial) and inspect.getdoc(function)
    return function if own else innermost(function)


def _signature(function: Callable, path: Path) -> inspect.Signature:
    """The settings of a recipe.

    Raises UserError where they cannot be seen, or not given by name.
    """
    try:
        signature = flat_signature(function)
    except NameError as error:
        raise UserError(
            f"{path}: an annotation of `recipe` names {error.name}, which is not there when it"
            " runs: import it, and not under TYPE_CHECKING alone"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the settings of `recipe` cannot be seen: {error}. Make it a function"
        ) from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    unnamed = [str(each) for each in signature.parameters.values() if each.kind not in named]
    if unnamed:
        raise UserError(
            f"{path}: `recipe` takes {', '.join(unnamed)}, which no flag can name: name each"
            " setting, and put functools.wraps into a decorator"
        )
    return signature


def load_recipe(path: Path) -> RecipeFile:
    """The function `recipe` of the Python file at `path`; nothing is built yet.

    Raises:
        UserError, MissingFileError: file, function or an imported module are missing, or the file
            is not Python.
    """
    if (path / "settings.json").is_file():
        raise UserError(
            f"{path} is a run, and this takes a recipe first; evaluate, predict, export, push and"
            f" replay take a run: trainkit evaluate {path}"
        )
    if not path.is_file():
        raise MissingFileError(f"no recipe at {path}{instead_of(path)}")
    if path.suffix != ".py":
        raise UserError(
            f"{path} is not a Python file: a recipe is one, with a function recipe(...)"
        )
    sys.path.insert(0, str(path.parent.resolve()))  # a variant imports the recipe it varies
    if str(shipped("recipes")) not in sys.path:
        sys.path.append(str(shipped("recipes")))  # so does the copy of a variant
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:  # such as one with null bytes
        where = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(
            f"{path}{where} is not Python: {getattr(error, 'msg', error)}. Correct it, or put a"
            " whole copy in its place"
        ) from error
    try:
        with _missing_module_reported(path):
            module = load_file(f"recipe_{path.stem}", path)
    except ReportedError:
        raise
    except ValueError as error:
        if _refusing_call(error, path) is not None:
            raise
        raise UserError(str(error)) from error
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise UserError(
            f"{path} has no function `recipe`: define `def recipe(...) -> Recipe:` in it"
        )
    return RecipeFile(function, module)


def build(recipe: RecipeFile, settings: dict[str, Any]) -> Recipe:
    """Call the recipe's function, and check that it returned a Recipe.

    Raises:
        UserError: it did not, or a library that the recipe calls refuses what it is given, as
            torch.optim does lr=-1.
    """
    try:
        with _missing_module_reported(recipe.path):
            built = recipe(**settings)
    except ReportedError:
        raise
    except (ValueError, TypeError) as error:
        call = _refusing_call(error, recipe.path)
        if call is None and isinstance(error, ValueError):  # the recipe's own
            raise UserError(str(error)) from error
        if call is None:
            raise
        parameters = inspect.signature(recipe).parameters
        other = [
            f"{name}={value}"
            for name, value in settings.items()
            if value != parameters[name].default
        ]
        raise UserError(
            f"{call}, does not take what it was given: {str(error).rstrip('.')}. The recipe was"
            f" built with {', '.join(other) or 'its own settings'}; TRAINKIT_TRACEBACK=1 shows the"
            " full traceback"
        ) from error
    if not isinstance(built, Recipe):
        raise UserError(
            f"recipe(...) returned {type(built).__name__}; it must return a trainkit.Recipe"
        )
    return built


def modules_gone(file: Path) -> list[str]:
    """Modules of trainkit that a recipe imports and that do not exist.

    The file is read, and not run.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []  # `load_recipe` reports it
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    ours = sorted(name for name in names if name.startswith("trainkit."))
    return [name for name in ours if not _is_there(name)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _refusing_call(error: Exception, recipe: Path) -> str | None:
    """Which library function, called from where, raised `error`; None for our own code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [_is_ours(frame.f_code.co_filename, recipe) for frame, _ in frames]
    if ours[-1]:
        return None
    number = len(ours) - ours[::-1].index(True)  # of the first frame that is the library's
    (caller, line), (called, _) = frames[number - 1 : number + 1]
    name = getattr(called.f_code, "co_qualname", called.f_code.co_name).removesuffix(".__init__")
    where = f"{Path(caller.f_code.co_filename).name}, line {line}"
    return f"{name} of {called.f_globals.get('__name__')}, called in {where}"


def _is_ours(file: str, recipe: Path) -> bool:
    """Whether a file is of trainkit, or lies beside the recipe."""
    path = Path(file).resolve()
    return (
        path.is_relative_to(Path(trainkit.__file__).resolve().parent)
        or path.parent == recipe.resolve().parent
    )


@contextmanager
def _missing_module_reported(recipe: Path) -> Iterator[None]:
    """Raise UserError with the remedy where a module cannot be found."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # it was raised by hand, and says what it needs
            raise MissingPackageError(str(error)) from error
        if error.name in sys.stdlib_module_names:
            raise UserError(
                f"{recipe} needs the module {error.name} of Python's standard library, which the"
                " Python of this system does not have"
            ) from error
        raise UserError(
            f"{recipe} needs the module {error.name}, which is not installed here: install the"
            f" package that has it, such as by pip install {error.name.split('.')[0]}, or correct"
            " the name"
        ) from error
