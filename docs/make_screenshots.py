"""Pictures of a report for the docs: desktop, phone and dark, taken in headless Chromium.

    python docs/make_screenshots.py report.json docs/images --prefix report

`report.json` is what `Report.write_json()` wrote; a finished report.html does too.
Needs selenium, and Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from redline.report.report import Report

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


@dataclass(frozen=True)
class Shot:
    """One picture: CSS pixels wide, device pixels for each, colour scheme."""

    name: str
    width: int
    scale: float = 1.0
    dark: bool = False
    height: int | None = None  # None: the whole page


SHOTS = (
    Shot("desktop", 1200),
    Shot("top", 1200, 1.5, height=900),
    Shot("dark", 1200, dark=True, height=1500),
    Shot("phone", 360, 1.5, height=1800),
)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium that looks for no driver and calls no one."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in QUIET:
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def take(driver: webdriver.Chrome, page: Path, shot: Shot, target: Path) -> None:
    """Open the page as a device of that width and write a PNG."""
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if shot.dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    _resize(driver, shot, shot.height or 900)
    driver.get(page.resolve().as_uri())
    height = shot.height or driver.execute_script("return document.documentElement.scrollHeight")
    _resize(driver, shot, height)
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    driver.get_screenshot_as_file(str(target))


def _resize(driver: webdriver.Chrome, shot: Shot, height: int) -> None:
    size = {"width": shot.width, "height": height, "deviceScaleFactor": shot.scale}
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", size | {"mobile": shot.width < 600}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Take every picture of SHOTS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.json or report.html")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--prefix", default="report", help="how their names begin")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        page = chosen.report
        if page.suffix != ".html":
            page = Report.from_json(page.read_bytes()).write_html(Path(folder) / "report.html")
        for shot in SHOTS:
            target = chosen.folder / f"{chosen.prefix}-{shot.name}.png"
            take(driver, page, shot, target)
            print(target)


if __name__ == "__main__":
    main()
