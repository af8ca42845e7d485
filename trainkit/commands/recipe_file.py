"""From a recipe's file to a Recipe: loading, signature, settings, --sample."""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from trainkit.data.spawning import load_file
from trainkit.errors import MissingFileError, UserError, refusing_call
from trainkit.recipe import Recipe


class RecipeFile:
    """The `recipe` of a Python file, whatever callable it is, and the module around it.

    Called and inspected as the function itself; its signature has annotations as objects.
    """

    def __init__(self, function: Callable[..., Recipe], module: ModuleType):
        self.function, self.module = function, module
        self.path = Path(module.__file__)
        self.__signature__ = _signature(function, self.path)
        self.__doc__ = inspect.getdoc(_innermost(function))

    def __call__(self, **settings: Any) -> Any:
        return self.function(**settings)

    @property
    def sample(self) -> Any:
        """SAMPLE of the file, or of the one that its function was imported from."""
        elsewhere = getattr(_innermost(self.function), "__globals__", {})
        return getattr(self.module, "SAMPLE", elsewhere.get("SAMPLE", {}))

    def sample_settings(self) -> dict[str, Any]:
        """What `--sample` changes. Raises UserError where SAMPLE is no dict of settings of the recipe."""
        if not isinstance(self.sample, Mapping):
            raise UserError(
                f"SAMPLE in {self.path} is of type {type(self.sample).__name__}; it must be a dict"
            )
        unknown = sorted(set(self.sample) - set(self.__signature__.parameters))
        if unknown:
            raise UserError(f"SAMPLE in {self.path} names {unknown}, which are no settings of it")
        return dict(self.sample)


def _innermost(function: Callable) -> Callable:
    """What decorators and partials stand around."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = (
            function.func if isinstance(function, functools.partial) else function.__wrapped__
        )
    return function


def _signature(function: Callable, path: Path) -> inspect.Signature:
    """The settings of a recipe. Raises UserError where they cannot be seen, or not given by name."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise UserError(
            f"{path}: an annotation of `recipe` names {error.name}, which is not there when it runs: import it, and "
            "not under TYPE_CHECKING alone"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the settings of `recipe` cannot be seen: {error}. Make it a function"
        ) from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    unnamed = [str(each) for each in signature.parameters.values() if each.kind not in named]
    if unnamed:
        raise UserError(
            f"{path}: `recipe` takes {', '.join(unnamed)}, which no flag can name: name each setting, and "
            "put functools.wraps into a decorator"
        )
    return signature


def load_recipe(path: Path) -> RecipeFile:
    """The function `recipe` of the Python file at `path`; nothing is built yet.

    Raises UserError or MissingFileError where file, function or an imported module are missing, or it is not Python.
    """
    if not path.is_file():
        raise MissingFileError(f"no recipe at {path}{_nearest(path)}")
    if path.suffix != ".py":
        raise UserError(
            f"{path} is not a Python file: a recipe is one, with a function recipe(...)"
        )
    sys.path.insert(0, str(path.parent.resolve()))  # a variant imports the recipe it varies
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:  # such as one with null bytes
        where = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(
            f"{path}{where} is not Python: {getattr(error, 'msg', error)}. Correct it, or put a whole copy in its place"
        ) from error
    with _missing_module_told(path):
        module = load_file(f"recipe_{path.stem}", path)
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise UserError(
            f"{path} has no function `recipe`: define `def recipe(...) -> Recipe:` in it"
        )
    return RecipeFile(function, module)


def build(recipe: RecipeFile, settings: dict[str, Any]) -> Recipe:
    """Call the recipe's function, and see that it returned a Recipe.

    Raises UserError too where a library that the recipe calls refuses what it is given, as torch.optim does lr=-1.
    """
    try:
        with _missing_module_told(recipe.path):
            built = recipe(**settings)
    except (ValueError, TypeError) as error:
        call = refusing_call(error, recipe.path)
        if call is None:
            raise
        parameters = inspect.signature(recipe).parameters
        other = [
            f"{name}={value}"
            for name, value in settings.items()
            if value != parameters[name].default
        ]
        raise UserError(
            f"{call}, does not take what it was given: {str(error).rstrip('.')}. The recipe was built with "
            f"{', '.join(other) or 'its own settings'}; TRAINKIT_TRACEBACK=1 shows the whole way there"
        ) from error
    if not isinstance(built, Recipe):
        raise UserError(
            f"recipe(...) returned {type(built).__name__}; it must return a trainkit.Recipe"
        )
    return built


@contextmanager
def _missing_module_told(recipe: Path) -> Iterator[None]:
    """Raises UserError with the remedy where a module cannot be found."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # it was raised by hand, and says what it needs
            raise
        raise UserError(
            f"{recipe} needs the module {error.name}, which is not installed here: install the package that has it, "
            f"such as by pip install {error.name.split('.')[0]}, or correct the name"
        ) from error


def _nearest(path: Path) -> str:
    """What may have been meant: the file of the nearest name beside it, else all that there are."""
    beside = sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []
    by_name = {other.stem: other for other in beside}
    near = difflib.get_close_matches(
        path.stem, by_name, n=1
    )  # whole paths are alike by their folder
    if near:
        return f"; did you mean {by_name[near[0]]}?"
    return (
        f"; recipes in {path.parent}: {', '.join(map(str, beside))}"
        if beside
        else f" (looked in {Path.cwd()})"
    )
