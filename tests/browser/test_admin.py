"""The admin's page of connections in a real browser: by mouse, by keyboard, in the dark, and on a narrow screen."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if not (importlib.util.find_spec("selenium") and importlib.util.find_spec("httpx")):
    pytest.skip("Selenium or httpx is not installed.", allow_module_level=True)

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.adminsite import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

    from tests.adminsite.serving import Site

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.slow]


@pytest.fixture(scope="module")
def site(unmeasured: None, _chromium: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving.serving(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture
def page(browser: Chrome, site: Site) -> Chrome:
    """The browser at the page, signed in by the form."""
    sign_in(browser, site)
    return browser


def sign_in(browser: Chrome, site: Site) -> None:
    browser.get(site.page)
    browser.find_element(By.NAME, "username").send_keys(serving.USER)
    browser.find_element(By.NAME, "password").send_keys(serving.PASSWORD, Keys.ENTER)
    wait_for(browser, lambda: find(browser, "#connections-findings h3"))


def find(browser: Chrome, selector: str) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def wait_for(browser: Chrome, true: Callable[[], object]) -> Any:
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: true())


def text(browser: Chrome, selector: str) -> str:
    """Return the text of all elements that *selector* finds; read at once, since a refresh may replace them."""
    script = "return Array.from(document.querySelectorAll(arguments[0]), each => each.innerText).join('\\n')"
    return str(browser.execute_script(script, selector))


def refreshes(browser: Chrome) -> int:
    """Return how often the page has asked for what is new."""
    script = "return performance.getEntriesByType('resource').filter(each => each.name.endsWith('/live/')).length"
    return int(browser.execute_script(script))


def test_a_held_connection_comes_with_its_request_and_line_and_goes(page: Chrome, site: Site) -> None:
    page.execute_script("window.isTheSamePage = true")
    assert "None, by the processes of this host." in text(page, "#connections-live")
    with site.asking() as ask:
        paying = ask("/orders/1/pay/")
        wait_for(page, lambda: "GET /orders/1/pay/" in text(page, "#scroll-leases tbody"))
        shown = text(page, "#scroll-leases tbody")
        assert "views.py" in shown
        assert "in ask_the_bank" in shown
        assert "FOR UPDATE" in shown
        # That of the process that answers here has nothing to do with it.
        assert "runserver" in shown
        # The server's own view may be older: that of a session which has just begun.
        wait_for(page, lambda: "GET /orders/1/pay/" in text(page, "#scroll-default tr.warn"))
    assert paying.result() == 200
    wait_for(page, lambda: "/orders/1/pay/" not in text(page, "#connections-live"))
    assert page.execute_script("return window.isTheSamePage")


def test_who_waits_is_shown_with_whom_for(page: Chrome, site: Site) -> None:
    with site.asking() as ask:
        paying = ask("/orders/2/pay/")
        wait_for(page, lambda: "in ask_the_bank" in text(page, "#scroll-leases tbody"))
        shipping = ask("/orders/2/ship/")
        wait_for(page, lambda: "blocked by" in text(page, "#scroll-default"))
        blocker = text(page, "#scroll-default tr:has(.blocks) th")
        assert text(page, ".blockers") == f"blocked by {blocker}"
        assert "waiting for a lock" in text(page, "#connections-summary")
    assert (paying.result(), shipping.result()) == (200, 200)


def press(browser: Chrome, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def tab_to(browser: Chrome, selector: str) -> None:
    """Press Tab until what *selector* finds has the focus."""
    for _ in range(100):
        press(browser, Keys.TAB)
        if browser.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return
    pytest.fail(f"Tab does not lead to {selector}")


def test_a_session_is_ended_by_keyboard_alone(page: Chrome, site: Site) -> None:
    with site.asking() as ask:
        paying = ask("/orders/3/pay/")
        wait_for(page, lambda: "/orders/3/pay/" in text(page, "#scroll-default tr.warn"))
        tab_to(page, "tr.warn a.deletelink")
        outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        # The refreshes leave the focus where it is.
        focused, before = page.execute_script("return document.activeElement.id"), refreshes(page)
        wait_for(page, lambda: refreshes(page) >= before + 2)
        assert page.execute_script("return document.activeElement.id") == focused
        press(page, Keys.ENTER)
        wait_for(page, lambda: find(page, ".connections-session"))
        assert text(page, "h1:last-of-type").startswith("Terminate session")
        assert "/orders/3/pay/" in text(page, ".connections-session")
        tab_to(page, "input[type=submit]")
        press(page, Keys.ENTER)
        wait_for(page, lambda: find(page, ".messagelist .success"))
        assert "was ended. Its transaction, if any, is rolled back." in text(page, ".messagelist")
        wait_for(page, lambda: "/orders/3/pay/" not in text(page, "#scroll-default"))
    # Its view had the connection taken away in the middle of its transaction.
    assert paying.result() == 500


def test_the_confirmation_can_be_left(page: Chrome, site: Site) -> None:
    # An element that was found may be replaced by a refresh; the focus stays.
    tab_to(page, "a.deletelink")
    press(page, Keys.ENTER)
    wait_for(page, lambda: find(page, ".cancel-link"))
    find(page, ".cancel-link")[0].click()
    wait_for(page, lambda: find(page, "#connections"))
    assert not find(page, ".messagelist")


def test_it_can_be_paused(page: Chrome) -> None:
    button = page.find_element(By.ID, "connections-pause")
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "true"
    page.execute_script("window.seen = performance.now()")
    before = refreshes(page)
    wait_for(page, lambda: page.execute_script("return performance.now() - window.seen > 1500"))
    # One may have been under way.
    assert refreshes(page) - before in (0, 1)
    before = refreshes(page)
    button.click()
    wait_for(page, lambda: refreshes(page) >= before + 2)


def test_it_rests_while_its_tab_is_hidden(page: Chrome) -> None:
    page.execute_script("""
        window.hides = true;
        Object.defineProperty(document, "hidden", {get: () => window.hides, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
        window.seen = performance.now();
    """)
    before = refreshes(page)
    wait_for(page, lambda: page.execute_script("return performance.now() - window.seen > 1500"))
    assert refreshes(page) - before in (0, 1)
    before = refreshes(page)
    page.execute_script("window.hides = false; document.dispatchEvent(new Event('visibilitychange'))")
    wait_for(page, lambda: refreshes(page) >= before + 2)


def test_who_has_signed_out_is_told(page: Chrome) -> None:
    page.delete_all_cookies()
    wait_for(page, lambda: "You are signed out" in text(page, "#connections-problem"))


# What axe, and the checks of WCAG 2, look for first; each problem as a line.
_PROBLEMS = """
    const found = [];
    const within = document.getElementById("content");
    const levels = Array.from(within.querySelectorAll("h1, h2, h3, h4"), each => Number(each.tagName[1]));
    levels.forEach((level, place) => {
        if (level > (levels[place - 1] ?? 0) + 1) { found.push(`h${level} after h${levels[place - 1] ?? 0}`); }
    });
    if (document.querySelectorAll("main h1").length !== 1) { found.push("not one h1"); }
    const ids = Array.from(document.querySelectorAll("[id]"), each => each.id);
    ids.filter((id, place) => ids.indexOf(id) !== place).forEach(id => found.push(`twice: #${id}`));
    for (const table of within.querySelectorAll("table")) {
        if (!table.caption) { found.push("table without caption"); }
        for (const cell of table.querySelectorAll("th")) {
            if (!cell.scope) { found.push(`th without scope: ${cell.innerText}`); }
        }
    }
    for (const each of within.querySelectorAll("a, button, input:not([type=hidden]), meter, [role=region]")) {
        const labels = (each.getAttribute("aria-labelledby") ?? "").split(" ").map(id => document.getElementById(id));
        const name = each.innerText || each.getAttribute("aria-label") || labels[0]?.innerText
            || each.labels?.[0]?.innerText || (each.type === "submit" && each.value);
        if (!name) { found.push(`without a name: ${each.outerHTML}`); }
    }
    const luminance = colour => {
        const [r, g, b] = colour.map(part => part / 255)
            .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const behind = each => {
        for (; each; each = each.parentElement) {
            const [r, g, b, a = 1] = parts(getComputedStyle(each).backgroundColor);
            if (a > 0) { return [r, g, b]; }
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(within, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const each = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !each.checkVisibility()) { continue; }
        const [a, b] = [luminance(parts(getComputedStyle(each).color).slice(0, 3)), luminance(behind(each))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) { found.push(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.trim()}`); }
    }
    return found;
"""


@contextmanager
def scheme(browser: Chrome, name: str) -> Iterator[None]:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]}
    )
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("name", ["light", "dark"])
def test_it_can_be_read_by_everybody(name: str, page: Chrome, site: Site) -> None:
    with scheme(page, name), site.asking() as ask:
        ask("/orders/4/pay/")
        wait_for(page, lambda: "/orders/4/pay/" in text(page, "#scroll-default tr.warn"))
        assert page.execute_script(_PROBLEMS) == []
        background = "return getComputedStyle(document.querySelector('#connections tr.warn td')).backgroundColor"
        assert (page.execute_script(background) == "rgb(255, 255, 204)") == (name == "light")
        tab_to(page, "tr.warn a.deletelink")
        press(page, Keys.ENTER)
        wait_for(page, lambda: find(page, ".connections-session"))
        assert page.execute_script(_PROBLEMS) == []


def test_on_a_narrow_screen_only_the_tables_scroll(page: Chrome, site: Site) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        with site.asking() as ask:
            ask("/orders/5/pay/")
            wait_for(page, lambda: "/orders/5/pay/" in text(page, "#scroll-default tr.warn"))
            assert page.execute_script("return document.documentElement.scrollWidth") == 360
            table = "const table = document.getElementById('scroll-leases');"
            assert page.execute_script(f"{table} return table.scrollWidth > table.clientWidth")
            # By keyboard as well, and a refresh does not take it back.
            page.execute_script(f"{table} table.scrollLeft = 100")
            before = refreshes(page)
            wait_for(page, lambda: refreshes(page) >= before + 2)
            assert page.execute_script(f"{table} return table.scrollLeft") == 100
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
