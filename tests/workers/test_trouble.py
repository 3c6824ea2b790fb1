"""The shop's pages that do it wrong, and what the log says of each."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from example_project.embedded import database_url
from example_project.processes import HOST, free_port, get, running, shop_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("unmeasured")

PAGES = {
    "idle-in-transaction/?seconds=1": (
        r"WARNING conn_hygiene\.transactions: The transaction of GET /trouble/idle-in-transaction/ on 'default' "
        r"\(server pid \d+\) has been idle for \d\.\d s\. It began at \S+trouble\.py:\d+ in idle_in_transaction\. "
        r"Its thread is at \S+trouble\.py:\d+ in ask_somebody_slow\. Its last statement was: SELECT"
    ),
    "held-too-long/?seconds=1": (
        r"WARNING conn_hygiene\.held: The connection of thread stock-keeper on 'default' \(server pid \d+\) has been "
        r"held for \d\.\d s, idle for \d\.\d s\. It was checked out at \S+trouble\.py:\d+ in work\. "
        r"Its thread is at \S+trouble\.py:\d+ in ask_somebody_slow\. It is kept because no release scope is around\. "
        r"Its last statement was: SELECT"
    ),
    "dead-thread/": (
        r"INFO conn_hygiene\.threads: Reclaimed connection 'default' \(server pid \d+\) from thread stock-counter, "
        r"which ended with it checked out\. The thread ran \S+trouble\.py:\d+ in work\. "
        r"It was checked out at \S+trouble\.py:\d+ in work\."
    ),
    "unclosed-cursor/": (
        r"WARNING conn_hygiene\.cursors: A cursor on 'default' was never closed; "
        r"it was opened at \S+trouble\.py:\d+ in unclosed_cursor\."
    ),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run the shop under gunicorn, with limits that a test can wait for; return a way to ask it, and its log."""
    port, log = free_port(), tmp_path_factory.mktemp("shop") / "log"
    command = [sys.executable, "-m", "gunicorn", "--config=example_project/gunicorn_conf.py", f"--bind={HOST}:{port}"]
    limits = {"REPORTS": '{"IDLE_IN_TRANSACTION_AFTER": 0.2, "HELD_TOO_LONG_AFTER": 0.2}'}
    with (
        shop_database(database_url()) as env,
        running("gunicorn", command, log=log, env=env | limits) as child,
    ):
        child.wait_until_ready(port)
        yield lambda page: get(port, f"/trouble/{page}"), log


@pytest.mark.parametrize("page", PAGES)
def test_the_log_says_where_it_goes_wrong(shop: Any, page: str) -> None:
    ask, log = shop
    assert ask(page) == 200
    wait_until(lambda: re.search(PAGES[page], log.read_text()), f"the log has {PAGES[page]}")


def test_it_says_nothing_of_the_page_that_was_mended(shop: Any) -> None:
    ask, log = shop
    assert ask("asked-before/?seconds=1") == 200
    assert "asked-before" not in log.read_text()
