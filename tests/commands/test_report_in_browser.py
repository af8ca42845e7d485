"""Reports in a real browser, where there is one: chromium and chromedriver, driven by selenium."""

import json
import shutil

import pytest

from helpers.run_folders import (
    ROWS,
    add_pictures,
    add_previews,
    add_recognition,
    add_segmentation,
    run_folder,
    step_row,
    write_json,
)
from trainkit.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium", reason="selenium drives the browser")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium with chromedriver: Debian has both (chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The pages of a recognition run, of a segmentation run, and of both."""
    place = tmp_path_factory.mktemp("reports")
    rows = [*ROWS, step_row(110, loss=None)]
    one, two = run_folder(place / "one", rows), run_folder(place / "two")
    add_recognition(one)
    add_segmentation(two)
    for folder in (one, two):
        add_pictures(folder, segmentation=folder is two)
        assert main(["report", str(folder)]) == 0
    assert main(["report", str(one), str(two), "--out", str(place / "both.html")]) == 0
    return {"one": one / "report.html", "two": two / "report.html", "both": place / "both.html"}


def opened(browser, page, width=1280, theme="light"):
    """Show a page, and check that it drew all, said nothing, and asked for nothing."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for kind in ("browser", "performance"):  # what was said of an earlier page
        browser.get_log(kind)
    browser.get(page.as_uri())
    wait(browser, "return document.documentElement.hasAttribute('data-ready')")
    wait(browser, "return document.querySelectorAll('.plot svg').length > 3")
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {
        each["params"]["request"]["url"].partition(":")[0]
        for each in asked
        if each["method"] == "Network.requestWillBeSent"
    }
    assert addresses <= {"file", "data"}
    assert len([each for each in asked if "file:" in str(each["params"].get("request"))]) <= 1


def wait(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(script))


def background(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("name", ["one", "two", "both"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_drawn(browser, reports, name, width, theme):
    opened(browser, reports[name], width, theme)
    found = browser.execute_script("""
        return [...document.querySelectorAll('figure.chart')].map((chart) => [
            chart.dataset.chart, chart.querySelectorAll('path.raw').length,
            [...chart.querySelectorAll('path.raw')].every((path) => path.getAttribute('d')),
            chart.querySelector('.plot svg').getBoundingClientRect().width])""")
    assert found and all(count and drawn and wide > 150 for _, count, drawn, wide in found)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = browser.execute_async_script("""
        const done = arguments[arguments.length - 1], all = [...document.images];
        for (const image of all) image.loading = "eager";
        Promise.all(all.map((image) => image.decode())).then(() => done(all.length), done)""")
    assert pictures == {"one": 5, "two": 17, "both": 0}[name]
    dark = sum(map(int, background(browser).strip("rgb()").split(",")[:3])) < 200
    assert dark == (theme == "dark")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_film_strip_scrolls_by_itself(browser, tmp_path, width):
    """The page is as wide as the screen, and the images stay beside what is predicted of them."""
    run = run_folder(tmp_path / "run")
    add_previews(run, range(5, 105, 5), segmentation=True)
    assert main(["report", str(run)]) == 0
    opened(browser, run / "report.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    left, moved, wide = browser.execute_script("""
        const film = document.querySelector('.film'), image = film.querySelector('td img');
        film.scrollLeft = 10000;
        const last = [...film.querySelectorAll('tbody tr:first-child img')].pop();
        return [image, last, film].map((each) => each.getBoundingClientRect())
            .map((box, number) => number ? box.right : box.left)""")
    assert 0 <= left < 80 and moved <= wide


def test_a_failure_after_the_last_row_is_marked_in_the_charts(browser, tmp_path):
    """The log has no row of the step that failed."""
    run = run_folder(tmp_path / "run", finished=False)
    report = {
        "step": 108, "num_processes": 1, "precision": "no", "checkpoint": None, "micro_batch": None,
        "on_bad_image": "stop", "channels_last": False, "tf32": False, "grad_norm": "nan",
    }  # fmt: skip
    write_json(run / "failures/step-000000108/report.json", report)
    assert main(["report", str(run)]) == 0
    opened(browser, run / "report.html")
    marks = browser.execute_script("""
        return [...document.querySelectorAll('figure.chart')].map((chart) => {
            const mark = chart.querySelector('.mark.failure'), axis = chart.querySelector('.axis');
            const left = Number(axis.getAttribute('x1')), right = Number(axis.getAttribute('x2'));
            return (Number(mark.getAttribute('x1')) - left) / (right - left)})""")
    assert len(marks) > 3 and marks == pytest.approx([1.0] * len(marks))


def test_hover_says_what_is_there(browser, reports):
    from selenium.webdriver import ActionChains

    opened(browser, reports["one"])
    plot = browser.find_element("css selector", '[data-chart="loss"] .plot')
    ActionChains(browser).scroll_to_element(plot).move_to_element(plot).perform()
    tip = plot.find_element("css selector", ".tip")
    assert tip.is_displayed() and "step 50, epoch 5" in tip.text
    ActionChains(browser).move_by_offset(50, 0).perform()
    assert "step 70, epoch 7" in tip.text
    assert "training" in tip.text and "validation (step 50)" in tip.text
    assert browser.execute_script("return document.querySelectorAll('.cross').length") > 3
    ActionChains(browser).move_by_offset(0, -300).perform()
    assert not tip.is_displayed()


def test_zoom_log_and_smoothing(browser, reports):
    from selenium.webdriver import ActionChains

    opened(browser, reports["one"])
    plot = browser.find_element("css selector", '[data-chart="loss"] .plot')
    path = "return document.querySelector('[data-chart=loss] path.raw').getAttribute('d')"
    whole = browser.execute_script(path)
    actions = ActionChains(browser).scroll_to_element(plot)
    actions.move_to_element_with_offset(plot, -60, 0).click_and_hold()
    actions.move_by_offset(120, 0).release().perform()
    zoomed = browser.execute_script(path)
    button = browser.find_element("id", "reset-zoom")
    assert zoomed != whole and button.is_displayed()
    button.click()
    assert browser.execute_script(path) == whole and not button.is_displayed()
    log = browser.find_element("css selector", '[data-chart="loss"] figcaption button')
    log.click()
    assert browser.execute_script(path) != whole
    log.click()
    browser.execute_script("""const slider = document.getElementById('smoothing');
        slider.value = 0.9; slider.dispatchEvent(new Event('input'))""")
    assert browser.execute_script(path) == whole, "the raw points stay"
    smooth = browser.find_elements("css selector", '[data-chart="loss"] path.smooth')
    assert len(smooth) == 2 and smooth[0].get_attribute("d") != whole


def test_a_gap_is_marked(browser, reports):
    opened(browser, reports["one"])
    marks = browser.find_elements("css selector", '[data-chart="loss"] .gap')
    assert [each.text[:1] for each in marks] == ["×"]


def test_the_theme_can_be_changed(browser, reports):
    opened(browser, reports["one"])
    light = background(browser)
    browser.find_element("id", "theme").click()
    assert background(browser) != light
    browser.find_element("id", "theme").click()
    assert background(browser) == light


def test_the_confusion_matrix_answers(browser, reports):
    from selenium.webdriver import ActionChains

    opened(browser, reports["one"])
    canvas = browser.find_element("css selector", "#confusion canvas")
    ActionChains(browser).scroll_to_element(canvas).move_to_element(canvas).perform()
    corner = "return document.querySelector('#confusion canvas').clientWidth"
    half = browser.execute_script(corner) // 2
    ActionChains(browser).move_to_element_with_offset(canvas, half - 8, half - 8).perform()
    tip = browser.find_element("css selector", "#confusion .tip")
    assert "bird → bird" in tip.text and "of the class" in tip.text


def test_a_table_is_sorted_by_a_click(browser, reports):
    opened(browser, reports["two"])
    head = browser.find_element("css selector", "table.sorted th button")
    browser.execute_script("arguments[0].click()", head)
    names = browser.execute_script(
        "return [...document.querySelectorAll('table.sorted tbody tr')]"
        ".map((row) => row.cells[0].textContent)"
    )
    assert names == ["bird", "cat", "dog"]
