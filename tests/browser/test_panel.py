"""The panel of django-debug-toolbar in a real browser, on a site that forbids whatever is not a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("debug_toolbar", reason="django-debug-toolbar is in the dependency group test.")
pytest.importorskip("selenium", reason="Selenium is in the dependency group browser.")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.toolbar import PANEL, content, find, find_all, open_panel, switch_to, when
from tests.browser.toolbar_site import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

_LEGEND = ["in use", "held, idle", "waited for", "held without the toolkit", "query", "hidden query"]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(autouse=True)
def _as_new(browser: Chrome, site: str) -> None:
    """Have the toolbar shown, as it is for somebody who has never hidden it, in the light theme."""
    browser.get(f"{site}/light/")
    browser.execute_script("localStorage.clear(); localStorage.setItem('djdt.user-theme', 'light')")


def subtitle(browser: Chrome) -> str:
    text: str = find(browser, f"#djdt-{PANEL} small").text
    return text.replace("\n", " ")


def test_it_opens_and_shows_its_timeline(browser: Chrome, site: str) -> None:
    browser.get(f"{site}/order/")
    assert subtitle(browser).startswith("held ")
    assert subtitle(browser).endswith(" ms, 4 checkouts, 1 hidden")
    panel = open_panel(browser)
    for label in _LEGEND:
        assert label in panel.text
    tracks = find_all(browser, ".conn-hygiene-track")
    assert [track.find_element(By.CSS_SELECTOR, "text").text for track in tracks] == [
        "default: 3 checkouts",
        "reports: 1 checkout",
    ]
    for track in tracks:
        whole = track.rect
        assert whole["width"] > 500
        for segment in track.find_elements(By.CSS_SELECTOR, ".conn-hygiene-segment"):
            part = segment.rect
            assert whole["x"] <= part["x"] < part["x"] + part["width"] <= whole["x"] + whole["width"] + 3
            assert 8 <= part["height"] <= 17
    assert len(find_all(browser, ".conn-hygiene-plain")) == 2
    assert len(find_all(browser, ".conn-hygiene-query")) == 4
    assert len(find_all(browser, ".conn-hygiene-hidden")) == 1
    assert [letter.text for letter in find_all(browser, ".conn-hygiene-letter")] == ["F", "F"]


def test_its_tables_name_lines_and_templates(browser: Chrome, site: str) -> None:
    browser.get(f"{site}/order/")
    open_panel(browser)
    rows = [row.text for row in find_all(browser, f"#{PANEL} tbody tr")]
    assert any(row.startswith("shop/order.html:7, from tests/browser/toolbar_site/urls.py:") for row in rows)
    assert any("query (hidden: template)" in row for row in rows)
    # Points, and no commas as in the language of the site.
    assert not any(",5 ms" in row for row in rows)


def test_it_is_opened_and_read_by_the_keyboard(browser: Chrome, site: str) -> None:
    browser.get(f"{site}/order/")
    link = find(browser, f"a.{PANEL}")
    when(browser, link.is_displayed)
    link.send_keys(Keys.ENTER)
    panel = content(browser)
    panel.send_keys(Keys.END)
    last = find_all(browser, f"#{PANEL} tbody tr")[-1]
    when(browser, lambda: last.rect["y"] < browser.execute_script("return innerHeight"))


def test_the_history_switches_to_another_request(browser: Chrome, site: str) -> None:
    for page in ("slow", "stream", "light"):
        browser.get(f"{site}/{page}/")
    assert subtitle(browser).endswith(", 1 checkout")
    switch_to(browser, "/slow/")
    when(browser, lambda: subtitle(browser).endswith(", 2 checkouts"))
    assert "tests/browser/toolbar_site/urls.py" in open_panel(browser).text
    # A stream has no page to be in, so the history is where it is seen.
    switch_to(browser, "/stream/")
    when(browser, lambda: subtitle(browser).endswith(", 1 checkout, 1 hidden"))
    assert "query (hidden: streaming body)" in open_panel(browser).text


@pytest.mark.parametrize(("theme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 18, 18)")])
def test_it_has_the_theme_of_the_toolbar(browser: Chrome, site: str, theme: str, background: str) -> None:
    browser.execute_script(f"localStorage.setItem('djdt.user-theme', '{theme}')")
    browser.get(f"{site}/order/")
    open_panel(browser)
    when(browser, lambda: find(browser, "#djDebug").get_attribute("data-theme") == theme)
    behind, label = (find(browser, f".conn-hygiene-track > {each}") for each in ("rect", "text"))
    assert behind.value_of_css_property("fill") == background
    assert label.value_of_css_property("fill") == find(browser, f"#{PANEL} h4").value_of_css_property("color").replace(
        "rgba", "rgb"
    ).replace(", 1)", ")")
