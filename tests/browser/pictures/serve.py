"""The first page of the example site: half-way, and after both runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser.chromium import chromium, take
from tests.browser.serving import begin, is_over, serving, when

if TYPE_CHECKING:
    from pathlib import Path


def take_all(directory: Path) -> None:
    with serving() as site:
        for theme in ("light", "dark"):
            with chromium(dark=theme == "dark", width=1300) as browser:
                browser.get(f"{site.address}/")
                begin(browser, "with")
                when(browser, lambda: is_over(browser, "with"))
                begin(browser, "without")
                if theme == "light":
                    # When some have been served, and the others cannot be any more.
                    when(browser, lambda: len(browser.find_elements("css selector", "#without rect.served")) >= 12)
                    take(browser, directory / "serve-half-way.png", ".sides")
                when(browser, lambda: is_over(browser, "without"))
                take(browser, directory / f"serve-{theme}.png", "#compare")
