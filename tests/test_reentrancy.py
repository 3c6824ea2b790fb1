"""A signal handler or a finaliser may query at any line, also where its thread has one of the locks.

It must not wait for itself, and what it does there is not to be undone.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from linecache import getline
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from django.db.backends.signals import connection_created
from psycopg.pq import TransactionStatus

from conn_hygiene import locks, release_between_queries
from conn_hygiene.events import CheckedOut, Followed, listen, unlisten
from conn_hygiene.leases import checkouts, cursors
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.returns import Return
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.usage import Timing
from conn_hygiene.leases.wrapper import LeasedWrapper, lease_of
from conn_hygiene.locks import Rank, RankedLock
from conn_hygiene.pools import backends
from conn_hygiene.reaper import reaper
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.reaper.workers import Lane, Workers
from conn_hygiene.reports import counters
from conn_hygiene.reports.answering import _Answering
from conn_hygiene.reports.counters import Tally
from conn_hygiene.reports.repeats import Repeats
from conn_hygiene.sessions import known
from tests.test_interruptions import is_whole
from tests.test_lease import query
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

pytestmark = pytest.mark.django_db(transaction=True)

# Python handles signals at calls and jumps back: no line comes after one without, as far as a handler can tell.
CALLS = re.compile(r"[\w\])]\(|\b(with|for|while)\b")

# Seconds after which a thread is taken to wait for itself.
PATIENCE = 20


class Interrupt(Exception):
    """What a signal handler raises."""


@dataclass
class Between:
    """Does something at the *nth* line of a function at which a signal may be handled, as its handler would, once."""

    code: CodeType
    nth: int
    do: Callable[[], object]
    done: bool = field(default=False, init=False)
    _may_be_interrupted: bool = field(default=True, init=False)

    def __enter__(self) -> Between:
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not self.code:
            return None
        self._may_be_interrupted = True
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.nth -= self._may_be_interrupted
            self._may_be_interrupted = bool(CALLS.search(getline(frame.f_code.co_filename, frame.f_lineno)))
            if self.nth == 0 and not self.done:
                self.done = True
                with unordered():
                    self.do()
        return self._line


@contextlib.contextmanager
def unordered() -> Iterator[None]:
    """Have the order of locks not asserted for what was not called by who has them."""
    outer, locks._held.locks = locks._mine(), []
    try:
        yield
    finally:
        locks._held.locks = outer


def at_each_line(function: Any, act: Callable[[], object], do: Callable[[], object]) -> Iterator[None]:
    """*act* in a thread for each line of *function*, which *act* calls, and *do* the other thing there."""
    for nth in range(1, 100):
        between = Between(function.__code__, nth, do)
        failed: list[BaseException] = []
        thread = threading.Thread(target=traced, args=[between, act, failed], daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"at line {nth} of {function.__qualname__} it waits for itself"
        assert failed == []
        if not between.done:
            assert nth > 2
            return
        yield
    raise AssertionError("no end in sight")


def traced(between: Between, act: Callable[[], object], failed: list[BaseException]) -> None:
    try:
        with between:
            act()
    except BaseException as error:  # noqa: BLE001 - told by whoever waits for this thread
        failed.append(error)
    finally:
        connections.close_all()


# ##### Who asks the catalogue #####


@pytest.mark.parametrize("asking", [Lease.carries_state, Lease.end_with_other_request], ids=lambda it: it.__name__)
@pytest.mark.parametrize("alias", ["small", "unpooled"])
@pytest.mark.django_db(transaction=True, databases=["small", "unpooled"])
def test_nobody_gets_a_connection_that_its_owner_asks_for_the_catalogue(
    asking: Any, alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is idle, and the reaper may come for it at any moment; the next to have it may begin a transaction."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}
    ask, still_there = known.ask, []

    def ask_while_it_is_due(alias: str, connection: Any, *arguments: Any) -> Any:
        reaping = threading.Thread(target=lease.end_if_parked, args=[time.monotonic() + 120])
        reaping.start()
        reaping.join()
        still_there.append(lease._connection is connection)
        # A worker may be cleaning what is not.
        return ask(alias, connection, *arguments) if still_there[-1] else None

    with release_between_queries():
        query(alias)
        lease: Any = lease_of(connections[alias])
        assert lease.state == PARKED
        known.reset()
        monkeypatch.setattr(known, "ask", ask_while_it_is_due)
        asking(lease)
        assert still_there == [True]
        assert lease.open_cursors == {}
        assert lease.state == PARKED
    connections[alias].close()


# ##### Numbers #####


@pytest.mark.parametrize(
    ("function", "arguments", "options", "counted"),
    [
        pytest.param(Tally.checked_out, (0.1,), {}, "checkouts", id="a checkout that waited"),
        pytest.param(Tally.checked_out, (None,), {}, "checkouts", id="a checkout"),
        pytest.param(Tally.checked_in, (1.0, 0.5), {"released": True}, "releases", id="a release"),
        pytest.param(Tally.exhausted, (0.1,), {}, "pool_timeouts", id="a timeout"),
        pytest.param(Tally.add, ("replaced",), {}, "replaced", id="anything else"),
    ],
)
def test_numbers(function: Any, arguments: Any, options: Any, counted: str) -> None:
    tally = Tally()
    count = partial(function, tally, *arguments, **options)
    for number, _ in enumerate(at_each_line(function, count, count), 1):
        assert tally.read()[counted] == 2 * number


def test_the_times_of_a_request(lease: Any) -> None:
    timing = Timing()

    def hold_for_a_moment() -> None:
        timing.change(lease, held=1)
        timing.change(lease, held=-1)

    for _ in at_each_line(Timing.change, hold_for_a_moment, hold_for_a_moment):
        assert timing._holding == 0
        waited, held, used = timing.read()
        assert (waited, used) == (0, 0)
        assert held > 0


def test_what_was_said() -> None:
    said: Repeats[str] = Repeats()
    for _ in at_each_line(Repeats.count, lambda: said.count("it", 0.0), lambda: said.count("it", 0.0)):
        assert said._said["it"][0] == 0.0


def test_what_is_left_alone() -> None:
    backends.reset()
    first: list[bool] = []

    def leave_alone() -> None:
        first.append(backends.leave_alone("elsewhere", "engine", "reason"))

    for _ in at_each_line(backends.leave_alone, leave_alone, leave_alone):
        assert first.count(True) == 1
    backends.reset()


# ##### Connections #####


@pytest.fixture
def lease() -> Any:
    query()
    return lease_of(connections["default"])


def query_elsewhere() -> None:
    """Query by a connection of its own of the same alias and pool, which goes back."""
    wrapper = connections["default"].copy()
    with release_between_queries(), wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    wrapper.close()


def query_twice() -> None:
    with release_between_queries():
        query()
        query()
    connections["default"].close()


@pytest.mark.parametrize(
    "function",
    [
        Lease._end,
        Lease._take_out,
        Reaper.carry_back,
        Reaper.checked_out,
        Reaper._add,
        Reaper.leaving,
        Reaper.returned,
        Tally.checked_in,
        Tally.checked_out,
    ],
    ids=lambda function: function.__qualname__,
)
def test_what_is_listed(function: Any, settings: Any, pool_of: Callable[[str], Any]) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    keeper = running()
    for _ in at_each_line(function, query_twice, query_elsewhere):
        assert keeper._returning == set()
        assert [each for each in keeper.leases() if each.alias == "default"] == []
        stats = pool_of("default").get_stats()
        assert stats["pool_available"] == stats["pool_size"]


@pytest.mark.parametrize(
    ("sql", "functions"),
    [
        ("SELECT 1", [Lease.cursor_closed, Lease._end_idle, Lease._leaves_nothing]),
        ("SET lock_timeout = '1s'", [Lease._end_idle, Lease._leave, Lease._plan, Lease._end, Lease._take_out]),
        ("SET lock_timeout = '1s'", [Reaper.carry_back, Return.carry_out, Return._clean, Return._scrub]),
    ],
    ids=["nothing is left", "a setting is left", "a setting is read"],
)
def test_what_another_has_by_then(sql: str, functions: list[Any], settings: Any, pool_of: Callable[[str], Any]) -> None:
    """The handler's query gives the connection back, and somebody else has it, and a cursor, before the thread is on.

    That one's cursor works, and the lease of the first is none that has a connection without one. Where the thread is
    about to read what follows, the handler is told that it may not, and at once.
    """
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    others: list[tuple[Any, Any]] = []

    def query_once() -> None:
        with release_between_queries():
            query("small", sql)
        left = lease_of(connections["small"])
        assert not left.holds_connection()
        assert left.state in (CLOSED, GIVEN_BACK)
        connections["small"].close()

    def query_and_lose_it() -> None:
        try:
            query("small")
        except OperationalError as error:
            assert "a signal handler queried while" in str(error)  # noqa: PT017 - or there is none
        for _ in range(pool_of("small").get_stats()["pool_available"]):
            wrapper = connections["small"].copy()
            wrapper.inc_thread_sharing()
            others.append((wrapper, wrapper.cursor()))

    for function in functions:
        for _ in at_each_line(function, query_once, query_and_lose_it):
            for wrapper, cursor in others:
                cursor.execute("SELECT 1")
                assert cursor.fetchone() == (1,)
                cursor.close()
                wrapper.close()
            others.clear()
            assert running()._returning == set()
            stats = pool_of("small").get_stats()
            assert stats["pool_available"] == stats["pool_size"]


OPENING: list[Any] = [
    Lease.begin_session,
    Lease.begin_use,
    Lease.take,
    Lease.use,
    LeasedWrapper.check_out_again,
    LeasedWrapper._cursor,
    LeasedWrapper._ensure_connection,
    LeasedWrapper._make_cursor,
    cursors.register,
    psycopg.Connection.cursor,
    PostgreSQLWrapper.create_cursor,
]


@pytest.mark.parametrize("tenant", [None, "acme"], ids=["", "with a setting"])
@pytest.mark.parametrize("grace", [0, 60], ids=["at once", "after a grace"])
@pytest.mark.parametrize("function", OPENING, ids=lambda function: function.__qualname__)
def test_a_cursor_is_on_the_connection_of_who_opens_it(
    function: Any, grace: float, tenant: str | None, settings: Any, pool_of: Callable[[str], Any]
) -> None:
    """The handler's query lets go of the connection while a cursor is opened on it, and somebody else may have it."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    others: list[tuple[Any, Any]] = []

    def open_a_cursor() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        with release_between_queries():
            lease: Any = lease_of(wrapper)
            query("small", "SET app.tenant = 'acme'" if tenant else "SELECT 1")
            lease.release_now()
            with wrapper.cursor() as cursor:
                # As for whoever needs a connection, when the grace is over.
                lease.end_if_parked(time.monotonic() + 2 * grace)
                assert cursor.connection is lease._connection
                cursor.execute("SELECT current_setting('app.tenant', true)")
                assert cursor.fetchone()[0] == tenant or not tenant
                assert cursor.connection not in [other.connection for _, other in others]
            assert lease.open_cursors == {}
        wrapper.close()

    def query_and_lose_it() -> None:
        lease = lease_of(connections["small"])
        if lease is None:
            # It connects for the first time, with nothing to let go of.
            return
        query("small")
        lease.end_if_due(time.monotonic() + 2 * grace, lease.spare)
        # Whoever comes now gets it; one is left for the thread to go on with.
        for _ in range(pool_of("small").get_stats()["pool_available"] - 1):
            wrapper = connections["small"].copy()
            wrapper.inc_thread_sharing()
            others.append((wrapper, wrapper.cursor()))

    for _ in at_each_line(function, open_a_cursor, query_and_lose_it):
        for wrapper, cursor in others:
            cursor.close()
            wrapper.close()
        others.clear()
        wait_until(lambda: not running()._returning, "all is back")
        # One that the pool opens meanwhile counts as its own before it is there.
        wait_until(lambda: has_all_of_its_own(pool_of("small")), "the pool is whole")


def has_all_of_its_own(pool: Any) -> bool:
    stats = pool.get_stats()
    return bool(stats["pool_available"] == stats["pool_size"])


def test_a_handle_is_that_of_the_connection_of_who_reads_it(settings: Any) -> None:
    """The handler's query lets go of the connection that was checked out for the handle."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}

    def read_the_handle() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        with release_between_queries():
            lease: Any = lease_of(wrapper)
            lease.release_now()
            handle = wrapper.connection
            assert handle is not None
            assert (handle, lease.state) == (lease._connection, HELD)
        wrapper.close()

    def query_here() -> None:
        if lease_of(connections["small"]) is not None:
            query("small")

    for _ in at_each_line(Lease.begin_session, read_the_handle, query_here):
        wait_until(lambda: not running()._returning, "all is back")


@pytest.mark.parametrize(
    "function",
    [
        checkouts.working_one,
        Lease._assign,
        Lease.begin_session,
        LeasedWrapper._check_out,
        LeasedWrapper._check_out_of_pool,
    ],
    ids=lambda function: function.__qualname__,
)
def test_a_transaction_in_the_middle_of_a_checkout_loses_no_connection(
    function: Any, settings: Any, pool_of: Callable[[str], Any]
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}

    def go_on() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        with release_between_queries():
            query("small", "SET app.tenant = 'acme'")
            wait_until_released("small")
            assert query("small", "SELECT current_setting('app.tenant', true)") == ("acme",)
        wrapper.close()

    def query_in_a_transaction() -> None:
        if lease_of(connections["small"]) is not None:
            with transaction.atomic(using="small"):
                query("small")

    for _ in at_each_line(function, go_on, query_in_a_transaction):
        wait_until(lambda: not running()._returning, "all is back")
        stats = pool_of("small").get_stats()
        assert stats["pool_available"] == stats["pool_size"]


@pytest.mark.parametrize(
    "function",
    [Lease.assign, Lease._assign, Lease.begin_session, Lease.set_again, LeasedWrapper._check_out],
    ids=lambda function: function.__qualname__,
)
def test_a_query_in_the_middle_of_a_checkout_finds_what_is_set(function: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    found: list[Any] = []
    is_set: list[Any] = []

    def go_on() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        with release_between_queries():
            query("small", "SET app.tenant = 'acme'")
            is_set.append(wrapper)
            wait_until_released("small")
            assert query("small", "SELECT current_setting('app.tenant', true)") == ("acme",)
            is_set.clear()
        wrapper.close()

    def ask() -> None:
        if is_set:
            found.append(query("small", "SELECT current_setting('app.tenant', true)"))

    for _ in at_each_line(function, go_on, ask):
        wait_until(lambda: not running()._returning, "all is back")
    assert set(found) == {("acme",)}


@pytest.mark.parametrize(
    "function",
    [Lease.assign, Lease._assign, Lease.begin_session, LeasedWrapper._check_out, LeasedWrapper._check_out_of_pool],
    ids=lambda function: function.__qualname__,
)
def test_what_a_handler_lets_go_of_before_it_raises_has_one_owner(
    function: Any, settings: Any, pool_of: Callable[[str], Any]
) -> None:
    """Its query gives back what is being checked out, somebody else gets it, and then the handler raises."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    others: list[tuple[Any, Any]] = []
    asking: list[Any] = []

    def go_on() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        lease: Any = lease_of(wrapper)
        with release_between_queries():
            lease.release_now()
            asking.append(lease)
            with contextlib.suppress(Interrupt):
                query("small")
            asking.clear()
            assert lease.open_cursors == {}
        wrapper.close()

    def query_and_raise() -> None:
        if not asking:
            return
        query("small")
        for _ in range(pool_of("small").get_stats()["pool_available"] - 1):
            wrapper = connections["small"].copy()
            wrapper.inc_thread_sharing()
            wrapper.set_autocommit(False)
            others.append((wrapper, wrapper.cursor()))
            others[-1][1].execute("SELECT 1")
        raise Interrupt

    for _ in at_each_line(function, go_on, query_and_raise):
        for wrapper, cursor in others:
            # It is in its own transaction still.
            assert cursor.connection.info.transaction_status == TransactionStatus.INTRANS
            cursor.close()
            wrapper.close()
        others.clear()
        wait_until(lambda: not running()._returning, "all is back")
        # One that is closed is replaced by a thread of the pool's.
        wait_until(partial(is_whole, pool_of("small")), "all connections are back")


@pytest.mark.parametrize("grace", [0, 60], ids=["at once", "after a grace"])
@pytest.mark.parametrize(
    "function",
    [
        LeasedWrapper.set_autocommit,
        LeasedWrapper._set_autocommit,
        LeasedWrapper._turn_autocommit_off,
        PostgreSQLWrapper._set_autocommit,
        BaseDatabaseWrapper.set_autocommit,
        psycopg.Connection._set_autocommit,
    ],
    ids=lambda function: function.__qualname__,
)
def test_a_transaction_is_on_the_connection_of_who_begins_it(
    function: Any, grace: float, settings: Any, pool_of: Callable[[str], Any]
) -> None:
    """The handler's query lets go of the connection as autocommit is turned off, and somebody else may have it."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    others: list[Any] = []
    done: list[int] = []

    def begin() -> None:
        wrapper: Any = connections["small"]
        wrapper.ensure_connection()
        with release_between_queries():
            lease: Any = lease_of(wrapper)
            lease.release_now()
            with transaction.atomic(using="small"):
                # As for whoever needs a connection, when the grace is over.
                lease.end_if_parked(time.monotonic() + 2 * grace)
                transaction.on_commit(partial(done.append, 1), using="small")
                query("small")
                assert lease._connection.info.transaction_status == TransactionStatus.INTRANS
                assert [other.connection.autocommit for other in others] == [True] * len(others)
            assert (lease.open_cursors, wrapper.autocommit) == ({}, True)
        wrapper.close()

    def query_and_lose_it() -> None:
        lease = lease_of(connections["small"])
        if lease is None or not connections["small"].autocommit:
            return
        query("small")
        lease.end_if_due(time.monotonic() + 2 * grace, lease.spare)
        for _ in range(pool_of("small").get_stats()["pool_available"] - 1):
            wrapper = connections["small"].copy()
            wrapper.inc_thread_sharing()
            wrapper.ensure_connection()
            others.append(wrapper)

    for _ in at_each_line(function, begin, query_and_lose_it):
        assert done.pop() == 1
        for wrapper in others:
            wrapper.close()
        others.clear()
        wait_until(lambda: not running()._returning, "all is back")
        stats = pool_of("small").get_stats()
        assert stats["pool_available"] == stats["pool_size"]


@pytest.mark.django_db(transaction=True, databases=["small"])
@pytest.mark.parametrize("receives", [False, True], ids=["", "with a receiver"])
def test_a_listener_that_queries_finds_what_is_set(receives: bool, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    found: list[Any] = []

    def listener(event: Any) -> None:
        found.append(query("small", "SELECT current_setting('app.tenant', true)"))

    def receiver(**kwargs: Any) -> None:
        """Have every checkout be a connect() that calls somebody."""

    if receives:
        connection_created.connect(receiver)
    try:
        tenant_goes_on_with(CheckedOut, listener)
    finally:
        connection_created.disconnect(receiver)
    assert found == [("acme",)]


def tenant_goes_on_with(kind: Any, listener: Any) -> None:
    """Set a tenant, have it follow to another session with a *listener* in place, and see that it has."""
    with release_between_queries():
        query("small", "SET app.tenant = 'acme'")
        wait_until_released("small")
        listen(kind, listener)
        try:
            assert query("small", "SELECT current_setting('app.tenant', true)") == ("acme",)
        finally:
            unlisten(kind, listener)


@pytest.mark.django_db(transaction=True, databases=["small"])
@pytest.mark.parametrize("kind", [CheckedOut, Followed])
def test_a_listener_that_queries_neither_repeats_the_checkout_nor_loses_what_was_set(kind: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    told: list[Any] = []

    def listener(event: Any) -> None:
        told.append(type(event))
        query("small")

    tenant_goes_on_with(kind, listener)
    assert told == [kind]


@pytest.mark.django_db(transaction=True, databases=["small"])
@pytest.mark.parametrize("grace", [0, 60], ids=["at once", "after a grace"])
def test_a_backend_may_query_as_it_makes_a_cursor(grace: float, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    plain = PostgreSQLWrapper.create_cursor
    asking: list[Any] = []

    def create_cursor(self: Any, name: str | None = None) -> Any:
        cursor = plain(self, name)
        if not asking:
            asking.append(self)
            try:
                with self.cursor() as another:
                    another.execute("SELECT 1")
            finally:
                asking.clear()
        return cursor

    with release_between_queries():
        query("small")
        monkeypatch.setattr(PostgreSQLWrapper, "create_cursor", create_cursor)
        assert query("small", "SELECT 2") == (2,)
        lease: Any = lease_of(connections["small"])
        assert lease.open_cursors == {}


def test_what_another_thread_is_about_to_take_out_is_left_to_it(
    lease: Any, monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], Any]
) -> None:
    """An exception of a signal handler has the owner look for what is only half taken out."""
    reached, go = threading.Event(), threading.Event()
    real = cursors.retire

    def retire(connection: Any) -> None:
        if threading.current_thread() is taking:
            reached.set()
            assert go.wait(PATIENCE)
        real(connection)

    monkeypatch.setattr(cursors, "retire", retire)
    available = pool_of("default").get_stats()["pool_available"]
    taking = threading.Thread(target=lease.release_now)
    taking.start()
    assert reached.wait(PATIENCE)
    rescuing = threading.Thread(target=running().rescue, args=[lease])
    rescuing.start()
    # Long enough for one that does not wait.
    rescuing.join(0.2)
    assert rescuing.is_alive()
    assert pool_of("default").get_stats()["pool_available"] == available
    go.set()
    for thread in (taking, rescuing):
        thread.join(PATIENCE)
    assert pool_of("default").get_stats()["pool_available"] == available + 1


def test_what_is_closed_is_not_held_for_what_has_changed(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    held: list[bool] = []

    def change() -> None:
        with release_between_queries():
            query("small")
            with connections["small"].cursor() as cursor:
                cursor.connection.prepare_threshold = 7
        left = lease_of(connections["small"])
        held.append(left.holds_connection())
        assert (left.state == HELD) == left.holds_connection()
        close()

    def close() -> None:
        connections["small"].close()

    for _ in at_each_line(Lease._note_changes, change, close):
        pass
    assert set(held) == {True, False}


LOOKS: list[tuple[Any, Callable[[Reaper, Any], object]]] = [
    (Reaper.leases, lambda keeper, lease: keeper.leases()),
    (Reaper._taken_out_of, lambda keeper, lease: keeper.rescue(lease)),
    (Reaper.returning_to, lambda keeper, lease: keeper.returning_to(None)),
]


@pytest.mark.parametrize(("function", "look"), LOOKS)
def test_who_looks_at_the_lists(
    function: Any, look: Callable[[Reaper, Any], object], settings: Any, lease: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    keeper = running()
    for _ in at_each_line(function, lambda: look(keeper, lease), query_elsewhere):
        assert keeper._returning == set()


def running() -> Reaper:
    assert reaper.running is not None
    return reaper.running


def test_a_condition_is_waited_for_by_who_has_its_lock_twice() -> None:
    lock: Any = RankedLock(Rank.LEAF)
    changed = threading.Condition(lock)
    waits, seen = threading.Event(), []

    def wait() -> None:
        with lock, changed:
            waits.set()
            seen.append(changed.wait(PATIENCE))
            seen.append(lock._is_owned())
        seen.append(lock._is_owned())

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait(PATIENCE)
    with changed:
        changed.notify_all()
    thread.join()
    assert seen == [True, True, False]
    assert not lock.locked()


# ##### Threads #####


def test_one_timer_is_started() -> None:
    started: list[threading.Thread] = []

    class Counted(Reaper):
        def _start(self, thread: threading.Thread) -> None:
            started.append(thread)
            super()._start(thread)

    keepers: list[Reaper] = [Counted(counters.of)]

    def ensure_running() -> None:
        keepers[-1].ensure_running()

    for number, _ in enumerate(at_each_line(Reaper.ensure_running, ensure_running, ensure_running), 1):
        assert len(started) == number
        assert keepers[-1]._thread is started[-1]
        keepers[-1].stop()
        keepers.append(Counted(counters.of))
    keepers[-1].stop()


def complain(error: BaseException) -> None:
    raise AssertionError from error


@pytest.mark.parametrize("function", [Lane.put, Lane._start])
def test_a_lane_has_no_thread_more_than_it_may(function: Any) -> None:
    lanes: list[Lane] = []
    called: list[int] = []

    def put(number: int) -> None:
        assert lanes[-1].put(partial(called.append, number))

    def begin() -> None:
        lanes.append(Lane("one", complain, threads=1, length=10))
        put(1)

    for _ in at_each_line(function, begin, partial(put, 2)):
        wait_until(lambda: len(called) == 2, "both were called")
        assert sorted(called) == [1, 2]
        assert len(lanes[-1]._threads) == 1
        lanes[-1].stop(PATIENCE)
        called.clear()
    lanes[-1].stop(PATIENCE)


def test_there_is_one_lane_of_a_name() -> None:
    workers: list[Workers] = []
    called: list[int] = []

    def put(number: int) -> None:
        assert workers[-1].put("one", partial(called.append, number), threads=1, length=10)

    def begin() -> None:
        workers.append(Workers(complain))
        put(1)

    for _ in at_each_line(Workers.put, begin, partial(put, 2)):
        wait_until(lambda: len(called) == 2, "both were called")
        assert threads_of("one") == 1
        workers[-1].stop(PATIENCE)
        called.clear()
    workers[-1].stop(PATIENCE)


def threads_of(lane: str) -> int:
    return sum(thread.name == f"conn-hygiene-{lane}" for thread in threading.enumerate())


# ##### A thread that cannot be started #####


def test_where_there_may_be_no_daemon_threads_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an isolated interpreter, where Python refuses to make one."""
    plain = threading.Thread

    class Refusing(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, daemon: bool | None = None, **kwargs: Any) -> None:
            if daemon:
                raise RuntimeError("daemon threads are disabled in this (sub)interpreter")
            super().__init__(*args, daemon=daemon, **kwargs)

    monkeypatch.setattr(threading, "Thread", Refusing)
    keeper = Reaper(counters.of)
    keeper.ensure_running()
    assert keeper._thread is None
    assert Lane("one", complain, threads=1, length=10).put(print) is False
    assert _Answering(Path("/nowhere")).begin() is False


def test_what_a_handler_raises_while_a_lane_starts_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("one", complain, threads=1, length=10)
    called = threading.Event()

    def start(thread: threading.Thread) -> None:
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            lane.put(called.set)
    assert lane._threads == set()
    assert lane.put(called.set)
    assert called.wait(PATIENCE)
    lane.stop(PATIENCE)


def test_a_lane_knows_a_thread_whose_start_a_handler_has_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("one", complain, threads=1, length=10)
    called = threading.Event()
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        real(thread)
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            lane.put(called.set)
    assert called.wait(PATIENCE)
    assert lane.flush(PATIENCE)
    assert len(lane._threads) == 1
    lane.stop(PATIENCE)


def test_a_call_that_cannot_be_made_is_the_one_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("one", complain, threads=1, length=10)
    calls: list[str] = []

    def start(thread: threading.Thread) -> None:
        # As a signal handler would, whose call finds that a thread is on its way.
        assert lane.put(partial(calls.append, "handler"))
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not lane.put(partial(calls.append, "first"))
    assert lane.put(partial(calls.append, "next"))
    assert lane.flush(PATIENCE)
    assert calls == ["handler", "next"]
    lane.stop(PATIENCE)


def test_a_timer_whose_start_a_handler_has_interrupted_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Reaper(counters.of)

    def start(thread: threading.Thread) -> None:
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            keeper.ensure_running()
    assert keeper._thread is None
    keeper.ensure_running()
    assert keeper.flush(PATIENCE)
    keeper.stop()
