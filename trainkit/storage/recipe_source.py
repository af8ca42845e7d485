"""Where the recipe of a run came from, for what its folder keeps of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RecipeSource:
    """What is known of the code that built a recipe."""

    file: Path | None = None
    """the Python file of its function, kept whole as recipe.py; None where no file will do"""
    name: str = "recipe"
    """of the function in the file"""
    text: str | None = None
    """source of a function that no file holds, such as a notebook's, kept as function.py"""
    call: Mapping[str, Any] | None = None
    """what `trainkit.train` was given: "recipe" and "keywords"; None for a command"""
    seeded: bool = True
    """whether the run's seed was set before the weights were drawn; else nobody knows theirs"""

    def files(self) -> dict[str, bytes]:
        """What a run keeps of it, by the names of files.

        recipe.py is the file, with its function under the name `recipe`.
        """
        if self.file is not None:
            alias = f"\n\nrecipe = {self.name}  # which trainkit.train was given\n"
            end = b"" if self.name == "recipe" else alias.encode()
            return {"recipe.py": self.file.read_bytes() + end}
        return {} if self.text is None else {"function.py": self.text.encode()}

    def recorded(self) -> dict[str, Any]:
        """What settings.json says of it beside the path of the file."""
        call = {} if self.call is None else {"call": dict(self.call)}
        return call if self.seeded else {**call, "weights_seed": None}
