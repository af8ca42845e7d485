"""Makes the pictures of the docs anew, all of generated data.

    python docs/pictures/make.py                 # trains two sample runs in a temporary folder
    python docs/pictures/make.py --runs FOLDER   # trains in FOLDER, or takes what is there

Needs chromium with chromedriver, and selenium, for the pictures of reports.
"""

import argparse
import base64
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RECIPES = ("recog_folder", "seg_folder")
MOST_BYTES, WIDEST = 100_000, 1000
# file of the docs: recipe and picture of its run
DRAWN = {
    "train_batch": ("recog_folder", "train_batch.jpg"),
    "train_batch_masks": ("seg_folder", "train_batch.jpg"),
    "val_predictions": ("seg_folder", "val_predictions.jpg"),
    "worst": ("recog_folder", "worst.jpg"),
    "classes": ("seg_folder", "classes.jpg"),
}
# file of the docs: recipe, width of the window, theme, and which part of the page: the first
# pixels, or what a selector finds
SHOTS = {
    "report": ("recog_folder", 1280, "light", 1240),
    "report_phone": ("seg_folder", 400, "dark", 900),
    "report_confusion": ("recog_folder", 1280, "light", "#confusions"),
    "report_film": ("seg_folder", 1280, "light", ".film"),
    "report_film_classes": ("recog_folder", 1280, "light", ".film"),
}


def train(recipe: str, folder: Path) -> None:
    """The recipe on generated data, where the folder has no finished run yet."""
    if (folder / "summary.json").is_file():
        return
    words = [sys.executable, "-m", "trainkit", recipe, "--sample", "--preview", "8"]
    subprocess.run([*words, "--workers", "0", "--out", str(folder)], check=True, cwd=ROOT)


def save(name: str, picture: Image.Image) -> None:
    """As WebP, smaller and coarser until it is small enough."""
    picture = picture.convert("RGB")
    picture.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
    for quality in (85, 75, 65, 50, 35):
        content = io.BytesIO()
        picture.save(content, "WEBP", quality=quality, method=6)
        if content.tell() < MOST_BYTES:
            break
    else:
        raise SystemExit(f"{name} takes {content.tell():,} bytes")
    (HERE / f"{name}.webp").write_bytes(content.getvalue())


def shoot(runs: Path) -> None:
    """Pictures of reports in a browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
        for name, (recipe, width, theme, part) in SHOTS.items():
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get((runs / recipe / "report.html").as_uri())
            driver.execute_async_script("""
                const done = arguments[arguments.length - 1], all = [...document.images];
                for (const image of all) image.loading = "eager";
                Promise.all(all.map((image) => image.decode())).then(() => done(), done)""")
            box = driver.execute_script(
                """const part = arguments[0];
                if (typeof part === "number") return [0, 0, innerWidth, part];
                const box = document.querySelector(part).getBoundingClientRect();
                return [box.x + scrollX, box.y + scrollY, box.width, box.height];""",
                part,
            )
            clip = dict(zip(("x", "y", "width", "height"), box)) | {"scale": 1}
            asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
            save(name, Image.open(io.BytesIO(base64.b64decode(shot))))


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = (asked.runs or Path(folder)).resolve()
        for recipe in RECIPES:
            train(recipe, runs / recipe)
            words = [sys.executable, "-m", "trainkit", "report", str(runs / recipe)]
            subprocess.run(words, check=True, cwd=ROOT)
        for name, (recipe, file) in DRAWN.items():
            with Image.open(runs / recipe / file) as picture:
                save(name, picture)
        shoot(runs)


if __name__ == "__main__":
    main()
