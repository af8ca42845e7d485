"""Reads small files of networks of transformers, from a folder or the Hub."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from trainkit.errors import UserError, first_line
from trainkit.models.pretrained import offline_where_unreachable


def read_file(name: str, files: str, file: str) -> dict[str, Any] | None:
    """Read a JSON file of a network; None where there is none.

    Args:
        name: of the network, for messages.
        files: the folder, or the name on the Hub.
        file: its name there.

    Raises:
        UserError: it is damaged, or the Hub cannot be reached and the cache does not say.
    """
    if Path(files).is_dir():
        path = Path(files) / file
        if not path.is_file():
            return None
    else:
        downloaded = _downloaded(name, files, file)
        if downloaded is None:
            return None
        path = downloaded
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file} of {name} cannot be read ({first_line(error)}): put a whole copy in its place"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} of {name} holds no object: put a whole copy in its place")
    return content


def _downloaded(name: str, repo: str, file: str) -> Path | None:
    """A file of a model on the Hub, in its cache; None where the model has no such file."""
    cached = try_to_load_from_cache(repo, file)
    if cached is not None and not isinstance(cached, str):  # known not to be there
        return None
    try:
        with offline_where_unreachable():
            return Path(hf_hub_download(repo, file))
    except LocalEntryNotFoundError as error:
        raise _unreachable(name, file, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise _unreachable(name, file, error) from error


def _unreachable(name: str, file: str, error: Exception) -> UserError:
    return UserError(
        f"cannot get {file} of {name} from the Hugging Face Hub ({first_line(error)}): correct the"
        " name, or fill the cache where there is a network. Built offline are a folder"
        " (hf:path/to/folder) and a type, such as hf:segformer with --no-pretrained"
    )
