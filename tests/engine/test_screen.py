"""What a training shows: a line for each epoch, what went wrong, and how it ended."""

import re
from dataclasses import replace

import pytest

from helpers.logs import rows
from helpers.slow import slow_disk
from helpers.toy_recipes import Images, Torn, recognition, run
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.errors import DataError
from trainkit.storage.run_files import read_bad_images


def test_a_line_for_each_epoch_and_a_table_at_the_end(tmp_path, capsys):
    """Losses are means over the steps of the epoch, of which the log has every third row."""
    whole = Options(out=tmp_path / "each", workers=0, log_every=1, seed=2)
    seed_host(2)
    train(recognition(epochs=3), whole)
    capsys.readouterr()
    seed_host(2)
    summary = train(recognition(epochs=3), replace(whole, out=tmp_path / "run", log_every=3))
    printed = capsys.readouterr().out
    losses = [row["loss"] for row in rows(tmp_path / "each")]
    line = r"^epoch (\d)  train loss (\S+)  val loss (\S+)  top1 (\S+) %"
    lines = re.findall(line, printed, re.MULTILINE)
    evaluations = rows(tmp_path / "run", "evaluate")
    assert len(lines) == len(evaluations) == 3
    for number, (epoch, loss, val_loss, top1) in enumerate(lines):
        expected = sum(losses[4 * number : 4 * number + 4]) / 4
        assert (int(epoch), loss) == (number + 1, f"{expected:.4f}")
        row = evaluations[number]
        assert (val_loss, top1) == (f"{row['val_loss']:.4f}", f"{100 * row['top1']:.2f}")
    assert printed.count("protocol") == 1, "the table is of the last one"
    best = summary["best"]["step"]
    assert ("best and last evaluation" in printed) == (best != 12)
    assert "saved step" not in printed and f"step-{best:09d}" in printed
    assert f"report: {tmp_path / 'run/report.html'}" in " ".join(printed.split())


def test_best_and_last_stand_side_by_side(tmp_path, capsys):
    """The best by max:val_loss is not the last, of a network that learns."""
    seed_host(2)
    summary = train(recognition(), Options(out=tmp_path, workers=0, headline="max:val_loss"))
    printed = capsys.readouterr().out.replace("┃", "│")
    best = next(row for row in rows(tmp_path, "evaluate") if row["step"] == summary["best"]["step"])
    assert f"best, step {best['step']}" in printed and "last, step 10" in printed
    cells = [[part.strip() for part in line.split("│")] for line in printed.splitlines()]
    (losses,) = [line for line in cells if line[1:2] == ["val_loss"] and len(line) == 5]
    expected = [f"{each['val_loss']:.4g}" for each in (best, summary["final"])]
    assert losses[2:4] == expected and expected[0] != expected[1]


def test_a_save_that_takes_long_is_reported(tmp_path, capsys):
    """More than a second, which the disk takes to give a checkpoint its name."""
    with slow_disk("os.rename", "checkpoints", 1.1):
        train(recognition(epochs=1), Options(out=tmp_path, workers=0))
    printed = capsys.readouterr().out
    (save,) = rows(tmp_path, "save")
    assert save["save_s"] > 1.1
    assert f"saved step 4: training paused {save['pause_s']:.2f} s, " in printed


def test_reads_of_files(tmp_path, capsys):
    """Three files in 27 are torn, and each is met in every epoch."""
    run("torn", tmp_path / "torn", log_every=10)
    printed = capsys.readouterr().out
    num_reads = rows(tmp_path / "torn")[-1]["bad_images"]
    assert len(read_bad_images(tmp_path / "torn")) == 3 and num_reads > 3
    assert printed.count(f"bad images: {num_reads} reads of 3 files") == 2  # the row, and the end


def test_a_stop_on_a_bad_image_names_the_ways_out(tmp_path):
    recipe = recognition(train_data=Torn(27))
    with pytest.raises(DataError, match="it is torn. --on-bad-image skip trains without .* doctor"):
        train(recipe, Options(out=tmp_path / "train", workers=0))
    # of a validation image there is nothing to skip
    broken = recognition(val_data=Torn(27), train_data=Images(8), epochs=1)
    with pytest.raises(DataError, match="it is torn. An evaluation skips no image"):
        train(broken, Options(out=tmp_path / "val", workers=0))
