"""The admin's page of connections, on a bad day: a view waits in its transaction, and another for its row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from example_project.embedded import ROOT
from tests.adminsite import serving
from tests.browser.chromium import chromium, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

    from tests.adminsite.serving import Site

# Paths of whoever has taken the picture tell nobody anything.
_PLACES = """
    for (const place of document.querySelectorAll(".place, dd")) {
        place.textContent = place.textContent.replace(arguments[0] + "/tests/adminsite", "/srv/shop");
    }
"""

# The docs show those elsewhere.
_WITHOUT_FINDINGS = "document.querySelectorAll('[id^=connections-findings]').forEach(each => each.remove())"


def take_all(directory: Path) -> None:
    """Save ``admin-light.png``, ``admin-dark.png`` and ``admin-terminate.png`` in *directory*."""
    with tempfile.TemporaryDirectory() as logs, serving.serving(Path(logs)) as site:
        for name in ("light", "dark"):
            with chromium(width=1600, dark=name == "dark") as browser, site.asking() as ask:
                _sign_in(browser, site)
                ask("/orders/7/pay/")
                _wait_for(browser, lambda: _count(browser, "#scroll-default tr.warn") == 1)
                ask("/orders/7/ship/")
                _wait_for(browser, lambda: _count(browser, ".blockers") == 1)
                browser.find_element(By.ID, "connections-pause").send_keys(Keys.ENTER)
                browser.execute_script(_PLACES, str(ROOT))
                browser.execute_script(_WITHOUT_FINDINGS)
                take(browser, directory / f"admin-{name}.png", "#connections")
                if name == "light":
                    browser.find_element(By.CSS_SELECTOR, "tr:has(.blocks) .deletelink").click()
                    _wait_for(browser, lambda: _count(browser, ".connections-session"))
                    browser.execute_script(_PLACES, str(ROOT))
                    take(browser, directory / "admin-terminate.png", "#content")


def _sign_in(browser: Chrome, site: Site) -> None:
    browser.get(site.page)
    browser.find_element(By.NAME, "username").send_keys(serving.USER)
    browser.find_element(By.NAME, "password").send_keys(serving.PASSWORD, Keys.ENTER)
    _wait_for(browser, lambda: _count(browser, "#connections-findings h3"))


def _count(browser: Chrome, selector: str) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, selector))


def _wait_for(browser: Chrome, true: Callable[[], object]) -> None:
    WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: true())
