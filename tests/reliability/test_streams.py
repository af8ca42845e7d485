"""Screens that go away: a training outlives them, and says so once."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from helpers.toy_recipes import recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.display.streams import LastingStream, lasting
from trainkit.display.terminal import Display


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_disk():
    return Path("/dev/full").open("w")


def closed_terminal():
    main_side, other_side = os.openpty()
    os.close(main_side)
    return os.fdopen(other_side, "w")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


GONE = {
    closed_pipe: os.strerror(errno.EPIPE),
    full_disk: os.strerror(errno.ENOSPC),
    closed_terminal: os.strerror(errno.EIO),
    closed: "I/O operation on closed file",
}


@pytest.mark.parametrize("opened", GONE)
def test_a_training_outlives_its_screen(tmp_path, monkeypatch, capsys, opened):
    """Whole, and said once on standard error.

    The streams can be closed afterwards without an error.
    """
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", opened())
        summary = train(recognition(), Options(out=tmp_path, workers=0, log_every=1))
        print("by somebody else", flush=opened is not closed) if opened is not closed else None
        sys.stdout.close()
    message = capsys.readouterr().err
    assert summary["steps"] == 10 and (tmp_path / "summary.json").exists()
    assert (
        message
        == f"standard output cannot be written ({GONE[opened]}): nothing more is shown there\n"
    )


def test_errors_whose_reader_is_gone(monkeypatch):
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["nowhere.py"]) == 2
        monkeypatch.undo()


def test_what_an_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding="cp1252"))
    stream.writelines(["Käfer ", "猫\n"])
    stream.flush()
    assert raw.getvalue() == "Käfer \\u732b\n".encode("cp1252") and stream.encoding == "cp1252"
    assert lasting(stream) is stream


@pytest.mark.parametrize("columns", ["0", "-3", "many", ""])
def test_a_screen_without_columns(monkeypatch, capsys, columns):
    """What COLUMNS says is taken where one can write in it."""
    monkeypatch.setenv("COLUMNS", columns)
    Display().note("a line")
    Display().table("a table", {"name": "value"})
    assert main(["nowhere.py"]) == 2
    printed = capsys.readouterr()
    assert (
        "a line" in printed.out
        and "value" in printed.out
        and "no recipe at nowhere.py" in printed.err
    )


def test_a_stream_closed_before_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    assert train(recognition(epochs=0.5), Options(out=tmp_path, workers=0))["steps"] == 2
