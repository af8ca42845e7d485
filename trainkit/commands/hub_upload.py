"""Uploads to the Hugging Face Hub, whose refusals it reports in words a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from trainkit.errors import UserError, first_line

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, and take a token that may write"


def open_repository(name: str, private: bool) -> str:
    """Open the model repository `name` ("owner/name", or a name of one's own), or create it.

    Args:
        name: of the repository.
        private: only its owners see it.

    Returns:
        Its full name.

    Raises:
        UserError: it is public already, nobody is logged in, or the Hub refuses or cannot be
            reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no name on the Hub: give owner/name. {error}") from error
    if get_token() is None:
        raise UserError(
            f"not logged in to the Hugging Face Hub: {LOG_IN}; --folder DIR writes the files here"
            " instead"
        )
    with _errors_reported(name):
        full = HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id
        public = private and not HfApi().repo_info(full).private
    if public:
        raise UserError(
            f"{full} is on the Hub already, and public: nothing was uploaded. Make it private in"
            " its settings there, or choose another name"
        )
    return full


def upload(folder: Path, repository: str) -> str:
    """Upload the files of `folder` in one commit; return the commit's address.

    Raises:
        UserError: as `open_repository`.
    """
    with _errors_reported(repository):
        message = "Weights, recipe, settings and metrics of a run of trainkit"
        return (
            HfApi()
            .upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
            .commit_url
        )


@contextmanager
def _errors_reported(name: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = f"; {LOG_IN}" if status in (401, 403) else ""
        raise UserError(f"the Hub refused {name}: {first_line(error)}{remedy}") from error
    except Exception as error:  # the network's errors come from several libraries
        raise UserError(
            f"{name} could not be uploaded, the Hub cannot be reached: {type(error).__name__}:"
            f" {error}; --folder DIR writes the files here instead"
        ) from error
