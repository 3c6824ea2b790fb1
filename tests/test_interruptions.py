"""An exception of a signal handler (a time limit, Ctrl-C) may come between any two lines. Nothing is lost by it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from functools import partial
from linecache import getline
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, connections
from django.db.backends.postgresql.base import Cursor
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from django.db.backends.signals import connection_created
from psycopg import ServerCursor
from psycopg_pool import ConnectionPool

from conn_hygiene import callsite, closing_connections, events, functions, hold_connection, release_between_queries
from conn_hygiene.leases import checkouts, cursors, exhausted, looks
from conn_hygiene.leases.attaching import attach
from conn_hygiene.leases.attaching import close_books as close_books_of
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.returns import Return, TimeLimit
from conn_hygiene.leases.states import CLOSED
from conn_hygiene.leases.wrapper import LeasedWrapper, lease_of
from conn_hygiene.management import asking
from conn_hygiene.pools import base as pools
from conn_hygiene.pools.parameters import Parameters
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.server import sessions
from conn_hygiene.sessions import catalogue, cleaning, client, effects, following, texts
from conn_hygiene.sessions.following import Carried
from conn_hygiene.sessions.plan import Plan
from tests.test_lease import query
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])

FUNCTIONS: list[Any] = [
    checkouts.working_one,
    cursors.LeasedCursor.close,
    cursors.LeasedCursor.execute,
    cursors.follow,
    cursors.register,
    cursors.unfollow,
    Lease._begin,
    Lease._end,
    Lease._end_idle,
    Lease._take_out,
    Lease._assign,
    Lease.begin_session,
    Lease.closing,
    Lease.cursor_closed,
    Lease.end_if_due,
    Lease.prepare_return,
    Lease.take,
    LeasedWrapper._check_out,
    LeasedWrapper._check_out_of_pool,
    LeasedWrapper._conn_hygiene_connect,
    LeasedWrapper._connect_once,
    LeasedWrapper._plain_pool,
    LeasedWrapper.check_out_again,
    LeasedWrapper._make_cursor,
    Reaper.carry_back,
    Reaper.leaving,
    Reaper.returned,
    Return.__init__,
    Return.carry_out,
]

# Those that are called, or called otherwise, where a checkout is all of Django's connect().
CONNECTING: list[Any] = [
    Lease._assign,
    Lease.connected,
    Lease.connecting,
    Lease.take,
    LeasedWrapper._checking_out,
    LeasedWrapper._conn_hygiene_connect,
    LeasedWrapper.check_out_again,
]

# Those for which it makes a difference that the owner leaves the lease to the reaper, or takes it back.
PARKING: list[Any] = [
    Lease.cursor_closed,
    Lease.end_if_due,
    Lease.take,
    LeasedWrapper._make_cursor,
]

# What is done besides for what the owner has set: it is read, taken along, and set again.
FOLLOWING: list[Any] = [
    Carried.__init__,
    Carried.set_result,
    Carried.set_exception,
    Carried.result,
    Lease._assign,
    Lease._end,
    Lease._leave,
    Lease._plan,
    Lease.await_carried,
    Lease.begin_session,
    Lease.set_again,
    LeasedWrapper._check_out,
    LeasedWrapper._check_out_of_pool,
    LeasedWrapper._conn_hygiene_connect,
    Return._clean,
    Return._scrub,
    Return.carry_out,
    following._set,
    pools.scrub,
]

# What a thread does that is about to wait for a connection, or that has one for which somebody waits.
NEEDED: list[Any] = [
    Lease._carry_back,
    Lease._due,
    Lease._end_idle,
    Lease._end_parked,
    Lease._take_out,
    Lease._take_out_if_due,
    Lease.end_if_due,
    Lease.end_if_parked,
    Return.carry_out,
    client.restore,
    pools._give_back_restored,
    pools.give_back,
    pools.put_back,
]

CASES = [
    *(pytest.param(function, 0, False, id=f"{function.__qualname__}, at once") for function in FUNCTIONS),
    *(pytest.param(function, 0.001, False, id=f"{function.__qualname__}, after a grace") for function in PARKING),
    *(pytest.param(function, 60, False, id=f"{function.__qualname__}, where it is needed") for function in NEEDED),
    *(pytest.param(function, 0, True, id=f"{function.__qualname__}, with a receiver") for function in CONNECTING),
]

EXEMPT = {
    # Nothing helps from here on: what is given back twice would be two threads'. Python handles no signal in between.
    ("put_back", "pool.putconn(connection)"),
    ("_give_back_restored", "pool.putconn(connection)"),
    # Python handles signals at calls and jumps, and these come before the call that releases the lock. So does a
    # "with", which is a line once more at its end.
    ("_check_out", "try:"),
    ("_take_out_if_due", "try:  # noqa: SIM105"),
    ("_take_out_if_due", "self._lock.release()"),
}


class Interrupt(TimeoutError):
    """What a signal handler raises: a time limit, which is an exception like any other, and may be an OSError."""


def handler(signum: int, frame: FrameType | None) -> None:
    raise Interrupt


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


class Interrupting:
    """Raises at the *nth* line that this thread executes of a function, once."""

    def __init__(self, code: CodeType, nth: int) -> None:
        self.code = code
        self.left = nth
        self.at = ""

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self.before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if frame.f_code is self.code else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        line = getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and (self.code.co_name, line) not in EXEMPT and not line.startswith("with self._"):
            self.left -= 1
            self.at = line
            if self.left == 0:
                handler(signal.SIGUSR1, frame)
        return self._line


def use(grace: float) -> None:
    """Check out, give back, check out again, and close."""
    with release_between_queries():
        for is_owner in (False, True):
            query()
            lease = lease_of(connections["default"])
            assert lease is not None
            # As whoever needs a connection does, or its owner if it is not the first to; after a long grace, nobody
            # else does it.
            if is_owner:
                lease.end_if_parked(time.monotonic() + grace, here=True)
            else:
                lease.end_if_due(time.monotonic() + grace, lease.spare)
            wait_until_released()
    query()
    connections["default"].close()


def is_whole(pool: ConnectionPool) -> bool:
    stats = pool.get_stats()
    return stats["pool_available"] == stats["pool_size"]


def is_plain(handle: Any) -> bool:
    """Return whether the cursors of *handle* are those that Django's backend has set, and not made from them."""
    return handle.cursor_factory is Cursor and handle.server_cursor_factory is ServerCursor


def is_free(lock: Any) -> bool:
    """Return whether another thread can take *lock*."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(lock.acquire(timeout=5))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def receiver(**kwargs: Any) -> None:
    """Have every checkout be a connect() that calls somebody."""


@pytest.fixture
def with_receiver(receives: bool) -> Iterator[None]:
    # What Django's test classes may have left there has all of connect() run, too.
    vars(connections["default"]).pop("connect", None)
    if receives:
        connection_created.connect(receiver)
    yield
    connection_created.disconnect(receiver)


@pytest.mark.parametrize(("function", "grace", "receives"), CASES)
@pytest.mark.usefixtures("with_receiver")
def test_after_an_exception_at_any_line_all_goes_on(
    function: Any, grace: float, settings: Any, pool_of: Callable[[str], ConnectionPool]
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    use(grace)
    lease = lease_of(connections["default"])
    assert lease is not None
    interrupts = 0
    for nth in range(1, 200):
        interruption = Interrupting(function.__code__, nth)
        try:
            with interruption:
                use(grace)
        except Interrupt:
            interrupts += 1
        connections["default"].close()
        assert is_free(lease._lock)
        wait_until(partial(is_whole, pool_of("default")), f"all connections are back, after {interruption.at}")
        assert all(is_plain(handle) for handle in list(pool_of("default")._pool))
        use(grace)
        if interruption.left > 0:
            break
    assert interrupts == nth - 1
    assert interrupts


def test_a_wrapper_whose_first_connect_is_interrupted_connects_again(pool_of: Callable[[str], ConnectionPool]) -> None:
    failed: list[object] = []

    def connect(interruption: Interrupting) -> None:
        # A thread of its own, whose wrappers are new.
        try:
            with interruption:
                query()
        except Interrupt:
            failed.append(interruption.at)
        connections.close_all()
        query()
        failed.append(type(lease_of(connections["default"])))
        connections.close_all()

    for nth in range(1, 200):
        interruption = Interrupting(attach.__code__, nth)
        thread = threading.Thread(target=connect, args=[interruption])
        thread.start()
        thread.join()
        assert failed.pop() is Lease, f"after {interruption.at}"
        wait_until(partial(is_whole, pool_of("default")), f"all connections are back, after {interruption.at}")
        if interruption.left > 0:
            break
    assert len(failed) == nth - 1
    assert failed


def test_an_owner_who_is_interrupted_as_it_carries_back_itself_what_it_waits_for_loses_nothing(
    settings: Any, monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    """What it has set is read by a worker else, who has not come to that yet."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    use_as_tenant([])
    interrupts = 0
    for nth in range(1, 200):
        interruption = Interrupting(Return.carry_out.__code__, nth)
        with release_between_queries(), monkeypatch.context() as patch:
            with connections["default"].cursor() as cursor:
                cursor.execute("SET app.tenant = 'acme'")
            patch.setattr(Reaper, "_put_return", lambda self, returning: True)
            lease: Any = lease_of(connections["default"])
            assert lease.end_if_due(time.monotonic() + 60, lease.spare) is None
            try:
                with interruption:
                    assert tenant() == "acme"
            except Interrupt:
                interrupts += 1
        connections["default"].close()
        wait_until(partial(is_whole, pool_of("default")), f"all connections are back, after {interruption.at}")
        if interruption.left > 0:
            break
    assert interrupts == nth - 1 > 0


TENANT = "SELECT current_setting('app.tenant', true)"


def tenant() -> Any:
    with connections["default"].cursor() as cursor:
        cursor.execute(TENANT)
        return cursor.fetchone()[0]


def use_as_tenant(found: list[Any]) -> None:
    """Set something, find it again in other sessions, and close."""
    with release_between_queries():
        with connections["default"].cursor() as cursor:
            cursor.execute("SET app.tenant = 'acme'")
        for _ in range(2):
            found.append(tenant())
    connections["default"].close()


@pytest.mark.parametrize("receives", [False])
@pytest.mark.parametrize("function", FOLLOWING, ids=lambda function: function.__qualname__)
@pytest.mark.usefixtures("with_receiver")
def test_after_an_exception_at_any_line_nothing_runs_without_what_was_set(
    function: Any, settings: Any, pool_of: Callable[[str], ConnectionPool]
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    use_as_tenant([])
    interrupts = 0
    for nth in range(1, 200):
        interruption = Interrupting(function.__code__, nth)
        found: list[Any] = []
        with release_between_queries():
            with connections["default"].cursor() as cursor:
                cursor.execute("SET app.tenant = 'acme'")
            try:
                with interruption:
                    use_as_tenant(found)
            except Interrupt:
                interrupts += 1
                # The one that has handled the signal goes on. It finds what it has set, or is told that it is lost.
                if lease_of(connections["default"]).state != CLOSED:
                    with contextlib.suppress(DatabaseError):
                        found.append(tenant())
        assert {*found} <= {"acme"}, f"after {interruption.at}"
        connections["default"].close()
        wait_until(partial(is_whole, pool_of("default")), f"all connections are back, after {interruption.at}")
        for handle in list(pool_of("default")._pool):
            row: Any = handle.execute(TENANT).fetchone()
            assert row[0] in (None, ""), f"after {interruption.at}"
            handle.rollback()
        # It ends with the request.
        assert tenant() in (None, ""), f"after {interruption.at}"
        connections["default"].close()
        if interruption.left > 0:
            break
    assert interrupts == nth - 1
    assert interrupts


# ##### Where an exception of somebody else's is kept from whoever works #####


def test_asking_a_server_is_what_a_time_limit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgreSQLWrapper, "get_connection_params", interrupt)
    with pytest.raises(Interrupt):
        sessions.connect("default")
    with pytest.raises(Interrupt):
        asking.facts(["default"])


@pytest.mark.parametrize("order", [("default", "unpooled"), ("unpooled", "default")])
def test_closing_several_is_what_a_time_limit_ends(
    order: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails, is_interrupted = order
    plain = LeasedWrapper.close

    def close(wrapper: LeasedWrapper) -> None:
        plain(wrapper)
        if wrapper.alias == fails:
            raise ZeroDivisionError
        if wrapper.alias == is_interrupted:
            interrupt()

    @closing_connections
    def work() -> None:
        query("default")
        query("unpooled")
        monkeypatch.setattr(LeasedWrapper, "close", close)

    connections.close_all()
    with pytest.raises(Interrupt):
        work()
    monkeypatch.undo()
    assert [
        (record.name, record.getMessage(), record.exc_info and record.exc_info[0]) for record in caplog.records
    ] == [
        ("conn_hygiene", f"Connection {fails!r} failed as well; the error of another one is raised.", ZeroDivisionError)
    ]


def interrupt(*args: Any, **kwargs: Any) -> Any:
    """Stand for what is running when the signal comes."""
    signal.raise_signal(signal.SIGUSR1)


class Query:
    """Raises where its text is asked for."""

    as_string = interrupt


class Unequal:
    """Raises where it is compared."""

    __hash__ = None  # type: ignore[assignment]
    __eq__ = interrupt


def with_listener(publish: Callable[[Any], None]) -> None:
    events.listen(events.LeftAlone, interrupt)
    try:
        publish(events.LeftAlone(alias="default", engine="an engine", reason="a reason"))
    finally:
        events.unlisten(events.LeftAlone, interrupt)


def harmless(handle: Any) -> None:
    with exhausted._harmless("default"):
        interrupt()


def wanted(handle: Any) -> None:
    lease = lease_of(connections["default"])
    assert lease is not None
    lease.keeper.wanted(lease.spare)


def renew(handle: Any) -> None:
    backend: Any = connections["default"]
    asked = Parameters(backend, {})
    asked._asked_at = -math.inf
    asked.keys()


def compare(handle: Any) -> None:
    look = client.given_look(handle)
    assert look is not None
    look.is_still_true(handle)


def restore_unequal(handle: Any) -> None:
    before, handle.row_factory = handle.row_factory, Unequal()
    try:
        client.restore(handle)
    finally:
        handle.row_factory = before


def close_books(handle: Any) -> None:
    close_books_of(connections["default"])


def vacate(handle: Any) -> None:
    try:
        pools.vacate(handle)
    finally:
        handle._pool = connections["default"].pool


def limit(handle: Any) -> None:
    lease = lease_of(connections["default"])
    assert lease is not None
    with TimeLimit(handle, lease.keeper, 60):
        pass


SOILED = Plan(left=frozenset({effects.SETTING}))

#: What is called, what of it is replaced by something that is interrupted, and how it is called.
SITES: dict[str, tuple[Any, str, Callable[[Any], object]]] = {
    "a place": (functions, "definition", lambda handle: callsite._defined(interrupt, None)),
    "a listener": (events, "_", lambda handle: with_listener(events.publish)),
    "another listener": (events, "_", lambda handle: with_listener(events.publish_to_others)),
    "who holds a pool": (exhausted, "_note", harmless),
    "a look": (looks, "_tests", lambda handle: looks._only_tests.__wrapped__(handler.__code__, 0)),
    "a backend's close": (PostgreSQLWrapper, "close", close_books),
    "putting back": (ConnectionPool, "putconn", lambda handle: pools.put_back(handle, SimpleNamespace(is_put=False))),
    "giving back": (ConnectionPool, "putconn", pools.give_back),
    "vacating": (ConnectionPool, "putconn", vacate),
    "cleaning": (cleaning, "clean", lambda handle: pools.scrub(handle, SOILED, ())),
    "a time limit": (os, "dup", limit),
    "parameters": (PostgreSQLWrapper, "get_connection_params", renew),
    "somebody else's lease": (Lease, "end_if_due", wanted),
    "the catalogue": (catalogue, "_read", catalogue.read),
    "comparing": (client, "_of_dictionary", compare),
    "restoring": (client, "_restore", restore_unequal),
    "a text": (texts, "_", lambda handle: texts.text_of(Query(), handle)),
}


@pytest.mark.parametrize("site", SITES)
def test_what_is_done_meanwhile_does_not_keep_it(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, call = SITES[site]
    with hold_connection():
        query()
        lease = lease_of(connections["default"])
        assert lease is not None
        handle = lease._connection
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt, raising=False)
            with pytest.raises(Interrupt):
                call(handle)
    connections["default"].close()
