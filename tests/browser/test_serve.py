"""``make serve`` in a real browser: the first page's two runs, and what every page says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.serving import Site, begin, is_over, serving, when

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

for name in ("debug_toolbar", "gunicorn", "uvicorn"):
    pytest.importorskip(name, reason="Gunicorn and uvicorn are in the dependency group demo.")

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.slow]


@pytest.fixture(scope="module")
def site(unmeasured: None, _chromium: Chrome) -> Iterator[Site]:
    with serving() as site:
        yield site


def text(browser: Chrome, selector: str) -> str:
    return browser.find_element("css selector", selector).text


def count(browser: Chrome, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def results(browser: Chrome, name: str) -> list[str]:
    """Return a line of the table in the end: without the toolkit, and with it."""
    return [text(browser, f"[data-side={side}][data-result={name}]") for side in ("without", "with")]


def emulate(browser: Chrome, feature: str = "", value: str = "") -> None:
    """Have what the user prefers to be this, or, without arguments, as it was."""
    features = [{"name": feature, "value": value}] if feature else []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def colour(browser: Chrome, selector: str) -> str:
    return browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor", selector
    )


def test_the_same_visitors_without_and_with(browser: Chrome, site: Site) -> None:
    browser.get(f"{site.address}/")
    begin(browser, "without")
    when(browser, lambda: count(browser, "#without rect.held") >= 4)
    # One run at a time. The other button keeps the focus, and does nothing.
    assert browser.find_element("css selector", "#with button").get_attribute("aria-disabled") == "true"
    begin(browser, "with")
    assert text(browser, "#with .now") == "Nobody is there yet."
    with httpx.Client(base_url=site.address, trust_env=False) as elsewhere:
        elsewhere.get("/")
        answer = elsewhere.post("/compare/with/", headers={"X-CSRFToken": elsewhere.cookies["csrftoken"]}).text
    assert answer.startswith("event: problem\n")
    assert "Visitors are under way for another window." in answer

    when(browser, lambda: is_over(browser, "without"))
    assert text(browser, "#verdict") == ""
    # The chromium of the tests prefers less of it: here for the other way to draw.
    emulate(browser, "prefers-reduced-motion", "no-preference")
    # As with a keyboard alone.
    button = browser.find_element("css selector", "#with button")
    button.send_keys("\n")
    when(browser, lambda: is_over(browser, "with"))
    assert browser.switch_to.active_element == button
    emulate(browser)

    served = [int(each.removesuffix(" of 40")) for each in results(browser, "served")]
    timeouts = [int(each) for each in results(browser, "timeouts")]
    assert (served[1], timeouts[1], results(browser, "failed")) == (40, 0, ["0", "0"])
    assert timeouts[0] > 0
    assert served[0] + timeouts[0] == 40
    without, toolkit = (float(each.removesuffix(" s")) for each in results(browser, "worst"))
    assert toolkit < without
    assert text(browser, "#verdict").startswith(
        f"Over the same 4 connections, {served[0]} of 40 visitors were served without the toolkit, and 40 with it;"
    )

    for side, index in (("without", 0), ("with", 1)):
        drawn = {state: count(browser, f"#{side} rect.{state}") for state in ("served", "timeout", "waiting", "failed")}
        assert drawn == {"served": served[index], "timeout": timeouts[index], "waiting": 0, "failed": 0}
        assert count(browser, f"#{side} rect.track") == 4
        # What a screen reader is told, and a table for what the picture shows.
        aloud = str(browser.find_element("css selector", f"#{side} [role=status]").get_property("textContent"))
        assert f" {served[index]} served, 0 waiting, {timeouts[index]} without a connection in time. " in aloud
        assert aloud.endswith("Connections: 0 in use, 0 held idle, 4 free.")
        browser.find_element("css selector", f"#{side} summary").click()
        assert count(browser, f"#{side} tbody tr") == 40
        assert text(browser, f"#{side} tbody").count("no connection in time") == timeouts[index]


def test_light_and_dark(browser: Chrome, site: Site) -> None:
    browser.get(f"{site.address}/")
    colours = []
    for theme in ("light", "dark"):
        emulate(browser, "prefers-color-scheme", theme)
        colours.append((colour(browser, "body"), colour(browser, "#with button")))
    emulate(browser)
    assert colours == [("rgb(255, 255, 255)", "rgb(12, 107, 79)"), ("rgb(19, 24, 22)", "rgb(95, 211, 172)")]


@pytest.mark.parametrize("path", ["/", "/orders/1/", "/orders/1/async/", "/report/", "/checkout/", "/connections/"])
def test_pages_show_their_time(browser: Chrome, site: Site, path: str) -> None:
    browser.get(f"{site.address}{path}")
    when(browser, lambda: "waiting for the server" in text(browser, "#took"))
    shown = [item.text.split()[0] for item in browser.find_elements("css selector", "#took li")]
    assert shown == ["total", "db-wait", "db-held", "db-used"]


def test_an_order_changes_while_it_is_looked_at(browser: Chrome, site: Site) -> None:
    browser.get(f"{site.address}/")
    browser.find_element("link text", "An order").click()
    before = text(browser, "#status")
    # As another window would: this one is not loaded again.
    browser.execute_script(
        """
        const form = document.querySelector("form");
        fetch(form.action, { method: "POST", body: new FormData(form), redirect: "manual" });
        """
    )
    when(browser, lambda: text(browser, "#status") != before)


def test_the_admin_and_the_debug_toolbar(browser: Chrome, site: Site) -> None:
    browser.get(f"{site.address}/")
    browser.find_element("link text", "The debug toolbar").click()
    when(browser, lambda: count(browser, "#djDebugRoot") == 1)
    # As on a page without it: nothing that the toolbar does is what the policy forbids.
    assert text(browser, "h1").startswith("Order ")

    browser.get(f"{site.address}/admin/")
    browser.find_element("name", "username").send_keys("admin")
    browser.find_element("name", "password").send_keys(f"{site.password}\n")
    when(browser, lambda: "Site administration" in text(browser, "body"))
