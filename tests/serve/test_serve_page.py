"""The page in a real Chromium: it draws, tries models, asks for a key, and calls nobody else."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ops_samples import serving  # type: ignore[import-not-found]
from page_samples import KINDS, Served  # type: ignore[import-not-found]

from redline.serve.keys import Keys
from redline.serve.ops import Operations
from redline.serve.security import Access

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--force-prefers-reduced-motion",
)  # fmt: skip
KEY = "user-key-0123456789"

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
    """One Chromium for the module, and the server that it looks at."""

    def __init__(self, profile: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))

    def open(self, port: int, width: int = 1200, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": scheme})
        self.logs()
        self.driver.get(f"http://127.0.0.1:{port}/")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def until(self, script: str, *arguments: Any) -> Any:
        """What the script returns, once it is true."""
        deadline = time.monotonic() + 30
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)
        return found

    def choose(self, model: str) -> None:
        self.until("return document.getElementById('model').options.length > 0")
        self.run(
            """const select = document.getElementById("model");
            const fits = (one) => one.text.startsWith(arguments[0]);
            select.value = [...select.options].find(fits).value;
            select.dispatchEvent(new Event("change"));""",
            model,
        )
        self.until("return !document.getElementById('run').disabled")

    def try_it(self) -> str:
        self.run("document.getElementById('result').replaceChildren()")
        self.run("document.getElementById('run').click()")
        return str(self.until("return document.getElementById('result').textContent"))

    def logs(self) -> tuple[list[str], list[str]]:
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["documentURL"].startswith("http")
        ]
        return console, asked


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as profile:
        found = Browser(profile)
        yield found
        found.driver.quit()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Served, int]]:
    inner = Served()
    app = Operations(inner, inner.plane, Access(), metrics=inner.metrics)
    with serving(app) as port:
        yield inner, port


@pytest.mark.parametrize("width", [1200, 360])
def test_clean_console_own_server_only_and_no_sideways_scroll(
    browser: Browser, served: tuple[Served, int], width: int
) -> None:
    port = served[1]
    browser.open(port, width)
    browser.choose("copy")
    console, asked = browser.logs()
    assert console == []
    assert asked
    assert [
        url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))
    ] == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    wide = browser.run(
        """return [...document.querySelectorAll("body *")]
        .filter((node) => !node.closest(".scroll, svg"))
        .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
        .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_models_and_names_that_are_markup(browser: Browser, served: tuple[Served, int]) -> None:
    browser.open(served[1])
    browser.until("return document.querySelectorAll('#models tr').length === 3")
    assert browser.text("#health") == "ready"
    names = browser.run(
        "return [...document.querySelectorAll('#models th')].map((x) => x.textContent)"
    )
    assert "<img src=x onerror=alert(1)>" in names
    assert browser.run("return document.querySelector('img')") is None
    served[0].plane.is_ready = False
    browser.until("return document.getElementById('health').textContent === 'live, not ready'")
    served[0].plane.is_ready = True


@pytest.mark.parametrize("fill", ["random", "zeros", "ones", "ramp"])
def test_every_datatype_goes_there_and_back(
    browser: Browser, served: tuple[Served, int], fill: str
) -> None:
    """The model answers what it got, so what is shown must be what was in the form."""
    browser.open(served[1])
    browser.choose("copy")
    browser.run(
        """const fill = document.getElementById("fill"); fill.value = arguments[0];
        fill.dispatchEvent(new Event("change"));""",
        fill,
    )
    sent = browser.run(
        "return [...document.querySelectorAll('#inputs textarea')].map((x) => JSON.parse(x.value))"
    )
    assert "error" not in browser.try_it()
    shown = browser.run(
        "return [...document.querySelectorAll('#result pre')].map((x) => x.textContent)"
    )
    assert len(shown) == len(KINDS)
    for kind, values, text in zip(KINDS, sent, shown, strict=True):
        first = text.splitlines()[0]
        if kind == "BYTES":
            assert json.loads(f"[{first}]") == values
        elif kind == "BOOL":
            assert [one == "true" for one in first.split(", ")] == [bool(one) for one in values]
        else:
            near = {"BF16": 1e-2, "FP16": 1e-3}.get(kind, 1e-6)
            assert [float(one) for one in first.split(", ")] == pytest.approx(values, abs=near)


def test_values_that_were_typed_and_errors(browser: Browser, served: tuple[Served, int]) -> None:
    browser.open(served[1])
    browser.choose("<img")
    write = "document.querySelector('#inputs textarea').value = arguments[0]"
    browser.run(write, "[1.5, -2]")
    assert "1.5, -2" in browser.try_it()
    for text, said in (
        ("[1]", "got 1 values, expected 2"),
        ("nonsense", "expected a JSON list"),
        ('[1, "a"]', "is not a number"),
    ):
        browser.run(write, text)
        assert said in browser.try_it()
    browser.choose("copy")
    browser.run(
        """document.querySelectorAll(".shape input:not(:disabled)").forEach((box) => {
        box.value = 7; box.dispatchEvent(new Event("change")); });"""
    )
    assert "<b>[7, 3]</b>" in browser.try_it()
    assert browser.run("return document.querySelector('#result b')") is None


def test_a_large_input_is_made_when_it_runs(browser: Browser, served: tuple[Served, int]) -> None:
    browser.open(served[1])
    browser.choose("image")
    assert "12,288 values" in browser.run("return document.querySelector('textarea').value")
    assert "12,224 more" in browser.try_it()
    assert len(served[0].bodies[-1]) > 4 * 12_288


def test_numbers_move(browser: Browser, served: tuple[Served, int]) -> None:
    browser.open(served[1])
    browser.choose("<img")
    before = served[0].plane.rows[2]["inference_stats"]["success"]["count"]
    for _ in range(3):
        browser.try_it()
    count = "return [...document.querySelectorAll('#models tr')][2].children[6].textContent"
    browser.until(f"return (() => {{ {count} }})() === arguments[0]", str(before + 3))
    browser.until("return document.getElementById('p50').textContent !== '–'")
    browser.until("return document.querySelector('#latency circle') !== null")
    assert re.fullmatch(r"[\d.]+ (µs|ms|s)", browser.text("#p99"))
    assert re.fullmatch(r"[\d.]+ [MG]B", browser.text("#memory"))
    assert browser.run("return document.querySelectorAll('#throughput path').length") == 1


def test_dark_mode_is_dark(browser: Browser, served: tuple[Served, int]) -> None:
    colours = []
    for dark in (False, True):
        browser.open(served[1], dark=dark)
        colour = "getComputedStyle(document.body).backgroundColor"
        colours.append(browser.until(f"return {colour} !== 'rgba(0, 0, 0, 0)' && {colour}"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_the_policy_blocks_what_a_page_must_not_do(
    browser: Browser, served: tuple[Served, int]
) -> None:
    """The check of the check."""
    browser.open(served[1])
    browser.run(
        """const script = document.createElement("script");
        script.textContent = "window.evil = 1"; document.head.append(script);
        fetch("http://127.0.0.1:9/").catch(() => {});"""
    )
    assert browser.run("return window.evil === undefined")
    time.sleep(0.2)
    console, _ = browser.logs()
    assert sum("Content Security Policy" in message for message in console) >= 2


def test_a_key_is_asked_for_and_used(browser: Browser) -> None:
    inner = Served()
    app = Operations(inner, inner.plane, Access(Keys.of([KEY])), metrics=inner.metrics)
    with serving(app) as port:
        browser.open(port)
        browser.until("return !document.getElementById('keyform').hidden")
        browser.run(
            """document.getElementById("key").value = arguments[0];
            document.querySelector("#keyform button").click();""",
            KEY,
        )
        browser.until("return document.querySelectorAll('#models tr').length === 3")
        assert browser.run("return document.getElementById('keyform').hidden")
        browser.choose("<img")
        assert "answered in" in browser.try_it()
        assert KEY not in browser.run("return document.documentElement.outerHTML")
        assert KEY not in browser.run("return location.href + JSON.stringify(localStorage)")


def test_another_sites_page_cannot_call_the_server(
    browser: Browser, served: tuple[Served, int]
) -> None:
    """A page of another origin (another port) sends a request that needs no preflight."""
    other, count = Served(), len(served[0].bodies)
    app = Operations(other, other.plane, Access(), metrics=other.metrics)
    with serving(app) as port:
        told = httpx.get(f"http://127.0.0.1:{port}/").status_code
        assert told == 200
        browser.driver.get("data:text/html,<title>evil</title>")
        browser.run(
            """window.done = 0;
            fetch(arguments[0], {method: "POST", mode: "no-cors", body: "{}"})
            .finally(() => { window.done = 1; });""",
            f"http://127.0.0.1:{served[1]}/v2/models/copy/infer",
        )
        browser.until("return window.done === 1")
    assert len(served[0].bodies) == count
