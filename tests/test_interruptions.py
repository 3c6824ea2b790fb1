"""An exception of a signal handler (a time limit, Ctrl-C) may come between any two lines. Nothing is lost by it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from functools import partial
from linecache import getline
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, connections
from django.db.backends.postgresql.base import Cursor
from django.db.backends.signals import connection_created
from psycopg import ServerCursor

from conn_hygiene import release_between_queries
from conn_hygiene.leases import checkouts, cursors
from conn_hygiene.leases.lease import CLOSED, Lease
from conn_hygiene.leases.returns import Return
from conn_hygiene.leases.wrapper import LeasedWrapper, lease_of
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.sessions import following
from conn_hygiene.sessions.following import Carried
from tests.test_lease import query
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.django_db(transaction=True)

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
    Lease.cursor_closed,
    Lease.end_if_due,
    Lease.prepare_return,
    Lease.take,
    LeasedWrapper._check_out_of_pool,
    LeasedWrapper._conn_hygiene_connect,
    LeasedWrapper._connect_once,
    LeasedWrapper._plain_pool,
    LeasedWrapper.check_out_again,
    LeasedWrapper.create_cursor,
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
    LeasedWrapper.create_cursor,
]

# What is done besides for what the owner has set: it is read, taken along, and set again.
FOLLOWING: list[Any] = [
    Carried.__init__,
    Carried.tell,
    Carried.fail,
    Carried.values,
    Lease._assign,
    Lease._end,
    Lease._leave,
    Lease._plan,
    Lease.await_carried,
    Lease.begin_session,
    Lease.set_again,
    LeasedWrapper._conn_hygiene_connect,
    Return._clean,
    Return._scrub,
    Return.carry_out,
    following._set,
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
]

CASES = [
    *(pytest.param(function, 0, False, id=f"{function.__qualname__}, at once") for function in FUNCTIONS),
    *(pytest.param(function, 0.001, False, id=f"{function.__qualname__}, after a grace") for function in PARKING),
    *(pytest.param(function, 60, False, id=f"{function.__qualname__}, where it is needed") for function in NEEDED),
    *(pytest.param(function, 0, True, id=f"{function.__qualname__}, with a receiver") for function in CONNECTING),
]

EXEMPT = {
    # Nothing helps here: what is given back twice would be two threads'.
    ("carry_out", "records = give_back(self.connection)"),
    # Python handles signals at calls and jumps, and these come before the call that releases the lock. So does a
    # "with", which is a line once more at its end.
    ("_take_out_if_due", "try:  # noqa: SIM105"),
    ("_take_out_if_due", "self._lock.release()"),
}


class Interrupt(BaseException):
    """What a signal handler raises."""


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
                raise Interrupt
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
