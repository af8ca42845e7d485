"""The locks by which one process at a time trains in a run's folder."""

from types import ModuleType

from trainkit.errors import UserError


def posix_locks() -> ModuleType:
    """Python's fcntl, by which a run's folder is locked.

    Raises:
        UserError: there is none, as on Windows.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UserError(
            "training takes Linux or macOS (on Windows: WSL), where the run's folder can be locked;"
            " doctor, evaluate, predict and export run here"
        ) from error
    return fcntl
