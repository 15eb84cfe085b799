"""The HTML in a real Chromium: it draws, sorts, switches, fits a phone and asks nobody."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_studies import STUDIES  # type: ignore[import-not-found]

from redline.report.report import Report

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--force-prefers-reduced-motion",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason="needs Debian's chromium and chromium-driver",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None,
        reason="needs selenium: pip install 'redline[dev]'",
    ),
    pytest.mark.xdist_group("browser"),
]


class Browser:
    """One Chromium for the module, with a window like a device's."""

    def __init__(self, profile: str, pages: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.pages = pages

    def open(self, name: str, width: int = 1200, dark: bool = False) -> None:
        """Show one of the studies' pages; logs of the page before are dropped."""
        path = self.pages / f"{name.replace(' ', '-')}.html"
        if not path.exists():
            Report(STUDIES[name]()).write_html(path)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": scheme})
        self.logs()
        self.driver.get(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait for two frames: resize observers have run by then."""
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def logs(self) -> tuple[list[str], list[str]]:
        """Console messages, and addresses asked for, since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["documentURL"].startswith(
                "file:"
            )  # not the browser's own first tab
        ]
        return console, asked


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as profile:
        found = Browser(profile, tmp_path_factory.mktemp("pages"))
        yield found
        found.driver.quit()


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("width", [1200, 360])
def test_clean_console_no_requests_and_no_sideways_scroll(
    browser: Browser, name: str, width: int
) -> None:
    browser.open(name, width)
    console, asked = browser.logs()
    assert console == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    wide = browser.run(
        """return [...document.querySelectorAll("body *")]
        .filter((node) => !node.closest(".scroll, .sr, .tip, svg"))
        .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
        .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_a_request_would_be_blocked_by_the_policy(browser: Browser) -> None:
    """The check of the check: the page may not load even what its own script asks for."""
    browser.open("realistic")
    browser.run(
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x'; document.body.append(image)"
    )
    browser.settle()
    console, _ = browser.logs()
    assert any("Content Security Policy" in message for message in console)


def test_plot_switches_its_axis(browser: Browser) -> None:
    browser.open("realistic")
    before = browser.run("return document.querySelector('#plot svg').outerHTML")
    assert "engine size" in before
    _press(browser, '[data-axis="memory"]')
    after = browser.run("return document.querySelector('#plot svg').outerHTML")
    assert "peak memory" in after
    assert before != after
    chosen = (
        "return [...document.querySelectorAll('[aria-checked=true]')].map((x) => x.dataset.axis)"
    )
    assert browser.run(chosen) == ["memory"]
    points = "return document.querySelectorAll('#plot .point').length"
    assert browser.run(points) == 7
    _press(browser, '[data-axis="size"]')
    assert browser.run(points) == 5  # eager has no size
    left_out = browser.run("return document.querySelector('.left-out').textContent")
    assert left_out == "not shown: 2 without engine size"


def test_plot_by_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open("realistic")
    browser.driver.find_element("css selector", '[data-axis="size"]').send_keys(Keys.ARROW_RIGHT)
    assert browser.run("return document.activeElement.dataset.axis") == "error"
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.classList.contains('point')")
    assert browser.run("return document.querySelector('#plot .tip').hidden") is False
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.run("return document.querySelector('#plot .tip').hidden") is True


def test_lower_left_is_smaller_and_faster(browser: Browser) -> None:
    browser.open("realistic")
    _press(browser, '[data-axis="build"]')
    spots = browser.run(
        """return Object.fromEntries([...document.querySelectorAll("#plot .point")].map((point) => {
        const box = point.querySelector(".mark").getBoundingClientRect();
        return [point.dataset.id, [box.x, box.y]]; }))"""
    )
    fast, slow = spots["openvino hint=latency threads=2"], spots["inductor mode=aot"]
    assert fast[0] < slow[0]
    assert fast[1] > slow[1]


@pytest.mark.parametrize("width", [1200, 360])
def test_tooltip_appears_inside_the_window(browser: Browser, width: int) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open("realistic", width)
    point = browser.driver.find_element("css selector", "#plot .point.winner .mark")
    ActionChains(browser.driver).move_to_element(point).click().perform()
    tip = browser.run(
        "const tip = document.querySelector('#plot .tip'), box = tip.getBoundingClientRect();"
        "return {hidden: tip.hidden, text: tip.textContent, left: box.left, right: box.right}"
    )
    assert tip["hidden"] is False
    assert tip["text"].splitlines()[:2] == [
        "openvino hint=latency threads=2",
        "latency 21.8 ms (21.5–22.1)",
    ]
    assert tip["left"] >= 0
    assert tip["right"] <= width


def test_table_sorts_both_ways_with_the_unknown_last(browser: Browser) -> None:
    browser.open("realistic")
    ids = (
        "return [...document.querySelectorAll('#candidates tbody th')].map((x) => x.dataset.value)"
    )
    latency = browser.run(ids)
    button = "#candidates th:nth-child(6) button"  # build
    _press(browser, button)
    up = browser.run(ids)
    assert up[0] == "onnxruntime threads=1 level=all"
    assert up[4] == "inductor mode=aot"
    assert {name.split()[0] for name in up[5:]} == {"eager"}
    _press(browser, button)
    down = browser.run(ids)
    assert down[0] == "inductor mode=aot"
    assert {name.split()[0] for name in down[5:]} == {"eager"}
    assert browser.run(
        "return [...document.querySelectorAll('#candidates [aria-sort]')].map((x) => x.ariaSort)"
    ) == ["descending"]
    _press(browser, "#candidates th:nth-child(2) button")
    assert browser.run(ids) == latency


def test_phone_sorts_by_the_list(browser: Browser) -> None:
    from selenium.webdriver.support.select import Select

    browser.open("realistic", 360)
    Select(browser.driver.find_element("id", "sorter")).select_by_visible_text("memory")
    first = browser.run(
        "return document.querySelector('#candidates tbody tr').cells[0].dataset.value"
    )
    assert first == "ncnn winograd=on threads=2"


def test_dark_mode_is_dark_and_readable(browser: Browser) -> None:
    colours = {}
    for dark in (False, True):
        browser.open("realistic", dark=dark)
        colours[dark] = browser.run(
            """const numbers = (text) => text.match(/[0-9.]+/g).map(Number);
            const rgb = (node, name) => numbers(getComputedStyle(node)[name]);
            const q = (x) => document.querySelector(x);
            return {paper: rgb(document.body, "backgroundColor"), ink: rgb(document.body, "color"),
                    soft: rgb(q(".muted"), "color"), win: rgb(q("tr.winner"), "backgroundColor"),
                    bad: rgb(q(".outcome.bad"), "color"), mild: rgb(q(".outcome.mild"), "color")}"""
        )
    assert colours[False]["paper"] != colours[True]["paper"]
    assert _light(colours[True]["paper"]) < 0.05 < 0.8 < _light(colours[False]["paper"])
    for found in colours.values():
        assert _contrast(found["ink"], found["paper"]) > 12
        for name in ("soft", "bad", "mild"):
            assert _contrast(found[name], found["paper"]) >= 4.5, name  # WCAG 2.2, level AA
        assert _contrast(found["soft"], found["win"]) >= 4.5


def test_every_mark_has_a_shape_of_its_own_besides_its_colour(browser: Browser) -> None:
    browser.open("realistic")
    shapes = browser.run(
        "return [...document.querySelectorAll('.legend path')].map((x) => x.getAttribute('d'))"
    )
    assert len(shapes) == len(set(shapes)) == 5


def test_everything_that_can_be_used_has_a_name(browser: Browser) -> None:
    browser.open("realistic")
    nameless = browser.run(
        """return [...document.querySelectorAll("button, select, [role]")]
        .filter((node) => !node.getAttribute("aria-label") && !node.labels?.length)
        .filter((node) => !node.textContent.trim()).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert browser.run("return document.title") == "ResNet-18 – Redline report"


def test_it_prints_with_everything_open(browser: Browser) -> None:
    browser.open("realistic")
    result = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(result["data"]) > 10_000
    assert browser.run("return [...document.querySelectorAll('details')].every((one) => one.open)")


def test_it_works_in_a_notebook_frame(browser: Browser) -> None:
    page = browser.pages / "notebook.html"
    page.write_text(
        "<!doctype html><body>" + Report(STUDIES["realistic"]())._repr_html_(), encoding="utf-8"
    )
    browser.logs()
    browser.driver.get(page.as_uri())
    browser.driver.switch_to.frame(0)
    browser.settle()
    assert browser.run("return document.querySelectorAll('#plot .point').length") == 5
    browser.driver.switch_to.default_content()
    assert browser.logs()[0] == []


def _press(browser: Browser, selector: str) -> None:
    browser.driver.find_element("css selector", selector).click()


def _light(rgb: list[float]) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (x / 255 for x in rgb[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: list[float], other: list[float]) -> float:
    high, low = sorted((_light(one), _light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
