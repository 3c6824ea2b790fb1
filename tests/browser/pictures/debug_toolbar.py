"""The panel of django-debug-toolbar, in both themes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser.chromium import chromium, take
from tests.browser.toolbar import open_panel
from tests.browser.toolbar_site import serving

if TYPE_CHECKING:
    from pathlib import Path


def take_all(directory: Path) -> None:
    with serving() as address:
        for theme in ("light", "dark"):
            with chromium(width=1200, height=820, dark=theme == "dark") as browser:
                # The first request of a process does what no other one has to.
                browser.get(f"{address}/order/")
                browser.get(f"{address}/order/")
                open_panel(browser)
                # The toolbar covers the window, and the page is shorter.
                browser.execute_script(
                    "Object.assign(document.body.style,"
                    " {margin: 0, display: 'flow-root', minHeight: `${innerHeight}px`})"
                )
                name = "debug-toolbar-panel.png" if theme == "light" else "debug-toolbar-panel-dark.png"
                take(browser, directory / name)
