"""What `trainkit push` publishes, in a folder.

It loads, evaluates to the run's metrics and names no machine.
"""

import base64
import json
import platform
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import ModelCard, constants
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers.processes import forked
from helpers.toy_recipes import Net, everything
from trainkit.cli import main
from trainkit.commands.push import without_places
from trainkit.storage import checkpoint
from trainkit.storage.lookup import trained_steps
from trainkit.storage.weights import read_weights, start_from
from trainkit.tasks.mask_classification import MaskClassification

RECIPE = '''"""A toy."""
from beside import make

def recipe(data: str = "toys", lr: float = 0.1, averaged: bool = False):
    """A toy.

    Args:
        data: nothing is read there
        lr: learning rate
        averaged: keep an average of the weights
    """
    return make(averaged)
'''
BESIDE = '''"""What the recipe imports."""
from helpers import toy_recipes

def make(averaged):
    return toy_recipes.everything() if averaged else toy_recipes.recognition(epochs=2)
'''
FILES = [
    "README.md",
    "beside.py",
    "log.jsonl",
    "model.json",
    "model.safetensors",
    "recipe.py",
    "results.json",
    "settings.json",
]


def trained(folder: Path, *words: str) -> Path:
    (folder / "mine.py").write_text(RECIPE)
    (folder / "beside.py").write_text(BESIDE)
    run = folder / "runs" / "mine"
    forked(folder / "mine.py", "--workers", "0", "--out", run, *words)
    return run


def best_row(run: Path) -> dict:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["event"] == "evaluate"]
    return next(row for row in rows if row["step"] == rows[-1]["best_step"])


@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_published(tmp_path, monkeypatch, averaged):
    monkeypatch.chdir(tmp_path)
    run = trained(
        tmp_path, f"--data={tmp_path}/secret place/toys", *(["--averaged"] if averaged else [])
    )
    row = best_row(run)
    assert (
        main(
            [
                "push",
                "runs/mine",
                "me/toy",
                "--folder",
                "new/pub",
                "--license",
                "mit",
                "--dataset",
                "me/data",
            ]
        )
        == 0
    )
    pub = tmp_path / "new" / "pub"
    contents = {path.name: path.read_bytes() for path in pub.iterdir()}
    assert sorted(contents) == FILES

    weights, kept = (
        load_file(pub / "model.safetensors"),
        run / "checkpoints" / f"step-{row['best_step']:09d}",
    )
    best = checkpoint.load(kept)[1]["ema"]["averages"] if averaged else checkpoint.load(kept)[0]
    assert weights.keys() == read_weights(kept)[0].keys() and len(weights) > 5
    assert all(torch.equal(weights[name], tensor) for name, tensor in best.items())
    assert (
        len(start_from(everything().model if averaged else Net(False), pub / "model.safetensors"))
        == 1
    )

    # for a task that changes with the step
    steps = row["best_step"], json.loads((run / "settings.json").read_text())["total_steps"]
    assert trained_steps(MaskClassification(3), pub, pub / "model.safetensors") == steps

    # Measured again by the card's command, without a setting: the very metrics of the run.
    expected = {name: row[f"ema_{name}" if averaged else name] for name in ("top1", "top5")}
    published = json.loads((pub / "results.json").read_text())
    for weights in ("model.safetensors", "."):
        assert (
            main(
                [
                    "evaluate",
                    str(pub / "recipe.py"),
                    "--weights",
                    str(pub / weights),
                    "--workers",
                    "0",
                ]
            )
            == 0
        )
        again = json.loads((pub / "results.json").read_text())
        assert {name: again[name] for name in expected} == expected and again["num_images"] == 13
        assert again["settings"]["averaged"] is averaged and again["sha256"] == published["sha256"]
    assert {name: published[name] for name in expected} == expected

    card = ModelCard.load(pub / "README.md")
    about = {"datasets": "me/data", "library_name": "trainkit", "license": "mit"}
    about["pipeline_tag"] = "image-classification"
    assert about.items() <= card.data.to_dict().items()
    found = {each.metric_name: each for each in card.data.eval_results}
    assert {name: each.metric_value for name, each in found.items() if name in expected} == expected
    assert found["top1"].metric_type == "accuracy" and found["top1"].dataset_type == "me/data"
    assert "trainkit evaluate recipe.py --weights model.safetensors --data FOLDER\n" in card.text
    assert (
        "recipe.py my_photos --weights model.safetensors --data FOLDER --out predictions\n"
        in card.text
    )
    whose = "the moving average of the weights" if averaged else "the weights"
    assert (
        f"`model.safetensors` holds {whose} after step {row['step']} of {4 * (2 + averaged)}"
        in card.text
    )
    assert "trainkit mine.py --workers 0 --out mine --data=toys" in card.text.replace("'", "")
    assert (
        f"| version of torch | {torch.__version__.split('+')[0]}" in card.text
        and "| averaged | " in card.text
    )
    for name, content in contents.items():
        for word in (str(tmp_path), "secret", str(Path.home()), platform.node()):
            assert word.encode() not in content, (name, word)


def test_results_of_an_evaluation_stand_in_it_where_they_are_of_the_same_weights(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, "--averaged")
    assert main(["evaluate", "mine.py", "--weights", str(run), "--workers", "0"]) == 0
    measured = json.loads((run / "results.json").read_text())
    assert main(["push", str(run), "me/toy", "--folder", "one"]) == 0
    published = json.loads(Path("one/results.json").read_text())
    assert (
        published["top1"] == measured["ema_top1"]
        and published["top1_95"] == measured["ema_top1_95"]
    )
    assert not [name for name in published if name.startswith("ema_")]
    assert (
        published["checkpoint"] == "model.safetensors" and published["sha256"] != measured["sha256"]
    )
    assert "By `trainkit evaluate` on the same weights" in Path("one/README.md").read_text()
    (run / "model.safetensors").write_text("of others")  # a run has its own
    (run / "results.json").write_text(
        json.dumps({**measured, "sha256": "of others", "ema_top1": 0.123})
    )
    assert main(["push", str(run), "me/toy", "--folder", "two"]) == 0
    assert json.loads(Path("two/results.json").read_text())["top1"] == best_row(run)["ema_top1"]
    assert "By `trainkit evaluate`" not in Path("two/README.md").read_text()


def test_paths_are_shortened():
    value = {
        "a": "/x/y/data",
        "b": ["../z", "~/me/w.pth"],
        "c": r"C:\u\data",
        "d": "a/b",
        "e": 3,
        "f": "--x=/y/z",
    }
    assert without_places(value) == {
        "a": "data",
        "b": ["z", "w.pth"],
        "c": "data",
        "d": "a/b",
        "e": 3,
        "f": "--x=z",
    }
    for words, shown in {
        "--data=/home/me/date=1/y": "--data=y",
        "file:///home/me/x": "x",
        "a,/home/me": "a,me",
        "./../home/me": "me",
        "runs/../../home/me/x": "x",
        "['/home/me/a b', \"/x,y/c\"]": "['a b', \"c\"]",
        "timm:/home/me/x": "timm:x",
        "https://a.b/c/d?e=/home/me/f": "https://a.b/c/d?e=f",
        "hf://datasets/a/b": "hf://datasets/a/b",
        "door / window": "door / window",
        "datasets/and/or": "datasets/and/or",
    }.items():
        assert without_places([words]) == [shown]


@given(
    st.text("ab01 .,;:='\"()[]{}@|?&-+/\\~\n"),
    st.sampled_from(["", "/", "/x", "/a=b,c/d e", "/../y", ", /home/me"]),
)
def test_no_home_survives(before, after):
    assume(not before or before[-1] not in "ab01./\\~")  # of another path, or of an address
    assert "/home" not in without_places(f"{before}/home/me{after}")


def test_a_folder_is_no_name_on_the_hub_wherever_it_is_pushed_from(tmp_path, monkeypatch):
    """It is told apart where the run was made.

    A name on the Hub stays one where there is such a folder.
    """
    (tmp_path / "datasets" / "ade20k").mkdir(parents=True)
    (tmp_path / "elsewhere" / "owner" / "photos").mkdir(parents=True)
    for data, published in (("datasets/ade20k", None), ("owner/photos", "owner/photos")):
        monkeypatch.chdir(tmp_path)
        run = trained(tmp_path, "--data", data, "--resume", "never")
        monkeypatch.chdir(tmp_path / "elsewhere")
        pub = Path(f"pub-{published}".replace("/", "-"))
        assert main(["push", str(run), "me/toy", "--folder", str(pub)]) == 0
        assert ModelCard.load(pub / "README.md").data.datasets == published
        assert str(tmp_path) not in (pub / "settings.json").read_text()


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does.

    me/new may be made, me/public is there, and for others the token is unknown.
    """

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        rows = [
            json.loads(line)
            for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        ]
        if "/preupload/" in self.path:
            modes = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in rows[0]["files"]
            ]
            self.answer(200, {"files": modes})
        elif "/commit/" in self.path:
            files = [row["value"] for row in rows if row["key"] == "file"]
            self.server.uploaded |= {
                each["path"]: base64.b64decode(each["content"]) for each in files
            }
            self.answer(
                200,
                {
                    "success": True,
                    "commitOid": "c" * 40,
                    "commitUrl": f"{self.server.url}/me/new/commit/c",
                },
            )
        elif self.path.endswith("/validate-yaml"):
            self.answer(200, {"warnings": [], "errors": []})
        else:
            self.server.asked = rows[0]
            status = {"new": 200, "public": 409}.get(rows[0]["name"], 401)
            self.answer(
                status, {"error": "there already", "url": f"{self.server.url}/me/{rows[0]['name']}"}
            )

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/me/").split("/")[0]
        self.answer(
            200 if name in ("new", "public") else 401,
            {"id": f"me/{name}", "private": name == "new"},
        )

    def log_message(self, *words) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url, server.uploaded = f"http://127.0.0.1:{server.server_port}", {}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_what_is_uploaded_is_what_a_folder_gets(tmp_path, monkeypatch, capsys, hub):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    assert main(["push", "runs/mine", "me/new", "--folder", "pub"]) == 0
    assert hub.uploaded == {} and not hasattr(hub, "asked")
    assert main(["push", "runs/mine", "me/new", "--private"]) == 0
    assert hub.uploaded == {path.name: path.read_bytes() for path in Path("pub").iterdir()}
    assert (
        hub.asked["visibility"] == "private"
        and f"{hub.url}/me/new/commit/c: README.md" in capsys.readouterr().out
    )


def test_user_errors(tmp_path, monkeypatch, capsys, hub):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path)

    def stderr(*words: str) -> str:
        capsys.readouterr()
        try:
            code = main(["push", *words])
        except SystemExit as stopped:  # tyro's way
            code = stopped.code
        assert code == 2, words
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    assert "which run? `trainkit push RUN ...`" in stderr()
    assert "nowhere is not a run: give the folder" in stderr("nowhere", "me/toy", "--folder", "pub")
    assert "Missing from trainkit push runs/mine" in stderr("runs/mine")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "not logged in to the Hugging Face Hub: log in with `hf auth login`" in stderr(
        "runs/mine", "me/toy"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "'me/a/b' is no name on the Hub: give owner/name" in stderr("runs/mine", "me/a/b")
    shown = stderr("runs/mine", "me/toy")
    assert (
        "the Hub refused me/toy: " in shown
        and "log in with `hf auth login`, or set HF_TOKEN" in shown
    )
    assert "me/public is on the Hub already, and public: nothing was uploaded" in stderr(
        "runs/mine", "me/public", "--private"
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "me/toy could not be uploaded, the Hub cannot be reached: ConnectError" in stderr(
        "runs/mine", "me/toy"
    )
    assert "runs is not an empty folder; choose another with --folder" in stderr(
        "runs/mine", "me/toy", "--folder", "runs"
    )
    for path in (run / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    assert "the run in runs/mine has no checkpoint yet" in stderr(
        "runs/mine", "me/toy", "--folder", "pub"
    )
    (tmp_path / "step-000000004").rename(run / "checkpoints" / "step-000000004")
    (run / "recipe.py").unlink()
    assert "runs/mine holds no recipe.py, and model.json does not say how its network" in stderr(
        "runs/mine", "me/toy", "--folder", "pub"
    )
    assert not (tmp_path / "pub").exists()
