"""--profile: steps 10 to 20, a trace that opens, and times by kind that add up."""

import gzip
import json
import re

from helpers.logs import assert_bit_equal
from helpers.slow import SlowImages, slow_recognition
from helpers.toy_recipes import run
from trainkit import Options, train

FORWARD_S, DATA_S = 0.02, 0.005  # of a step, of an image


def test_a_trace_and_a_table_by_kind(tmp_path, capsys):
    """Forward and reading take what they sleep; evaluations within the steps are apart."""
    recipe = slow_recognition(SlowImages(24, DATA_S), FORWARD_S, epochs=9)
    train(recipe, Options(out=tmp_path, workers=0, profile=True))
    printed = capsys.readouterr().out
    (file,) = (tmp_path / "profile").iterdir()
    data = file.read_bytes()
    trace = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    names = [event.get("name") for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert names.count("trainkit whole step") == names.count("trainkit model") == 11
    assert names.count("trainkit task") == 11
    assert sum(name.startswith("Optimizer.step#") for name in names) == 11
    assert "steps 10 to 20 of this start" in printed
    rows = re.findall(r"│ ([a-z ,:]+?) +│ +([\d.-]+) +│ +(-?\d+) % +│", printed)
    took = {name: float(ms) for name, ms, _ in rows}
    assert list(took) == [
        "data", "forward", "loss", "backward", "optimizer", "evaluation, saving",
        "the rest: trainkit, log, screen",
    ]  # fmt: skip
    assert took["forward"] >= 1e3 * FORWARD_S and took["data"] >= 8 * 1e3 * DATA_S
    assert all(ms > 0 for ms in took.values())
    whole = float(re.search(r"this start, ([\d.]+) ms each", printed)[1])
    assert abs(sum(took.values()) - whole) < 0.01


def test_a_profile_changes_nothing_and_a_short_run_has_none(tmp_path, capsys):
    run("all", tmp_path / "plain")
    run("all", tmp_path / "profiled", profile=True)
    assert_bit_equal(tmp_path / "plain", tmp_path / "profiled")
    assert "steps 10 to 12 of this start" in capsys.readouterr().out
    run("recognition", tmp_path / "short", profile=True, resume="never")
    assert "steps 10 to 10 of this start" in capsys.readouterr().out
    run("recognition", tmp_path / "short", resume="never")  # its trace is no stray
    assert not (tmp_path / "short/profile").exists()
