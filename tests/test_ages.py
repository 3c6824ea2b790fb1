"""Sessions past their ``CONN_MAX_AGE``, of threads that have nothing to do, are closed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import connections, transaction

from conn_hygiene import events, hold_connection
from conn_hygiene.leases.wrapper import lease_of
from tests.tenant_backend.base import counted
from tests.test_events import heard
from tests.test_forks import remade
from tests.waiting import let_the_reaper_look, wait_until, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])

ALIAS = "unpooled"

# Seconds.
AGE = 0.2


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread of a server, whose sessions live for a while."""
    with remade(ALIAS, CONN_MAX_AGE=AGE), ThreadPoolExecutor(1) as executor:
        yield executor
        executor.submit(connections.close_all).result()


def pid() -> int:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def request(view: Callable[[], int] = pid) -> int:
    request_started.send(sender=None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    try:
        return view()
    finally:
        request_finished.send(sender=None)


def wait_until_closed(alive: Any, *pids: int) -> None:
    wait_until(lambda: not alive(*pids), "the sessions are closed")


def past_its_age() -> None:
    """Let all be past its age, and the reaper have looked."""
    time.sleep(AGE + 0.5)
    let_the_reaper_look()


# ##### After a request #####


@pytest.mark.parametrize("limits", [{}, {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}], ids=str)
def test_a_thread_that_has_served_a_request(
    thread: ThreadPoolExecutor, alive: Any, settings: Any, limits: dict[str, Any]
) -> None:
    settings.CONN_HYGIENE = limits
    held = thread.submit(request).result()
    assert alive(held) == {held}
    wait_until_closed(alive, held)
    # As without the toolkit, the next one has another.
    assert thread.submit(request).result() != held


def test_a_change_of_settings_makes_nobody_older(thread: ThreadPoolExecutor, alive: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    held = thread.submit(request).result()
    let_the_reaper_look()
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None, "TAG_SESSIONS": True}
    assert alive(held) == {held}
    wait_until_closed(alive, held)


def test_all_threads_of_a_burst(alive: Any) -> None:
    together = threading.Barrier(3)

    def view() -> int:
        found = pid()
        together.wait(10)
        return found

    with remade(ALIAS, CONN_MAX_AGE=AGE), ThreadPoolExecutor(3) as executor:
        pids = [job.result() for job in [executor.submit(request, view) for _ in range(3)]]
        assert alive(*pids) == set(pids)
        wait_until_closed(alive, *pids)


def test_it_is_told_as_a_close(thread: ThreadPoolExecutor, alive: Any) -> None:
    with heard(events.CheckedIn) as published:
        held = thread.submit(request).result()
        wait_until_closed(alive, held)
        wait_until_told()
        event = published.only(events.CheckedIn)
    assert (event.alias, event.server_pid, event.reason) == (ALIAS, held, "close")


def test_one_that_is_young_enough_serves_the_next_request(alive: Any) -> None:
    with remade(ALIAS, CONN_MAX_AGE=60), ThreadPoolExecutor(1) as executor:
        held = executor.submit(request).result()
        past_its_age()
        assert executor.submit(request).result() == held
        executor.submit(connections.close_all).result()


def test_one_that_is_young_enough_is_not_closed() -> None:
    with remade(ALIAS, CONN_MAX_AGE=60), ThreadPoolExecutor(1) as executor:
        executor.submit(request).result()
        lease = executor.submit(lambda: lease_of(connections[ALIAS])).result()
        assert lease is not None
        close_at = lease.close_at()
        assert close_at is not None
        assert not lease.give_back_if_too_old(close_at - 0.001)
        wait_until(lambda: lease.give_back_if_too_old(close_at), "its thread is at rest")
        executor.submit(connections.close_all).result()


def test_one_without_an_age_stays() -> None:
    with remade(ALIAS, CONN_MAX_AGE=None), ThreadPoolExecutor(1) as executor:
        held = executor.submit(request).result()
        past_its_age()
        assert executor.submit(request).result() == held
        executor.submit(connections.close_all).result()


def test_never_is_never(thread: ThreadPoolExecutor, alive: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "never"}
    held = thread.submit(request).result()
    past_its_age()
    assert alive(held) == {held}


def test_a_backends_own_close_is_called_by_its_owner(alive: Any) -> None:
    def view() -> int:
        # Else it sets something, and the session is closed with the request.
        wrapper: Any = connections[ALIAS]
        wrapper.believed = wrapper.schema
        return pid()

    with remade(ALIAS, ENGINE="tests.tenant_backend", CONN_MAX_AGE=AGE), ThreadPoolExecutor(1) as executor:
        held = executor.submit(request, view).result()
        counted.clear()
        wait_until_closed(alive, held)
        assert counted["closed"] == 0
        executor.submit(request_started.send, sender=None).result()
        assert counted["closed"] == 1
        executor.submit(request_finished.send, sender=None).result()
        executor.submit(connections.close_all).result()


# ##### Where something runs or must stay #####


def test_a_request_that_runs_for_longer(thread: ThreadPoolExecutor, alive: Any) -> None:
    def view() -> int:
        held = pid()
        past_its_age()
        assert pid() == held
        return held

    held = thread.submit(request, view).result()
    # Django's own.
    wait_until_closed(alive, held)


def in_transaction() -> None:
    transaction.set_autocommit(False, using=ALIAS)
    pid()


def pinned() -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE kept (n int)")


def with_a_cursor_open() -> None:
    cursor = connections[ALIAS].cursor()
    cursor.execute("SELECT 1")
    kept.append(cursor)


def with_a_handle() -> None:
    kept.append(connections[ALIAS].connection)


def of_a_hold() -> None:
    hold = hold_connection()
    kept.append(hold)
    hold.__enter__()
    pid()


kept: list[Any] = []


@pytest.mark.parametrize("job", [in_transaction, pinned, with_a_cursor_open, with_a_handle, of_a_hold])
def test_what_a_thread_does_after_a_request(
    thread: ThreadPoolExecutor, alive: Any, settings: Any, job: Callable[[], None]
) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None}
    try:
        held = thread.submit(request).result()
        thread.submit(job).result()
        past_its_age()
        assert alive(held) == {held}
    finally:
        kept.clear()


def test_a_thread_in_the_middle_of_the_applications_code(thread: ThreadPoolExecutor, alive: Any) -> None:
    go_on = threading.Event()

    def job() -> None:
        go_on.wait(10)

    held = thread.submit(request).result()
    running = thread.submit(job)
    past_its_age()
    assert alive(held) == {held}
    go_on.set()
    running.result()
    wait_until_closed(alive, held)


# ##### Without a request #####


def test_a_thread_that_serves_none_keeps_it_until_it_is_held_too_long(
    thread: ThreadPoolExecutor, alive: Any, settings: Any
) -> None:
    held = thread.submit(pid).result()
    past_its_age()
    assert alive(held) == {held}
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 0.3}
    wait_until_closed(alive, held)


def test_what_such_a_thread_has_set_follows(thread: ThreadPoolExecutor, alive: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 0.3}

    def job() -> int:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SET app.tenant_id = '42'")
        return pid()

    def found() -> str:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT current_setting('app.tenant_id')")
            return str(cursor.fetchone()[0])

    held = thread.submit(job).result()
    wait_until_closed(alive, held)
    assert thread.submit(found).result() == "42"
