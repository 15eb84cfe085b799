"""The HTML of the three views: escaped, closed, and drawn by a real Chromium."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks  # type: ignore[import-not-found]
import pytest
import torch
from torch import nn

import redline
from redline.errors import SaveError
from redline.views.page import View

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps",
)  # fmt: skip

needs_browser = [
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
VIEWS = ["graph", "autograd", "gradients", "faulty"]


@pytest.fixture(scope="module")
def views() -> dict[str, View]:
    torch.manual_seed(0)
    made: dict[str, View] = {"graph": redline.graph_view(*networks.resnet50())}
    made["autograd"], made["gradients"] = _after_a_step(*networks.resnet50())
    _, made["faulty"] = _after_a_step(*networks.faulty())
    return made


def _after_a_step(model: nn.Module, x: torch.Tensor) -> tuple[View, View]:
    with redline.watch(model) as watch:
        loss = model(x).square().mean()
    graph = redline.autograd_view(loss, watch)
    loss.backward()
    return graph, redline.grad_report(watch)


@pytest.mark.parametrize("name", VIEWS)
def test_a_page_has_no_script_and_asks_for_nothing(views: dict[str, View], name: str) -> None:
    page = views[name].html()
    assert "<script" not in page
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)[a-z]+:", page)
    assert "default-src 'none'" in page


def test_names_from_a_model_are_escaped() -> None:
    class Evil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.Linear(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(self.children())(x)

    model = Evil()
    with redline.watch(model) as watch:
        loss = model(torch.ones(1, 2)).sum()
    made: list[View] = [
        redline.graph_view(model, torch.ones(1, 2)), redline.autograd_view(loss, watch)
    ]  # fmt: skip
    loss.backward()
    for view in [*made, redline.grad_report(watch)]:
        assert "<script" not in view.html()
        assert "alert(1)" in view.html()
        assert "<script>alert(1)" in view.text(width=160)


def test_files_and_frames(views: dict[str, View], tmp_path: Path) -> None:
    path = views["graph"].write_html(tmp_path / "view.html")
    assert path.read_text(encoding="utf-8") == views["graph"].html()
    with pytest.raises(SaveError, match="cannot be written"):
        views["graph"].write_html(tmp_path)
    assert views["graph"]._repr_html_().startswith("<iframe")


class Browser:
    """One Chromium for the module."""

    def __init__(self, profile: str, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.folder = folder

    def open(self, view: View, width: int, dark: bool = False) -> None:
        path = view.write_html(self.folder / "view.html")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": scheme})
        self.logs()
        self.driver.get(path.as_uri())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def logs(self) -> tuple[list[str], list[str]]:
        """Console messages, and addresses asked for, since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["documentURL"].startswith("file:")
        ]
        return console, asked


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as profile:
        found = Browser(profile, tmp_path_factory.mktemp("pages"))
        yield found
        found.driver.quit()


class TestInABrowser:
    pytestmark = needs_browser

    @pytest.mark.parametrize("name", VIEWS)
    @pytest.mark.parametrize("width", [1200, 360])
    def test_clean_console_no_requests_and_no_sideways_scroll(
        self, browser: Browser, views: dict[str, View], name: str, width: int
    ) -> None:
        browser.open(views[name], width)
        browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        console, asked = browser.logs()
        assert console == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        wide = browser.run(
            """return [...document.querySelectorAll("body *")]
            .filter((node) => !node.closest(".scroll, svg"))
            .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
            .map((node) => node.outerHTML.slice(0, 80))"""
        )
        assert wide == []

    def test_the_tree_opens_without_a_script(
        self, browser: Browser, views: dict[str, View]
    ) -> None:
        browser.open(views["graph"], 1200)
        shown = (
            "return [...document.querySelectorAll('.tree .who b')]"
            ".filter((one) => one.checkVisibility()).map((one) => one.textContent)"
        )
        before = browser.run(shown)
        assert before[:7] == ["model", "conv1", "bn1", "relu", "maxpool", "layer1", "0"]
        block = ".tree li li li details > summary"
        browser.driver.find_element("css selector", block).click()
        after = browser.run(shown)
        assert after[6:9] == ["0", "conv1", "bn1"]
        assert len(after) > len(before)

    def test_cells_stand_under_their_headings(
        self, browser: Browser, views: dict[str, View]
    ) -> None:
        for name in VIEWS:
            browser.open(views[name], 1200)
            edges = browser.run(
                """const right = (row) => [...row.querySelectorAll(".cell")]
                .map((cell) => Math.round(cell.getBoundingClientRect().right));
                return [right(document.querySelector(".heading")),
                ...[...document.querySelectorAll(".tree summary, .tree .line")]
                .filter((one) => one.checkVisibility()).map(right)]"""
            )
            assert len(edges) > 3
            assert all(row == edges[0] for row in edges)

    def test_dark_mode_is_dark(self, browser: Browser, views: dict[str, View]) -> None:
        colours = {}
        for dark in (False, True):
            browser.open(views["faulty"], 1200, dark)
            colours[dark] = browser.run(
                "return [getComputedStyle(document.body).backgroundColor,"
                "getComputedStyle(document.querySelector('svg .flops')).fill]"
            )
        assert all(light != dark for light, dark in zip(*colours.values(), strict=True))
