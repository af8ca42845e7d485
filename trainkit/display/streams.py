"""Standard output and error that outlive their reader: a closed pipe or terminal, a full disk."""

import os
import sys
from typing import Any, TextIO

WIDTH = 80  # columns, where COLUMNS says that there are none


class LastingStream:
    """A text stream whose reader may disappear: from then on what is written is dropped.

    All else is as the stream has it; what its encoding cannot express is escaped.

    Args:
        stream: the stream itself.
        reported: whether standard error reports the loss, once.
    """

    def __init__(self, stream: TextIO, reported: bool = True):
        self._stream, self._reported, self._gone = stream, reported, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does; it may keep some of it until `flush`."""
        if not self._gone:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError as error:
                    self._stream.write(
                        text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                    )
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what was written."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._gone = True
        reason = error.strerror if isinstance(error, OSError) else str(error)
        descriptor = _descriptor(self._stream)
        # what the stream still holds is written when the interpreter ends
        if descriptor is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if self._reported and descriptor != 2 and sys.stderr is not None:
            lasting(sys.stderr).write(
                f"standard output cannot be written ({reason}): nothing more is shown there\n"
            )


def lasting(stream: TextIO, reported: bool = True) -> Any:
    """`stream`, made to outlive its reader."""
    return stream if isinstance(stream, LastingStream) else LastingStream(stream, reported)


def keep_standard_streams(reported: bool) -> None:
    """Make this process's output and error outlive their readers.

    Where one was closed before the start, what is opened next would get its number, and all that a
    library prints.

    Args:
        reported: whether a loss is reported.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdout is not None:
        sys.stdout = lasting(sys.stdout, reported)
    if sys.stderr is not None:
        sys.stderr = lasting(sys.stderr)


def columns() -> int | None:
    """Columns of the screen where COLUMNS holds an unusable number; None: as the terminal says."""
    given = os.environ.get("COLUMNS")
    return None if given is None or (given.isdigit() and int(given) > 0) else WIDTH


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
