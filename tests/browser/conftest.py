"""One browser for all tests of a module: it takes a second to start, and nothing of it is left to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import MISSING, browser_path, chromium, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Chrome]:
    pytest.importorskip("selenium", reason="Selenium is in the dependency group browser.")
    if browser_path() is None:
        pytest.skip(MISSING)
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(_chromium: Chrome) -> Iterator[Chrome]:
    """A browser without cookies; the test fails if a page has complained of anything."""
    said(_chromium)
    # Of all sites, and not of the one alone that it shows.
    _chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    yield _chromium
    complaints = said(_chromium)
    _chromium.get("about:blank")
    assert complaints == []
