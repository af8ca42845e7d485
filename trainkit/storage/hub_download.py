"""Models on the Hugging Face Hub by their names, for commands that take a run."""

import hashlib
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

from trainkit.errors import MissingFileError, UserError, first_line

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ("*.json", "*.jsonl", "*.safetensors", "*.py", "README.md")  # no pickles
GIT_HASH, SHA256 = 40, 64  # digits by which the cache calls a small file, and a large one


def is_hub_name(path: Path) -> bool:
    """Whether a path means a model on the Hub: owner/name, where here is no folder `owner`."""
    return bool(HUB_NAME.fullmatch(path.as_posix())) and not path.parent.exists()


def downloaded(name: str) -> Path:
    """The folder with the files of the model `name`, downloaded once into the Hub's cache.

    The files are compared with the hashes that the Hub gave for them, which its own library does
    not do.

    Raises:
        MissingFileError: there is no such model, or it is not to be seen.
        UserError: the Hub cannot be reached, and the cache does not hold the model; or a file is
            not what the Hub has.
        OSError: the download broke off, or the cache cannot be written.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
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
        reason = first_line(error)
        raise UserError(f"the Hugging Face Hub does not give {name}: {reason}") from error
    except OSError:  # of the disk
        raise
    except Exception as error:  # of the HTTP library below, which is another in each version
        raise OSError(
            f"the download of {name} from the Hugging Face Hub broke off"
            f" ({type(error).__name__}: {error}): run the command again"
        ) from error
    for file in sorted(folder.rglob("*")):  # a whole run may lie there, with its checkpoints
        _require_whole(file, name)
    return folder


def _require_whole(file: Path, name: str) -> None:
    """Check a file of the cache by the hash that it is called by, where it is called by one.

    That is the SHA-256 of a large file (LFS), and git's hash of another.
    """
    blob = file.resolve()
    expected = blob.name
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]+", expected):
        return  # a cache without links
    if len(expected) == SHA256:
        with blob.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    elif len(expected) == GIT_HASH:
        content_of = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content_of) + content_of).hexdigest()
    else:
        return
    if found != expected:
        raise UserError(
            f"{file.name} of {name} is not what the Hugging Face Hub has (its hash is {found}, and"
            f" the Hub's {expected}): it was damaged on its way or on this disk. Delete {blob}, and"
            " run the command again"
        )
