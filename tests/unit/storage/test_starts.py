"""starts.jsonl, and logs as a report reads them."""

import json

from helpers.run_folders import ROWS, step_row
from trainkit.storage.starts import add_start, read_starts
from trainkit.storage.train_log import read_rows


def test_starts_are_read_as_they_were_added(tmp_path):
    assert read_starts(tmp_path) == ([], [])
    add_start(tmp_path, step=0, num_processes=2, device="cpu", precision="bf16")
    add_start(tmp_path, step=40, num_processes=1, device="cpu", precision="no")
    starts, faults = read_starts(tmp_path)
    assert [(each["step"], each["num_processes"]) for each in starts] == [(0, 2), (40, 1)]
    assert starts[0]["when"] <= starts[1]["when"] and not faults
    assert starts[0]["machine"]["cores"] > 0 and starts[0]["machine"]["memory_gib"] > 0


def test_a_damaged_start_is_named(tmp_path):
    add_start(tmp_path, step=0, num_processes=1, device="cpu", precision="no")
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"step": -1}\n[\n')
    starts, faults = read_starts(tmp_path)
    assert len(starts) == 1
    assert [fault.partition(" is left out")[0] for fault in faults] == [
        "starts.jsonl, line 2,",
        "starts.jsonl, line 3,",
    ]


def test_a_start_after_one_that_was_cut_short_is_kept(tmp_path):
    add_start(tmp_path, step=0, num_processes=1, device="cpu", precision="no")
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"step": 2')  # as on a full disk
    add_start(tmp_path, step=3, num_processes=1, device="cpu", precision="no")
    starts, faults = read_starts(tmp_path)
    assert [each["step"] for each in starts] == [0, 3] and len(faults) == 1


def test_rows_of_a_log(tmp_path):
    """Sound ones are kept wherever the damage is; lines are parsed together, a thousand at once."""
    file = tmp_path / "log.jsonl"
    assert read_rows(file) == ([], [])
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_rows(file) == (ROWS, [])
    lines = [json.dumps(step_row(step)) for step in range(1, 3001)]
    lines[1500] = '{"event": "step"}'
    lines[1600] = f"{lines[1600]},{lines[1601]}"  # two rows in a line
    file.write_text("\n".join(lines) + '\n{"event": "st')
    rows, faults = read_rows(file)
    assert [row["step"] for row in rows] == [
        *range(1, 1501),
        *range(1502, 1601),
        *range(1602, 3001),
    ]
    assert [fault.partition(" is left")[0] for fault in faults] == [
        "log.jsonl, line 1501,",
        "log.jsonl, line 1601,",
    ]
    assert "it has no step" in faults[0]
