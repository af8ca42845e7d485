"""What the log says of speed: images/s, waiting for data, memory."""

import psutil
import pytest
from accelerate import Accelerator

from helpers.interruptions import resume
from helpers.logs import rows
from helpers.slow import SlowImages, slow_recognition
from trainkit import Options, train
from trainkit.engine.state import TrainState
from trainkit.engine.throughput import Throughput

STEPS, PAUSE = 120, 0.01


@pytest.mark.parametrize("slow", ["data", "network"])
def test_a_row_says_how_long_data_were_waited_for(tmp_path, capsys, slow):
    """Shares in both directions, by pauses that are known; and one line of advice where it is."""
    forward_s = PAUSE if slow == "network" else 0
    data = SlowImages(STEPS, PAUSE if slow == "data" else 0, augment=False)
    recipe = slow_recognition(data, forward_s, batch_size=1, epochs=1)
    train(recipe, Options(out=tmp_path, workers=0, log_every=10))
    found = rows(tmp_path)
    for row in found:
        assert row["images_per_s"] == pytest.approx(row["images_per_s_per_device"], abs=1e-3)
        assert row["images_per_s"] < 1 / PAUSE
        assert 0 <= row["data_wait"] <= 1
    shares = sorted(row["data_wait"] for row in found)
    middle = shares[len(shares) // 2]
    assert middle > 0.6 if slow == "data" else middle < 0.4
    here = psutil.Process().memory_info().rss / 2**30
    assert all(here / 4 < row["memory_gib"] < here * 4 for row in found)
    message = [line for line in capsys.readouterr().out.splitlines() if "waiting for data" in line]
    assert len(message) == 1 or slow == "network"
    for line in message if slow == "data" else ():
        assert "of the first 100 steps" in line and "more --workers than 0" in line
        assert 60 <= int(line.split(" %")[0]) <= 100


@pytest.mark.parametrize("waited_s, message", [(0.019, False), (0.021, True)])
def test_advice_is_of_the_first_hundred_steps_alone(waited_s, message):
    """More than a fifth of 0.1 s a step; the first row, which waits for workers, does not count."""
    state = TrainState(step=10, images=80, train_seconds=3.0)
    throughput = Throughput(Accelerator(cpu=True), workers=3)
    throughput.resume(state)
    lines = []
    for row in range(30):
        for _ in range(10):
            state.advance(8, 0.1)
        throughput.waited_s += 10 * waited_s if 0 < row < 11 else 1.0
        numbers = throughput.row(state)
        assert numbers["images_per_s"] == pytest.approx(80)
        assert numbers["data_wait"] == pytest.approx(waited_s / 0.1 if 0 < row < 11 else 1.0)
        lines.append(throughput.advice(state))
    assert [number for number, line in enumerate(lines) if line] == ([10] if message else [])
    if message:
        assert lines[10].startswith("21 % of the time of the first 100 steps was waiting for data")


def test_images_per_s_of_two_processes(tmp_path):
    resume(tmp_path, "recognition", processes=2)
    for row in rows(tmp_path / "recognition"):
        assert row["images_per_s_per_device"] == pytest.approx(row["images_per_s"] / 2, abs=1e-3)
