"""The defaults of a recipe's settings, read from its code without running it."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trainkit
from trainkit.errors import UserError, first_line
from trainkit.storage.shipped import shipped

DEEPEST = 8  # recipes and constants that are imported from one another


class Unknown(Exception):
    """A value that only running the code would tell."""


@dataclass
class Module:
    """A file of Python, parsed.

    Attributes:
        path: of the file.
        functions: by name.
        classes: by name.
        constants: expressions that names are assigned to, at the top of the file.
        imported: name -> the module it comes from, and its name there.
    """

    path: Path
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_defaults(recipe: Path, beside: Path | None = None) -> dict[str, Any]:
    """Defaults of a recipe's settings, as settings.json would hold them.

    Args:
        recipe: the file.
        beside: a folder with the modules that it imports, where they do not lie beside it.

    Returns:
        Settings by name. Those whose default is no plain value in the code are left out.

    Raises:
        UserError: the file cannot be read, or is not Python.
    """
    folders = [recipe.parent, *([beside] if beside else []), shipped("recipes")]
    try:
        module = _parsed(recipe)
    except OSError as error:
        raise UserError(f"{recipe} cannot be read: {error.strerror or error}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{recipe} is not Python: {first_line(error)}") from error
    return _defaults(module, "recipe", folders, 0)


def _parsed(path: Path) -> Module:
    found = Module(path)
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef):
            found.functions[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found.classes[node.name] = node
        elif isinstance(node, ast.Assign):
            _assign(found, node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found.constants[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.imported[alias.asname or alias.name] = (node.module, alias.name)
    return found


def _assign(module: Module, node: ast.Assign) -> None:
    """Keep the names that an assignment gives values to, also several at once."""
    for target in node.targets:
        if isinstance(target, ast.Name):
            module.constants[target.id] = node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, node.value.elts):
                if isinstance(name, ast.Name):
                    module.constants[name.id] = value


def _elsewhere(
    module: Module, name: str, folders: list[Path], depth: int = 0
) -> tuple[Module, str]:
    """The module that defines an imported name, and its name there."""
    if name not in module.imported or depth > DEEPEST:
        raise Unknown(name)
    dotted, original = module.imported[name]
    parts = dotted.split(".")
    if parts[0] == "trainkit":
        folders_of_it, parts = [Path(trainkit.__file__).parent], parts[1:]
    else:
        folders_of_it = folders
    packages = [folder.joinpath(*parts) for folder in folders_of_it]
    places = [
        place
        for package in packages
        for place in (package.with_suffix(".py"), package / "__init__.py")
    ]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        raise Unknown(name)
    try:
        found = _parsed(place)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unknown(name) from error
    if original in found.imported:  # passed on, as the `__init__.py` of a package does
        return _elsewhere(found, original, folders, depth + 1)
    return found, original


def _defaults(module: Module, name: str, folders: list[Path], depth: int) -> dict[str, Any]:
    """Defaults of a function, which may be imported, or a variant of another."""
    if depth > DEEPEST:
        return {}
    if name not in module.functions:
        try:
            other, original = _elsewhere(module, name, folders)
        except Unknown:
            return {}
        return _defaults(other, original, folders, depth + 1)
    function = module.functions[name]
    found: dict[str, Any] = {}
    for decorator in function.decorator_list:
        if not (isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)):
            continue
        if decorator.func.id == "variant" and decorator.args:
            base = decorator.args[0]
            if isinstance(base, ast.Name):
                found |= _defaults(module, base.id, folders, depth + 1)
            for keyword in decorator.keywords:
                if keyword.arg:
                    _keep(found, keyword.arg, keyword.value, module, folders)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    pairs = [
        *zip(with_default, arguments.defaults),
        *zip(arguments.kwonlyargs, arguments.kw_defaults),
    ]
    for argument, default in pairs:
        if default is not None:
            _keep(found, argument.arg, default, module, folders)
    return found


def _keep(
    found: dict[str, Any], name: str, node: ast.expr, module: Module, folders: list[Path]
) -> None:
    """Add the default of a parameter, or of each field of a dataclass of settings."""
    try:
        value = _value(node, module, folders, 0)
    except Unknown:
        return
    if isinstance(value, Fields):
        found |= value
    else:
        found[name] = value


class Fields(dict):
    """Values of a dataclass of settings, whose fields are settings of the recipe themselves."""


def _value(node: ast.expr, module: Module, folders: list[Path], depth: int) -> Any:
    """The value of an expression: of literals, constants, and dataclasses of settings."""
    if depth > DEEPEST:
        raise Unknown("imported from one another")
    try:
        return _plain(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Name):
        if node.id in module.constants:
            return _value(module.constants[node.id], module, folders, depth + 1)
        other, original = _elsewhere(module, node.id, folders)
        if original not in other.constants:
            raise Unknown(node.id)
        return _value(other.constants[original], other, folders, depth + 1)
    if isinstance(node, (ast.Tuple, ast.List)):
        return [_value(each, module, folders, depth + 1) for each in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Path" and len(node.args) == 1 and not node.keywords:
            return str(Path(str(_value(node.args[0], module, folders, depth + 1))))
        return _fields(node, module, folders, depth)
    raise Unknown(ast.dump(node))


def _fields(call: ast.Call, module: Module, folders: list[Path], depth: int) -> Fields:
    """Fields of a dataclass, as it is called."""
    assert isinstance(call.func, ast.Name)
    name, home = call.func.id, module
    if name not in home.classes:
        home, name = _elsewhere(module, name, folders)
    if name not in home.classes or call.args:
        raise Unknown(name)
    found = Fields()
    names = []
    for node in home.classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
            if node.value is not None:
                found[node.target.id] = _value(node.value, home, folders, depth + 1)
    for keyword in call.keywords:
        if keyword.arg not in names:
            raise Unknown(name)
        found[keyword.arg] = _value(keyword.value, module, folders, depth + 1)
    return found


def _plain(value: Any) -> Any:
    """A literal as JSON gives it back."""
    if isinstance(value, (tuple, list, set)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value
