"""One word per idea, and the field's own.

Phrases that a reader would not search for are not written.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# what is not written -> what is written instead
INSTEAD = {
    r"(?:is|are|that are) no numbers?\b": "non-finite (NaN/Inf)",
    r"numbers? that (?:is|are) none": "non-finite (NaN/Inf)",
    r"numbers that are not finite": "NaN/Inf",
    r"\bgoing on\b": "resume",
    r"\b(?:go|goes|gone|went) on (?:from|there|where|with|or|after|across|exactly|bit)\b": "resume",
    r"\b(?:run|training|command|group) (?:go|goes|gone|went) on\b": "resume",
    r"\bstarted otherwise\b": "started with different settings",
    r"\bthe mathematics\b": "settings that affect the result",
    r"\bthe house\b|\brooms? of (?:its|their) own\b": "project structure; module; package",
    r"process(?:es)?,? (?:that|which) (?:\w+ to )?reads? images|process(?:es)? that reads?\b": (
        "data-loading worker"
    ),
    r"which was to read images": "worker did not start",
    r"\blookers?\b": "sliding-window inference",
    r"how (?:an )?images? (?:is|are|was|were) looked at|look at mirror images": (
        "inference settings; flip (TTA)"
    ),
    r"\bis looked at in\b|\bare looked at in\b": "sliding window",
    r"windows? (?:in|of) (?:a|one) pass\b|windows put in": "windows per forward pass; batched",
    r"\bshared? (?:weights )?out\b|\bweights shared\b": "sharded parameters (FSDP2)",
    r"what the launcher left": "Accelerator and process-group set-up",
    r"\bsmaller passes\b|\bin passes\b|passes are halved": "micro-batch, gradient accumulation",
    r"most images of one forward pass": "maximum micro-batch size",
    r"\bmemory (?:that )?r[ua]ns? out\b": "out of memory (OOM)",
    r"\bpart in the loss\b": "received no gradient (unused)",
    r"\bin one exchange\b": "collective operation",
    r"\bwithout the others\b": "without gradient sync",
    r"\bfillers?\b": "padding sample",
    r"(?:process|host)(?: or host)? is gone": "a rank or node failed",
    r"\bmeets? under (?:new |its own )?names\b": "rejoins with a new store prefix",
    r"(?:of|have) (?:an)?other shapes? keep": "shape mismatch",
    r"\bmisshapen\b": "shape mismatch",
    r"how weights meet": "matching a state dict",
    r"\bfit the model in part\b": "load only the matching weights",
    r"\blikeliest\b": "most probable (top-1)",
    r"pixels right, of the class": "true positives, ground truth, predicted",
    r"\bstray(?:ed)? references?\b|\bhas strayed\b": "out-of-range labels",
    r"\bturned upright\b|turned by its EXIF": "EXIF orientation applied",
    r"\bsize (?:that )?they are stored in\b": "at original resolution",
    r"\blabel maps?\b": "segmentation mask",
    r"\bby turns\b": "chosen per batch",
    r"\bmax[-_ ]share\b": "cat_max_ratio",
    r"random numbers an image, a step": "deterministic per-sample and per-step seeding",
    r"\bwhich image comes when\b": "deterministic, resumable batch sampler",
    r"\blanes?\b": "interleaved row groups",
    r"\bestimated? (?:batch norm's statistics )?anew\b": (
        "re-estimated BatchNorm statistics (precise BN)"
    ),
    r"\baveraged weights\b": "EMA weights",
    r"had other images been drawn|move with other images": "bootstrap confidence interval",
    r"\bmost often mistaken\b": "most frequent confusions",
    r"what a path on the command line stands for": "resolves a run, checkpoint or weights path",
    r"stand at the wrong ones": "class ids would be mapped to the wrong names",
    r"what (?:a run|it) was asked for\b|\bran on\b$": "settings and environment of a run",
    r"name it as ignored": "add it to `ignore`",
    r"accelerate's affair|launcher's affair": "through accelerate",
    r"user's mistakes?\b|\bmistakes? of the user\b|\ba mistake is told\b": "user error",
    r"\b(?:is|are|be|was|were) told\b": "reported",
    r"\bbefore the money\b": "dry run",
    r"between a batch and the optimizer": "model and loss as one module",
    r"\bthe way back from\b": "snapshot and rollback",
    r"has in hand": "training state and set-up",
    r"\bshows the whole way there\b": "shows the full traceback",
    r"\bfigures\b": "metrics; results",
}
HELD = ["README.md", "CONTRIBUTING.md", "docs", "trainkit", "recipes"]


def texts(place: str, root: Path = ROOT) -> list[Path]:
    """The files of a place: pages, or Python files."""
    path = root / place
    return (
        [path]
        if path.is_file()
        else sorted(file for end in ("md", "py") for file in path.rglob(f"*.{end}"))
    )


def read(file: Path) -> tuple[str, set[str]]:
    """The prose of a file on the lines where it stands, and names that it may have.

    Of a Python file the prose is comments and strings, and what its code calls by a name may be
    named there.
    """
    text = file.read_text()
    if file.suffix != ".py":
        return text, set()
    names = set()
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            names.add(token.string)
        is_prose = token.type in (tokenize.STRING, tokenize.COMMENT) and " " in token.string
        for number, part in enumerate(token.string.split("\n") if is_prose else ()):
            lines[token.start[0] - 1 + number] += " " + part
    return "\n".join(lines), names


def hits(place: str, root: Path = ROOT) -> list[str]:
    """Where a phrase is written, across line breaks."""
    found = []
    for file in texts(place, root):
        text, names = read(file)
        for phrase, instead in INSTEAD.items():
            spaced = phrase.replace(" ", r"[\s#*]+")
            for match in re.finditer(spaced, text, re.IGNORECASE):
                if match[0] in names:
                    continue
                line = text.count("\n", 0, match.start()) + 1
                what = " ".join(match[0].split())
                found.append(f"{file.relative_to(root)}:{line}: {what!r}: say {instead}")
    return found


@pytest.mark.parametrize("place", HELD)
def test_words_of_the_field(place):
    assert texts(place)
    found = hits(place)
    assert not found, "\n".join(found)


def test_tests_are_named_by_the_same_words():
    old = (
        "_(told|said|likeliest|figures|mistakes?|label_maps?|mathematics|looked_at|goe?s?_on)(_|$)"
    )
    names = [
        name
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    assert len(names) > 1000 and not [name for name in names if re.search(old, name)]


@pytest.mark.parametrize("place", ["trainkit", "recipes", "tests", "benchmarks"])
def test_no_variable_has_the_old_word_for_reported(place):
    found = [file for file in texts(place) if file.suffix == ".py" and "told" in read(file)[1]]
    assert texts(place) and not found


def test_phrases_are_found_across_lines(tmp_path):
    (tmp_path / "page.md").write_text(
        "A loss that is\nno number.\n\nGoing on, label maps; a resume of a mask.\n"
    )
    assert [hit.split(": say")[0] for hit in hits("page.md", tmp_path)] == [
        "page.md:1: 'is no number'",
        "page.md:4: 'Going on'",
        "page.md:4: 'label maps'",
    ]
