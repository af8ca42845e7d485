"""Models on the Hugging Face Hub by their names, for commands that take a run."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from trainkit.errors import MissingFileError, UserError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ("*.json", "*.jsonl", "*.safetensors", "*.py", "README.md")  # no pickles


def is_hub_name(path: Path) -> bool:
    """Whether a path means a model on the Hub: owner/name, where here is no folder `owner`."""
    return bool(HUB_NAME.fullmatch(path.as_posix())) and not path.parent.exists()


def downloaded(name: str) -> Path:
    """The folder with the files of the model `name`, downloaded once into the Hub's cache.

    Raises:
        MissingFileError: there is no such model, or it is not to be seen.
        UserError: the Hub cannot be reached, and the cache does not hold the model.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise MissingFileError(
            f"nothing at {name}, and no model of that name on the Hugging Face Hub that you may"
            " read: correct the name, or log in with `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MissingFileError(
            f"nothing at {name}; as a model on the Hugging Face Hub it is not in the cache, and the"
            " Hub cannot be reached: correct the name, or download it where there is a network"
        ) from error
    except HfHubHTTPError as error:
        told = str(error).splitlines()[0]
        raise UserError(f"the Hugging Face Hub does not give {name}: {told}") from error
