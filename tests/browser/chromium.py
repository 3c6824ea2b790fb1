"""A Chromium without a window, driven by Selenium: for the tests, and for the pictures in the docs."""

from __future__ import annotations

import base64
import contextlib
import shutil
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

#: Why tests of pages are skipped, where they are.
MISSING = "No chromium and chromedriver: apt-get install chromium chromium-driver"

# Debian's names first; the others are those of other distributions and of macOS by Homebrew.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str | None:
    """Return the path of a Chromium that has its driver beside it; None without one."""
    if shutil.which("chromedriver") is None:
        return None
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


@contextlib.contextmanager
def chromium(*, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Chrome]:
    """Yield a browser of a profile of its own; *width* and *height* in CSS pixels.

    :raises RuntimeError: There is none; see :func:`browser_path`.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    path, driver = browser_path(), shutil.which("chromedriver")
    if path is None:
        raise RuntimeError(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = path
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for argument in (
            "--headless=new",
            # As root, which it refuses to be in a sandbox; it is shown nothing but our own pages.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            # A container's /dev/shm is small.
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-prefers-reduced-motion",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            # Of a page whose requests wait for a connection that never comes.
            browser.set_page_load_timeout(30)
            yield browser
        finally:
            browser.quit()


def said(browser: Chrome) -> list[str]:
    """Return what the page has complained of since the last call: errors of JavaScript, resources that are missing."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def take(browser: Chrome, path: Path, selector: str = "body") -> None:
    """Save a picture of the element that *selector* finds, whole, in two pixels for each of CSS."""
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    box = {key: element.rect[key] for key in ("x", "y", "width", "height")}
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"format": "png", "captureBeyondViewport": True, "clip": box | {"scale": 2}},
    )
    path.write_bytes(base64.b64decode(shot["data"]))
