"""A request that pauses behind the same query each time gives its connection back there at once."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from conn_hygiene import green, locks
from conn_hygiene.leases import cursors, pauses
from conn_hygiene.leases import lease as lease_module
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.pauses import DOUBT, FARTHEST, SURE, Pauses
from conn_hygiene.leases.returns import Return
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import experience, queues
from conn_hygiene.pools.experience import Experience
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.django_db(transaction=True, databases=["small", "unpooled"])

# Graces that run out soon, and never.
SOON, NEVER = 0.001, 60.0


class Requests:
    """Requests of the running thread, whose connections have one grace or another."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def grace(self, seconds: float) -> None:
        self._settings.CONN_HYGIENE = {
            "RELEASE": "always",
            "RELEASE_AFTER": seconds,
            "UNPOOLED_RELEASE_AFTER": seconds,
        }

    def serve(self, path: str, *steps: Callable[[Requests], None]) -> None:
        """Serve a request that does all of the *steps*."""
        request_started.send(None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": path})
        try:
            for step in steps:
                step(self)
        finally:
            request_finished.send(None)

    def states(self, path: str = "/", queries: int = 1, alias: str = "small") -> list[int]:
        """Return the states of the lease right after each of so many queries of a request, with a grace that lasts."""
        found: list[int] = []

        def ask(requests: Requests) -> None:
            query(requests, alias)
            found.append(lease(alias).state)

        self.grace(NEVER)
        self.serve(path, *[ask] * queries)
        return found

    def learn(self, *steps: Callable[[Requests], None], times: int = SURE, path: str = "/") -> None:
        for _ in range(times):
            self.serve(path, *steps)


def query(requests: Requests, alias: str = "small") -> None:
    """Query, and have no pause after it, unless one is expected."""
    requests.grace(NEVER)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def pause(requests: Requests, alias: str = "small") -> None:
    """Query, and pause for longer than the grace."""
    with connections[alias].cursor() as cursor:
        # Not before it is open: what is parked by then would be the pause.
        requests.grace(SOON)
        cursor.execute("SELECT 1")
    wait_until_released(alias)
    # For much longer than that has computed.
    time.sleep(0.03)


def compute(requests: Requests) -> None:
    """Have the processor do something for most of a while."""
    began, clock = time.monotonic(), time.thread_time()
    while (used := time.thread_time() - clock) < 0.04 or used < (time.monotonic() - began) / 5:
        pass


def lease(alias: str = "small") -> Lease:
    found = lease_of(connections[alias])
    assert found is not None
    return found


@pytest.fixture
def requests(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    # A test computes more than a view does between two queries.
    monkeypatch.setattr(pauses, "COMPUTED", 0.02)
    # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
    vars(connections["small"]).pop("connect", None)
    queue = getattr(DatabaseWrapper._connection_pools.get("small"), "_waiting", None)
    if isinstance(queue, queues.WaitingQueue):
        # Other tests were of other habits.
        queue.experience.forget()
    requests = Requests(settings)
    # A lease of the thread's, which every request then finds.
    requests.serve("/first", query)
    yield requests
    connections.close_all()


def test_where_a_pause_has_come_each_time_the_connection_goes_back_at_once(requests: Requests) -> None:
    requests.learn(pause, query)
    pool: Any = connections["small"].pool
    left: list[int] = []

    def look(_: Requests) -> None:
        left.append(pool.get_stats()["pool_available"])

    requests.serve("/", query, look, query, look)
    assert left == [3, 2]


def test_not_before_it_has_come_a_few_times(requests: Requests) -> None:
    requests.learn(pause, query, times=SURE - 1)
    assert requests.states(queries=2) == [PARKED, PARKED]


def test_only_behind_the_same_query(requests: Requests) -> None:
    requests.learn(query, query, pause, query)
    assert requests.states(queries=4) == [PARKED, PARKED, GIVEN_BACK, PARKED]


def test_behind_each_query_that_is_followed_by_one(requests: Requests) -> None:
    requests.learn(pause, query, pause, pause)
    assert requests.states(queries=5) == [GIVEN_BACK, PARKED, GIVEN_BACK, GIVEN_BACK, PARKED]


def test_requests_are_of_one_kind_whose_paths_differ_in_numbers(requests: Requests) -> None:
    for number in range(SURE):
        requests.serve(f"/orders/{number}/", pause, query)
    assert requests.states("/orders/17/") == [GIVEN_BACK]
    assert requests.states("/lines/17/") == [PARKED]


def test_what_did_not_come_once_has_to_come_as_often_again(requests: Requests) -> None:
    requests.learn(pause, query, times=SURE - 1)
    requests.serve("/", query, query)
    requests.learn(pause, query, times=SURE - 1)
    assert requests.states() == [PARKED]
    requests.learn(pause, query)
    assert requests.states() == [GIVEN_BACK]


def test_a_request_that_ends_before_tells_nothing_of_what_comes_later(requests: Requests) -> None:
    requests.learn(query, pause, query)
    requests.serve("/", query)
    assert requests.states(queries=2) == [PARKED, GIVEN_BACK]


def test_where_one_was_expected_in_vain_the_next_ones_are_waited_for(requests: Requests) -> None:
    requests.learn(pause, query)
    # This one goes on at once.
    assert requests.states(queries=2) == [GIVEN_BACK, PARKED]
    requests.learn(pause, query, times=DOUBT + SURE - 1)
    assert requests.states() == [PARKED]
    requests.learn(pause, query, times=DOUBT + SURE)
    assert requests.states() == [GIVEN_BACK]


def test_one_that_comes_as_expected_is_expected_again(requests: Requests) -> None:
    requests.learn(pause, query)

    requests.learn(pause, query)
    assert requests.states() == [GIVEN_BACK]


def test_nor_is_it_one_when_the_owner_computes(requests: Requests) -> None:
    requests.learn(pause, query)

    def query_soon(requests: Requests) -> None:
        requests.grace(SOON)
        with connections["small"].cursor() as cursor:
            cursor.execute("SELECT 1")

    requests.serve("/", query_soon, compute, query)
    assert requests.states() == [PARKED]


def test_green_threads_have_no_processor_time_of_their_own(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    requests.learn(pause, query)

    def query_soon(requests: Requests) -> None:
        requests.grace(SOON)
        with connections["small"].cursor() as cursor:
            cursor.execute("SELECT 1")

    monkeypatch.setattr(green, "library", lambda: "gevent")
    requests.serve("/", query_soon, compute, query)
    assert requests.states() == [GIVEN_BACK]


def test_outside_of_requests_nothing_is_counted(requests: Requests) -> None:
    for _ in range(SURE):
        pause(requests)
    query(requests)
    assert lease().state == PARKED
    assert (lease().pauses.label, lease().pauses._seen) == (None, ())


def test_the_end_of_a_turn_is_no_pause(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    def let_go(requests: Requests) -> None:
        query(requests)
        found = lease()
        with monkeypatch.context() as patched:
            patched.setattr(type(found), "_due", lambda self, **kwargs: self.idle_since)
            assert found.end_if_parked(found.idle_since) is None
        assert found.state == GIVEN_BACK

    requests.learn(let_go, query)
    assert requests.states() == [PARKED]


def test_nor_is_what_comes_after_a_use_past_the_wrapper(requests: Requests) -> None:
    def use_once_more(requests: Requests) -> None:
        requests.grace(NEVER)
        with connections["small"].cursor() as cursor:
            raw = cursor.connection
            cursor.execute("SELECT 1")
        raw.execute("SELECT 2")
        found = lease()
        requests.grace(SOON)
        wait_until_released("small")
        assert found.state == GIVEN_BACK

    requests.learn(use_once_more, query)
    assert requests.states() == [PARKED]


def test_nor_what_comes_before_a_transaction_past_the_wrapper(requests: Requests) -> None:
    def begin(requests: Requests) -> None:
        query(requests)
        found = lease()
        assert found._connection is not None
        with found._connection.transaction():
            requests.grace(SOON)
            found.end_if_parked(found.idle_since + SOON)
            assert found.state == HELD

    requests.learn(begin, query)
    assert requests.states() == [PARKED]


def test_it_is_its_owners_who_closes_the_last_cursor(requests: Requests) -> None:
    """A generator's cursor may be closed in another thread, by whoever collects it."""
    requests.learn(pause, query, pause, query)
    found: list[int] = []

    def close_elsewhere(requests: Requests) -> None:
        requests.grace(NEVER)
        cursor = connections["small"].cursor()
        cursor.execute("SELECT 1")
        thread = threading.Thread(target=cursor.cursor.close)
        thread.start()
        thread.join()
        # The reaper sees to it.
        wait_until(lambda: lease().state != HELD, "the reaper has seen to the cursor")
        found.append(lease().state)

    def look(requests: Requests) -> None:
        query(requests)
        found.append(lease().state)

    requests.serve("/", close_elsewhere, look, look)
    # What comes later in the request is expected all the same.
    assert found == [PARKED, PARKED, GIVEN_BACK]


def test_nobody_waits_for_what_a_worker_can_do_in_a_pause(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    requests.learn(pause, query)
    carriers: list[bool] = []
    real = Return.carry_out

    def carry_out(self: Return, keeper: Any) -> None:
        carriers.append(threading.current_thread() is threading.main_thread())
        real(self, keeper)

    def set_and_pause(requests: Requests) -> None:
        requests.grace(NEVER)
        with monkeypatch.context() as patched:
            patched.setattr(Return, "carry_out", carry_out)
            with connections["small"].cursor() as cursor:
                cursor.execute("SET work_mem = '8MB'")
            wait_until_released("small")
        time.sleep(0.03)

    seen: list[str] = []

    def show(requests: Requests) -> None:
        with connections["small"].cursor() as cursor:
            cursor.execute("SHOW work_mem")
            seen.extend(cursor.fetchone())

    requests.serve("/", set_and_pause, show)
    assert (carriers, seen) == ([False], ["8MB"])


def test_a_session_that_was_discarded_is_given_back_at_once_as_well(requests: Requests) -> None:
    requests.learn(pause, query)
    found: list[int] = []

    def discard(requests: Requests) -> None:
        requests.grace(NEVER)
        with connections["small"].cursor() as cursor:
            cursor.execute("DISCARD ALL")
        found.append(lease().state)

    requests.serve("/", discard)
    assert found == [GIVEN_BACK]


def test_a_query_in_the_middle_of_a_checkout_gives_nothing_back(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler's may come at any line."""
    requests.learn(pause, query)
    found: list[int] = []
    real = cursors.follow

    def follow(connection: Any, lease_: Any) -> None:
        monkeypatch.setattr(cursors, "follow", real)
        query(requests)
        found.append(lease_.state)
        real(connection, lease_)

    def look(requests: Requests) -> None:
        query(requests)
        found.append(lease().state)

    monkeypatch.setattr(cursors, "follow", follow)
    requests.serve("/", look)
    assert found == [PARKED, PARKED]


def test_nor_does_it_without_a_grace(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _states_with_a_query_in_a_checkout(requests, monkeypatch, grace=0)
    assert found == [HELD, GIVEN_BACK]


def test_nor_where_others_wait_whose_turn_it_is(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_has_had_its_turn", lambda self: True)
    found = _states_with_a_query_in_a_checkout(requests, monkeypatch, grace=NEVER, waiting=True)
    assert found == [PARKED, GIVEN_BACK]


def _states_with_a_query_in_a_checkout(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, *, grace: float, waiting: bool = False
) -> list[int]:
    """Return the states of the lease behind that query, and behind the one that the checkout was for."""
    found: list[int] = []
    real = cursors.follow

    def ask() -> None:
        requests.grace(grace)
        with connections["small"].cursor() as cursor:
            cursor.execute("SELECT 1")
        found.append(lease().state)

    def follow(connection: Any, lease_: Any) -> None:
        if not found:
            if waiting:
                lease_.queue = [object()]
            ask()
        real(connection, lease_)

    monkeypatch.setattr(cursors, "follow", follow)
    requests.serve("/", lambda _: ask())
    return found


def test_whoever_needs_the_connection_may_be_the_one_to_find_it_idle(requests: Requests) -> None:
    def taken(requests: Requests) -> None:
        query(requests)
        found = lease()
        assert found.end_if_due(found.idle_since + NEVER, found.spare) is None
        assert found.state == GIVEN_BACK

    requests.learn(taken, query)
    assert requests.states() == [GIVEN_BACK]


def test_what_keeps_a_connection_keeps_it_in_an_expected_pause(requests: Requests) -> None:
    requests.learn(pause, query)

    def pin(requests: Requests) -> None:
        requests.grace(NEVER)
        with connections["small"].cursor() as cursor:
            cursor.execute("LISTEN nothing")

    found: list[int] = []
    requests.serve("/", pin, lambda _: found.append(lease().state), query)
    assert found == [HELD]


def test_a_transaction_is_no_place_for_one(requests: Requests) -> None:
    requests.learn(pause, query)
    found: list[int] = []

    def in_transaction(requests: Requests) -> None:
        with transaction.atomic("small"):
            query(requests)
            found.append(lease().state)
        found.append(lease().state)

    requests.grace(NEVER)
    requests.serve("/", in_transaction)
    assert found == [HELD, GIVEN_BACK]


def test_other_threads_learn_from_it(requests: Requests) -> None:
    requests.learn(pause, query)
    found: list[Sequence[int]] = []

    def serve() -> None:
        try:
            # Its lease is made by its first query.
            requests.serve("/first", query)
            found.append(requests.states())
        finally:
            connections.close_all()

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert found == [[GIVEN_BACK]]


def test_without_a_pool_there_is_none_to_expect(requests: Requests) -> None:
    requests.learn(partial(pause, alias="unpooled"), partial(query, alias="unpooled"))
    assert requests.states(alias="unpooled") == [PARKED]


def test_not_more_is_remembered_than_there_is_room_for() -> None:
    those, found = Experience(), Pauses()
    found.checked_out("GET /", 0.0, those)
    for _ in range(2 * FARTHEST):
        found.at += 1
        found.came()
    found.end()
    assert len(those.pauses_of("GET /")) == FARTHEST
    for number in range(experience.MOST):
        those.learn_pauses(f"GET /{number}", {1: SURE})
    # The first one is forgotten, and no other.
    assert those.pauses_of("GET /") == {}
    assert len(those._pauses) == experience.MOST


def test_what_a_query_has_given_back_in_the_middle_is_not_given_back_twice(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler's or finaliser's, while its thread closes a cursor."""
    # It does that under the lock of the lease, which is as it has to be.
    monkeypatch.setattr(locks, "DEBUG", False)
    requests.grace(0)
    pool: Any = connections["small"].pool
    put: list[Any] = []
    real, now = pool.putconn, lease_module._now

    def putconn(connection: Any) -> None:
        put.append(connection)
        real(connection)

    def query_once() -> float:
        if sys._getframe(1).f_code.co_name == "cursor_closed":
            monkeypatch.setattr(lease_module, "_now", now)
            with connections["small"].cursor() as cursor:
                cursor.execute("SELECT 2")
        return now()

    def ask(_: Requests) -> None:
        with connections["small"].cursor() as cursor:
            cursor.execute("SELECT 1")
            monkeypatch.setattr(lease_module, "_now", query_once)

    monkeypatch.setattr(pool, "putconn", putconn)
    requests.serve("/", ask)
    assert lease_module._now is now
    assert len(put) == 1
    assert pool.get_stats()["pool_available"] == 3


def test_what_a_handler_raises_when_the_pool_has_the_connection_closes_nothing(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's SoftTimeLimitExceeded is an Exception, for one."""
    requests.grace(0)
    pool: Any = connections["small"].pool
    put: list[Any] = []
    real = pool.putconn

    def putconn(connection: Any) -> None:
        monkeypatch.setattr(pool, "putconn", real)
        put.append(connection)
        real(connection)
        raise LookupError("out of time")

    monkeypatch.setattr(pool, "putconn", putconn)
    # As on a site. What is logged takes another way.
    caplog.set_level("WARNING", logger="psycopg.pool")
    # Without state in the session, of connections that are seen for the first time and once more, and with some.
    for sql in (*["SELECT 1"] * 6, "SET work_mem = '8MB'"):
        monkeypatch.setattr(pool, "putconn", putconn)
        with pytest.raises(LookupError, match="out of time"), connections["small"].cursor() as cursor:
            cursor.execute(sql)
        assert not put.pop().closed
        assert pool.get_stats()["pool_available"] == 3
