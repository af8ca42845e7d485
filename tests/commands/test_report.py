"""trainkit report: whole or damaged runs, at the end of a training, and without torch."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from helpers.processes import RECOG, ROOT, run
from helpers.run_folders import (
    ROWS,
    add_pictures,
    add_previews,
    add_recognition,
    add_segmentation,
    evaluation_row,
    run_folder,
    step_row,
    write_json,
)
from trainkit.cli import main
from trainkit.report.images import FOLDERS
from trainkit.report.page import report_or_reason

MOST_BYTES = 5_000_000
WITHOUT_TORCH = """
import sys
from trainkit.cli import main
code = main(["report", *sys.argv[1:]])
print(code, [name for name in ("torch", "accelerate", "datasets") if name in sys.modules])
"""


def page(folder) -> str:
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


def embedded(text: str, name: str):
    """JSON that lies in the page for its script."""
    return json.loads(re.search(rf'<script [^>]*id="{name}">(.*?)</script>', text, re.S)[1])


def test_a_report_without_torch(tmp_path):
    folder = run_folder(tmp_path / "one")
    add_recognition(folder)
    done = run(sys.executable, "-c", WITHOUT_TORCH, str(folder), cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 []"
    text = (folder / "report.html").read_text()
    assert "one" in text and len(text) < MOST_BYTES


def test_a_locale_of_another_encoding(tmp_path):
    """The parts of the page have characters that are not ASCII, and are UTF-8 everywhere."""
    folder = run_folder(tmp_path / "one")
    add_recognition(folder)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run(sys.executable, "-c", WITHOUT_TORCH, str(folder), cwd=ROOT, **ascii_only)
    text, parts = (folder / "report.html").read_text(encoding="utf-8"), ROOT / "trainkit/report"
    for name in ("report.css", "report.js"):
        assert (parts / name).read_text(encoding="utf-8").strip() in text


def test_what_a_report_says(tmp_path):
    folder = run_folder(tmp_path / "one", git_changed=True, git_diff_stat=" a.py | 2 +-")
    add_recognition(folder)
    text = page(folder)
    assert "finished: 100 steps" in text and "70.00 %" in text and "95 % interval" in text
    assert "recog_images · recognition · images · resnet18" in text
    assert "1 of 5 differ" in text  # lr
    assert '<tr class="changed"><td>lr</td><td class="long">0.05</td>' in text
    assert "trainkit recog_images --lr 0.05" in text and f"trainkit evaluate {folder}" in text
    assert "a.py | 2 +-" in text and "2 h" in text
    assert "Accuracy of each class" in text and "(ECE)" in text
    assert embedded(text, "confusion-data")["names"] == ["cat", "dog", "bird"]
    assert {"loss", "top1"} <= {chart["name"] for chart in embedded(text, "curve-data")["charts"]}


def test_an_interval_is_of_the_value_beside_it(tmp_path):
    """`trainkit evaluate` of the best step, later and on other data, has another."""
    folder = run_folder(tmp_path / "one")
    add_recognition(folder)
    assert "95 % interval" in page(folder)
    arrays = add_recognition(folder, name="evaluate")
    arrays["predicted"] = arrays["target"]
    np.savez(folder / "evaluations/evaluate.npz", **arrays)
    about = json.loads((folder / "evaluations/evaluate.json").read_text())
    write_json(folder / "evaluations/evaluate.json", {**about, "step": 100, "split": "test"})
    text = page(folder)
    assert "There is no confusion" in text, "the later evaluation is shown"
    assert "no interval: no evaluation of it image by image" in text


def test_the_cost_of_starts_with_other_processes(tmp_path):
    """The hours of each are not told, so that no product is the cost."""
    folder = run_folder(tmp_path / "one")
    start = {"step": 0, "when": "2026-01-02T03:04:05+00:00", "num_processes": 8, "device": "A100"}
    start |= {"precision": "bf16", "machine": {}}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    assert "16 GPU-h" in page(folder)
    with (folder / "starts.jsonl").open("a") as starts:
        starts.write(json.dumps({**start, "step": 50, "num_processes": 1}) + "\n")
    text = page(folder)
    assert "GPU-h" not in text and "2 h with 8, then 1 processes" in text


def test_segmentation_has_the_colours_of_its_classes(tmp_path):
    rows = [step_row(10), evaluation_row(100, 0.5, 100, mIoU=0.5, pixAcc=0.8)]
    folder = run_folder(tmp_path / "one", rows)
    write_json(
        folder / "summary.json",
        {**json.loads((folder / "summary.json").read_text()), "best": {"mIoU": 0.5, "step": 100}},
    )
    arrays = add_segmentation(folder)
    add_pictures(folder, segmentation=True)
    text = page(folder)
    assert re.search(r'class="names"><span><span class="swatch" style="background:#1f77b4">', text)
    assert "IoU of each class" in text and "background:#1f77b4" in text and "(ECE)" not in text
    assert embedded(text, "confusion-data")["matrix"] == arrays["confusion"].tolist()
    hit = arrays["intersection"].sum(0)
    iou = hit / (arrays["true_pixels"].sum(0) + arrays["predicted_pixels"].sum(0) - hit)
    assert all(f"{100 * value:.1f} %" in text for value in iou)


def test_of_many_classes_the_largest_confusions(tmp_path):
    folder = run_folder(tmp_path / "one", classes=None)
    arrays = add_recognition(folder, classes=150, images=1500)
    text = page(folder)
    assert 'id="confusion-data"' not in text
    assert "The 50 largest confusions" in text
    assert (arrays["target"] != arrays["predicted"]).sum() > 50


def test_images_lie_in_the_page(tmp_path):
    folder = run_folder(tmp_path / "one")
    add_recognition(folder)
    add_pictures(folder)
    text = page(folder)
    assert text.count("data:image/webp;base64,") == 4 and "data:image/jpeg;base64," in text
    assert "val/3.jpg" in text and "loss 1.5, probability 90.0 %" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text), "nothing from elsewhere"
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_images_beyond_the_budget_are_left_out(tmp_path):
    """Of a whole strip: the room that a part of it would take is left to the others."""
    folder = run_folder(tmp_path / "one")
    add_pictures(folder, segmentation=True)
    noise = np.random.default_rng(0).integers(0, 256, (560, 780, 3), dtype=np.uint8)
    shown = folder / "shown/step-000000100"
    for part in ("image", "target", "prediction"):  # 1.7 MB each as base64; two would fit
        Image.fromarray(noise).save(shown / f"0-{part}.webp", "PNG")
    Image.fromarray(noise[:280]).save(shown / "1-image.webp", "PNG")
    text = page(folder)
    assert "Left out, to keep this page under 5 MB: 1 image." in text
    assert text.count("data:image/webp;base64,") == 11
    assert text.count("data:image/png;base64,") == 1 and len(text) < MOST_BYTES


def test_images_that_cannot_be_read_are_named(tmp_path):
    folder = run_folder(tmp_path / "one")
    add_pictures(folder, segmentation=True)
    shown = folder / "shown/step-000000100"
    (shown / "1-error.webp").write_bytes(b"no picture")
    (folder / "train_batch.jpg").write_bytes(b"P5 20000 10000 255\n")  # a size, and no pixels
    text = page(folder)
    assert "1-error.webp is left out: it cannot be read" in text
    assert "train_batch.jpg is left out: it cannot be read (Image size (200000000" in text
    assert "under 5 MB" not in text and text.count("data:image/webp;base64,") == 12


def test_a_film_strip_of_the_same_images(tmp_path):
    """A row for each image, a column for each evaluation, the best one marked."""
    folder = run_folder(tmp_path / "one")
    add_previews(folder, (50, 100))
    text = page(folder)
    assert text.count("data:image/webp;base64,") == 3, "each image once"
    heads = re.findall(r"<th class=\"(\w*)\">(step [^<]*)<br><span>(epoch [^<]*)</span>", text)
    assert heads == [("", "step 50", "epoch 5"), ("best", "step 100 (best)", "epoch 10")]
    ranks = re.findall(r'class="rank( right)?" style="--share:(\d+%)"><span>(\w+)<', text)
    first = [(" right", "50%", "cat"), ("", "50%", "dog")]
    other = [("", "75%", "dog"), (" right", "25%", "cat")]
    assert ranks == 2 * first + 4 * other
    assert "evenly spaced" not in text


def test_a_film_strip_of_masks_keeps_the_page_small(tmp_path):
    """Of many evaluations those that there is room for: the first, the last and the best too."""
    folder = run_folder(tmp_path / "one")
    rows = [
        *ROWS,
        evaluation_row(41_000, 0.9, 41_000),
        evaluation_row(100_000, 0.9, 41_000),
    ]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    add_previews(folder, range(1000, 101_000, 1000), segmentation=True)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.webp", quality=90)
    for file in folder.glob("preview/*/*-prediction.webp"):
        shutil.copy(tmp_path / "noise.webp", file)
    text = page(folder)
    steps = re.findall(r">(step [0-9,]+)", text)
    assert steps[0] == "step 1,000" and steps[-1] == "step 100,000" and "step 41,000" in steps
    assert f"{len(steps)} of 100 evaluations, evenly spaced" in text and 5 < len(steps) < 40
    assert 600_000 < len(text) < 1_700_000
    assert text.count('alt="prediction"') == 3 * len(steps) and text.count('alt="truth"') == 3
    assert "IoU 100 %" in text and "Left out, to keep" not in text


def test_damaged_previews_are_named(tmp_path):
    folder = run_folder(tmp_path / "one")
    add_previews(folder, (50, 80, 100))
    (folder / "preview/step-000000080/index.json").write_text('[{"index": "1"}]')
    (folder / "preview/step-000000100/1-image.webp").write_bytes(b"no picture")
    text = page(folder)
    assert "preview/step-000000080/index.json is left out" in text
    assert "1-image.webp is left out: it cannot be read" in text
    assert text.count("<br><span>epoch") == 2 and "val/1.jpg" in text


HOSTILE = "</script><script>alert(1)</script>\"'&\u2028\udce9"


def test_no_text_of_a_run_is_markup(tmp_path):
    rows = [*ROWS, evaluation_row(100, 0.7, 100, top1=0.7, **{HOSTILE: 0.1})]
    classes = [HOSTILE, "dog", "bird"]
    folder = run_folder(
        tmp_path / "one", rows, classes=classes, settings={HOSTILE: HOSTILE},
        command=f"trainkit {HOSTILE}", git_diff_stat=HOSTILE,
    )  # fmt: skip
    add_recognition(folder)
    about = json.loads((folder / "evaluations/step-000000100.json").read_text())
    write_json(folder / "evaluations/step-000000100.json", {**about, "classes": classes})
    text = page(folder)
    assert "<script>alert" not in text and text.count("<script") == 3
    assert embedded(text, "confusion-data")["names"][0] == HOSTILE
    assert any(chart["name"] == HOSTILE for chart in embedded(text, "curve-data")["charts"])


def test_damage_is_named_and_left_out(tmp_path):
    folder = run_folder(tmp_path / "one")
    log = (folder / "log.jsonl").read_text().splitlines()
    log[2] = "not a row"
    log[4] = log[4].replace('"lr": 0.05', '"lr": NaN')
    (folder / "log.jsonl").write_text("\n".join(log) + '\n{"event": "step", "st')
    add_recognition(folder)
    (folder / "evaluations/step-000000100.npz").write_bytes(b"PK\x03\x04 no archive")
    (folder / "starts.jsonl").write_text("{}\n")
    (folder / "results.json").write_text("[1]")
    add_pictures(folder)
    (folder / "shown/step-000000100/index.json").write_text("{")
    (folder / "train_batch.jpg").write_bytes(b"no picture")
    text = page(folder)
    for message in (
        "log.jsonl, line 3, is left out", "log.jsonl, line 5, is left out: it holds NaN",
        "step-000000100 is left out: step-000000100.npz cannot be read",
        "starts.jsonl, line 1, is left out", "results.json is damaged",
        "train_batch.jpg is left out", "index.json is left out",
    ):  # fmt: skip
        assert message in text, message
    (loss,) = (c for c in embedded(text, "curve-data")["charts"] if c["name"] == "loss")
    assert loss["series"][0]["x"] == [10, 20, 40, 60, 70, 80, 90, 100]


def test_numbers_that_are_not_finite_are_gaps(tmp_path):
    rows = [step_row(10), step_row(20, loss=None, grad_norm=10**400), step_row(30)]
    folder = run_folder(tmp_path / "one", rows, finished=False)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"event": "step", "step": 40, "epoch": 4, "loss": 1e999, "lr": 1}\n')
    (loss,) = (c for c in embedded(page(folder), "curve-data")["charts"] if c["name"] == "loss")
    assert loss["series"][0]["y"] == [1.0, None, 0.5, None]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "ended without a word"),
        ({"stopped.json": {"signal": "SIGTERM", "step": 100}}, "stopped by SIGTERM after step 100"),
        ({"summary.json": None}, "finished: 100 steps"),
    ],
)
def test_how_it_ended(tmp_path, files, message):
    folder = run_folder(tmp_path / "one", finished="summary.json" in files)
    for name, content in files.items():
        if content is not None:
            write_json(folder / name, content)
    assert message in page(folder)


def test_a_run_under_way(tmp_path):
    """Another process holds its lock, and keeps it."""
    folder = run_folder(tmp_path / "one", finished=False)
    hold = "import fcntl, sys\nlock = open(sys.argv[1], 'a+')\nfcntl.lockf(lock, fcntl.LOCK_EX)\n"
    hold += "from trainkit.cli import main\nprint(flush=True)\ninput()"
    words = [sys.executable, "-c", hold, str(folder / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd=ROOT) as other:
        other.stdout.readline()
        assert "under way, after step 100 of 100" in page(folder)
        assert "under way" in page(folder), "to look does not release it"
        other.communicate(b"\n")
    assert "under way" not in page(folder)


def test_a_run_without_an_end_claims_no_more_than_it_knows(tmp_path):
    """Its best is that so far, and its time that of its last evaluation."""
    evaluated = evaluation_row(50, 0.5, 50, top1=0.5, seconds=120.0)
    folder = run_folder(tmp_path / "one", [step_row(50), evaluated, step_row(60)], finished=False)
    text = page(folder)
    assert 'what">best top1 so far<' in text and "until step 50<" in text
    assert "ended without a word (killed, or the machine failed), after step 60 of 100" in text
    text = page(run_folder(tmp_path / "two"))
    assert 'what">best top1<' in text and "so far" not in text and "100 steps<" in text


def test_a_run_of_an_older_trainkit(tmp_path):
    """With settings and nothing else."""
    folder = tmp_path / "one"
    (folder / "checkpoints").mkdir(parents=True)
    write_json(folder / "settings.json", {"settings": {"lr": 1}, "seed": 0, "recipe": None})
    text = page(folder)
    assert "The log has no rows." in text
    assert "Left out, as the run's folder does not have it: results of an evaluation" in text


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none is not a run" in capsys.readouterr().err


def test_a_long_log(tmp_path):
    """100,000 rows; 0.9 s on an idle machine."""
    folder = run_folder(tmp_path / "one", [step_row(step) for step in range(1, 100_001)], False)
    begun = time.process_time()
    text = page(folder)
    assert time.process_time() - begun < 8
    assert len(text) < 500_000


def test_a_report_that_fails_is_one_line(tmp_path):
    folder = run_folder(tmp_path / "two\nlines")
    assert report_or_reason(folder) == f"report: {folder / 'report.html'}"
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()  # which no file can replace
    written = f"warning: {tmp_path}/two lines/report.html was not written: "
    assert report_or_reason(folder) == f"{written}Is a directory"
    nested = []
    for _ in range(900):  # deeper than Python calls itself
        nested = [nested]
    whole = json.loads((folder / "settings.json").read_text())
    write_json(folder / "settings.json", {**whole, "settings": {"sizes": nested}})
    assert report_or_reason(folder).startswith(f"{written}RecursionError: maximum recursion")
    (folder / "settings.json").write_text("{")
    assert "settings.json is damaged" in report_or_reason(folder)


SHORT = ["--sample", "--epochs", "0.2", "--warmup-epochs", "0", "--workers", "0"]


def test_a_training_and_an_evaluation_write_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "run/report.html"
    assert main([RECOG, *SHORT, "--out", "run"]) == 0
    assert "report: run/report.html" in capsys.readouterr().out
    assert "finished:" in report.read_text()
    (start,) = map(json.loads, (tmp_path / "run/starts.jsonl").read_text().splitlines())
    assert start["step"] == 0 and start["num_processes"] == 1 and start["machine"]["cores"] > 0
    report.unlink()
    evaluate = ["evaluate", "run", "--workers", "0"]
    assert main([*evaluate, "--no-report"]) == 0
    assert not report.exists() and "report:" not in capsys.readouterr().out
    report.mkdir()  # which no file can replace
    assert main(evaluate) == 0
    message = "warning: run/report.html was not written: Is a directory"
    assert message in capsys.readouterr().out
    report.rmdir()
    assert main(evaluate) == 0
    assert "trainkit evaluate</th>" in report.read_text()


def test_a_training_without_a_report(tmp_path):
    assert main([RECOG, *SHORT, "--out", str(tmp_path / "run"), "--no-report"]) == 0
    assert not (tmp_path / "run/report.html").exists()


def test_a_non_finite_training_has_a_report(tmp_path):
    assert main([RECOG, *SHORT, "--out", str(tmp_path / "run"), "--lr", "1e30"]) == 2
    assert "stopped: non-finite (NaN/Inf) in step" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/data/birds/val/wren/7.jpg", "wren/7.jpg"),
        ("val/wren/7.jpg", "wren/7.jpg"),
        ("wren/7.jpg", "wren/7.jpg"),
        ("7.jpg", "7.jpg"),
        ("row 3 of /a/b/c/set-1 (test)", "row 3 of c/set-1 (test)"),
    ],
)
def test_names_of_images_are_short(name, shown):
    assert FOLDERS.sub("", name) == shown
