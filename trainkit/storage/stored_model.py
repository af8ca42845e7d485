"""Trained models by the files beside their weights, without recipe and dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypedDict, get_type_hints

from torch import nn

from trainkit.data.spawning import load_file
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.models.building import no_larger_than
from trainkit.models.rebuild import NETWORKS, TRANSFORMS, network_from
from trainkit.storage.foreign import require_usual
from trainkit.storage.lookup import find_weights, read_origin
from trainkit.storage.model_json import FORMAT, read_model_json
from trainkit.storage.shipped import same_shipped_recipe, shipped
from trainkit.storage.trained_here import is_trained_here
from trainkit.tasks.base import Task
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

TASKS = {
    each.__name__: each
    for each in (
        Recognition,
        MultiLabel,
        Segmentation,
        MaskClassification,
        MultiLabelSegmentation,
        DenseRegression,
    )
}
# of training, and of evaluations of the validation data
NOT_REBUILT = ("loss", "extra_metrics")


class Described(TypedDict):
    """Plain values of model.json that `ModelInfo` takes as they are."""

    batch_size: int
    channels: int | None
    bits: int | None
    upright: bool
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class StoredModel:
    """What a run, a checkpoint, a published folder or a Hub name stands for."""

    named: Path
    """as it was given"""
    weights: Path
    """a checkpoint folder or a file"""
    run: Path | None
    """the folder with settings.json that they lie in"""
    described: dict[str, Any] | None
    """model.json beside them"""

    @classmethod
    def at(cls, path: Path) -> Self:
        """Find the weights at `path`, or of that name on the Hub.

        Raises:
            MissingFileError: there are none.
        """
        weights, run = find_weights(path)
        folder = weights if weights.is_dir() else weights.parent
        return cls(path, weights, run, read_model_json(folder))

    @property
    def is_from_elsewhere(self) -> bool:
        """Whether its code came from anywhere but a training of this user, as far as is known."""
        return not is_trained_here(self.run)

    @property
    def lacks(self) -> str | None:
        """What model.json does not say, so that a recipe is needed; None where it says all."""
        if self._lacks is not None:
            return self._lacks
        transform = (self.described or {})["transform"]
        if transform is None or transform.get("recipe") is not None:
            return "model.json does not say what an evaluation makes of an image"
        return None

    @property
    def _lacks(self) -> str | None:
        """What it does not say of network and task, which is enough where images are given."""
        found = self.described
        if found is None:
            return f"there is no model.json beside {self.weights}, as in runs of earlier versions"
        if found["format"] < FORMAT:
            return f"model.json beside {self.weights} is of an earlier version"
        if found["network"] is None:
            return f"model.json does not say how its network, {found['type']}, was built"
        if found["task"].get("of") != "trainkit" or found["task"]["type"] not in TASKS:
            return f"its task, {found['task']['type']}, is of a recipe"
        return None

    def network(self, trust_recipe: bool = False) -> nn.Module:
        """The network, with random weights.

        Raises:
            UserError: model.json does not say how; the network is of a recipe from elsewhere, and
                `trust_recipe` is false; or its weights are too few for it.
        """
        found = self.known()
        self.require_usual()
        own = found["network"]["recipe"]
        code = None if own is None else self._code(own, trust_recipe)
        with no_larger_than(self.weights, f"model.json of {self.named}"):
            return network_from(found, code)

    def task(self) -> Task:
        """The task, with the usual loss and metrics.

        Raises:
            UserError: it cannot be built.
        """
        return task_from(self.known()["task"])

    def known(self, lacks: str | None = None) -> dict[str, Any]:
        """What model.json says.

        Args:
            lacks: what it must say beside how network and task are built, and does not.

        Raises:
            UserError: it lacks something.
        """
        lacks = self._lacks or lacks
        if lacks is not None:
            raise UserError(f"{self.named} cannot be loaded without its recipe: {lacks}")
        assert self.described is not None  # else it lacks it
        return self.described

    def require_usual(self) -> None:
        """Check the values in model.json, which may be anybody's file, before they are used.

        Raises:
            UserError: one is of another type than it must be, or out of range.
        """
        found = self.described
        assert found is not None  # else nothing is used
        for part, known in (("network", NETWORKS), ("transform", TRANSFORMS)):
            if found[part] is None or found[part].get("recipe") is not None:
                continue
            function = known.get(found[part]["function"])
            if function is not None:
                require_usual(f"its {part}", function, found[part]["arguments"])
        given = found["task"]["arguments"]
        given = {name: value for name, value in given.items() if name not in NOT_REBUILT}
        require_usual("its task", TASKS[found["task"]["type"]], given)
        if found["inference"] is not None:
            require_usual("its inference", Inference, found["inference"])
        require_usual("", Described, {name: found.get(name) for name in get_type_hints(Described)})
        channels = found.get("channels") or 3
        for name in ("mean", "std"):
            if len(found[name]) not in (1, channels):
                raise UserError(
                    f"model.json gives {len(found[name])} values of {name} for images of"
                    f" {channels} channels: it is damaged, or no training wrote it"
                )

    def _code(self, name: str, trust_recipe: bool) -> ModuleType:
        """The recipe's file `name`, loaded, which has a network of its own."""
        file = self._file(name)
        if self.is_from_elsewhere:
            file = trusted(
                file, self.named, "its network is built by code of its own", trust_recipe
            )
        return load_file(f"network_{file.stem}", file)

    def _file(self, name: str) -> Path:
        """A file of the recipe, in a published folder by its name.

        Else it is the run's recipe.py, what lay beside its original, or one of the package.
        """
        if Path(name).name != name or not name.endswith(".py"):
            raise UserError(
                f"model.json of {self.named} names {name!r} as the file of its network, which is no"
                " name of a Python file in its folder"
            )
        run = self.weights.parent if self.run is None else self.run
        _, origin = (0, None) if self.run is None else read_origin(run)
        # what lies beside a run's own files is none of them
        files = [run / name] if self.is_from_elsewhere else []
        if origin is not None:
            files += [run / "recipe.py"] if Path(origin).name == name else []
            # a place that somebody else's file names is none of this machine
            files += [] if self.is_from_elsewhere else [Path(origin).parent / name]
        files.append(shipped("recipes") / name)
        file = next((each for each in files if each.is_file()), None)
        if file is None:
            raise UserError(
                f"the network of {self.named} is built by code in {name}, which is not there"
                f" (looked for {', '.join(map(str, files))}): put it there"
            )
        return file


def trusted(file: Path, named: Path, why: str, trust_recipe: bool) -> Path:
    """A recipe from elsewhere that may be run: one of trainkit's own, or one that is trusted.

    Raises:
        UserError: it is neither.
    """
    ours = same_shipped_recipe(file)
    if ours is not None:
        return ours
    if not trust_recipe:
        raise UserError(
            f"{named}: {why}, in {file}, which would run with all your rights. Read it, and give"
            " --trust-recipe (in Python: trust_recipe=True) if you trust it: nothing in your cache"
            " says that you trained it here, in this folder"
        )
    return file


def task_from(described: Mapping[str, Any]) -> Task:
    """The task that model.json describes, with the usual loss and metrics.

    Raises:
        UserError: it cannot be built.
    """
    given = described["arguments"]
    arguments = {name: value for name, value in given.items() if name not in NOT_REBUILT}
    kind = TASKS[described["type"]]
    return kind(**bound(kind, arguments))


def bound(kind: type, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments.

    Raises:
        UserError: `kind` takes others.
    """
    try:
        signature(kind).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"model.json gives {kind.__name__} other arguments than it takes ({error}): take the"
            " version of trainkit that wrote it"
        ) from error
    return arguments
