"""The example site as ``make serve`` opens it, and its first page's runs, for the tests and for the pictures."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from example_project.processes import HOST, free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

#: Seconds for what takes eight on a machine that does nothing else.
PATIENCE = 100


class Site(NamedTuple):
    """Where it is, and what its administrator's password is."""

    address: str
    password: str


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Site]:
    """Run the site on a free port, with these arguments."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-u", "-m", "example_project.serve", f"--port={port}", *arguments]
        log = Path(directory, "log")
        with running("make serve", command, log=log) as child:
            try:
                child.wait_for_output("The shop is open", seconds=PATIENCE)
                child.wait_for_output("the password ", seconds=PATIENCE)
                (password,) = re.findall(r"the user admin with the password (\S+)\n", log.read_text())
                yield Site(f"http://{HOST}:{port}", password)
            finally:
                # What it has started it stops one by one.
                child.stop(patience=PATIENCE)


def begin(browser: Chrome, side: str) -> None:
    browser.find_element("css selector", f"#{side} button").click()


def when(browser: Chrome, true: Callable[[], object]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, PATIENCE, poll_frequency=0.1).until(lambda _: true())


def is_over(browser: Chrome, side: str) -> bool:
    return browser.find_element("css selector", f"#{side} details").is_displayed()
