"""The toolbar of a page, as somebody at the browser uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

PANEL = "ConnectionsPanel"
# Seconds, on a machine that does other things as well.
_PATIENCE = 20


def when(browser: Chrome, true: Callable[[], Any]) -> Any:
    """Return what *true* returns, once that is anything; the toolbar's scripts replace their elements meanwhile."""
    wait = WebDriverWait(browser, _PATIENCE, poll_frequency=0.05, ignored_exceptions=[WebDriverException])
    return wait.until(lambda _: true())


def root(browser: Chrome) -> Any:
    """Return what the toolbar is in: a shadow root, unless it is told to do without."""
    return browser.execute_script("const root = document.querySelector('#djDebugRoot'); return root.shadowRoot || root")


def find(browser: Chrome, selector: str) -> Any:
    return when(browser, lambda: root(browser).find_element(By.CSS_SELECTOR, selector))


def find_all(browser: Chrome, selector: str) -> list[Any]:
    found: list[Any] = root(browser).find_elements(By.CSS_SELECTOR, selector)
    return found


def open_panel(browser: Chrome, panel: str = PANEL) -> Any:
    """Open a panel by its link, and return its content, once that is there."""
    link = find(browser, f"a.{panel}")
    when(browser, link.is_displayed)
    link.click()
    return content(browser, panel)


def content(browser: Chrome, panel: str = PANEL) -> Any:
    return when(
        browser,
        lambda: next((each for each in find_all(browser, f"#{panel} .djdt-scroll") if each.text.strip()), None),
    )


def switch_to(browser: Chrome, path: str) -> None:
    """Have the toolbar show what it has stored of a request for *path*, as its history offers."""
    open_panel(browser, "HistoryPanel")

    def switched() -> bool:
        [row] = [each for each in find_all(browser, "#djdtHistoryRequests tr[data-request-id]") if path in each.text]
        row.find_element(By.CSS_SELECTOR, ".switchHistory").click()
        return True

    when(browser, switched)
