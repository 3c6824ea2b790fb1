"""Who waits for a connection gets its turn: bursts of queries let go, however short the pauses in them are."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg_pool import ConnectionPool, NullConnectionPool
from psycopg_pool.pool import WaitingClient

from conn_hygiene import closing_connections, hold_connection
from conn_hygiene.leases import turns
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.turns import Turn
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import experience, native, queues
from conn_hygiene.pools.experience import MAX_LATENESS, Experience
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.transactions import left_open
from conn_hygiene.work import serving
from tests.testapp.models import Item
from tests.waiting import let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled"])

SIZE = 3  # of the pool of "small"


@pytest.fixture(autouse=True)
def in_a_scope(settings: Any) -> Iterator[None]:
    """Have every owner in a scope, and only the end of its turn, not a pause, make it let go."""
    # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
    vars(connections["small"]).pop("connect", None)
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60}
    queue = getattr(DatabaseWrapper._connection_pools.get("small"), "_waiting", None)
    if isinstance(queue, queues.WaitingQueue):
        # Other tests were of other habits.
        queue.experience.forget()
    yield
    connections.close_all()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every turn be over with its first query."""
    monkeypatch.setattr(turns, "TURN", 0)


def query(alias: str = "small", sql: str = "SELECT 1") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def state(alias: str = "small") -> int:
    found = lease_of(connections[alias])
    assert found is not None
    return found.state


class Bursts:
    """Threads that query without a pause until they are told to stop, each at least once."""

    def __init__(self, number: int, burst: Callable[[Callable[[], bool]], None]) -> None:
        self.stopped = threading.Event()
        self.errors: list[BaseException] = []
        self.counts = [0] * number
        self.threads = [threading.Thread(target=self.run, args=[burst, each]) for each in range(number)]

    @closing_connections
    def run(self, burst: Callable[[Callable[[], bool]], None], number: int) -> None:
        def go_on() -> bool:
            self.counts[number] += 1
            return not self.stopped.is_set()

        try:
            burst(go_on)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.errors.append(error)

    def __enter__(self) -> Bursts:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        assert self.errors == []

    def all_have_queried(self, times: int) -> bool:
        return min(self.counts) > times or bool(self.errors)


def in_sync(go_on: Callable[[], bool]) -> None:
    while go_on():
        query()


def in_transactions(go_on: Callable[[], bool]) -> None:
    while go_on():
        with transaction.atomic("small"):
            query()


def on_an_event_loop(go_on: Callable[[], bool]) -> None:
    async def burst() -> None:
        # With a thread of its own for what is sync.
        async with ThreadSensitiveContext():
            while go_on():
                await Item.objects.using("small").aexists()
            await sync_to_async(connections.close_all)()

    asyncio.run(burst())


# ##### Bursts that do not end #####


@pytest.mark.parametrize("burst", [in_sync, in_transactions, on_an_event_loop])
def test_who_waits_is_served_while_the_bursts_go_on(burst: Any) -> None:
    # By a wrapper that has connected before, and by one that has not.
    query()
    connections["small"].close()
    first = threading.Thread(target=closing_connections(query))
    with Bursts(SIZE, burst) as bursts:
        wait_until(lambda: bursts.all_have_queried(10), "all connections are in a burst")
        query()
        connections["small"].close()
        first.start()
        first.join(10)
        assert not first.is_alive()
        assert not bursts.stopped.is_set()


def test_more_bursts_than_connections_all_come_forward() -> None:
    with Bursts(3 * SIZE, in_sync) as bursts:
        wait_until(lambda: bursts.all_have_queried(20), "all have made their queries")


# ##### One owner, and one who waits #####


@pytest.fixture
def used(pool_of: Callable[[str], ConnectionPool]) -> Iterator[list[Any]]:
    """Have all connections of the pool but one in use, by nobody who would let go, and return them."""
    query()
    connections["small"].close()
    pool = pool_of("small")
    used = [pool.getconn() for _ in range(SIZE - 1)]
    yield used
    for connection in used:
        pool.putconn(connection)


@pytest.fixture
def pool(pool_of: Callable[[str], ConnectionPool], used: list[Any]) -> ConnectionPool:
    """Return the pool that has one left."""
    return pool_of("small")


@contextmanager
def somebody_waits(pool: ConnectionPool, asking: Callable[[], None] = query) -> Iterator[None]:
    """Have a thread wait for a connection of *pool*, which has none left; it is served by the end of the block."""
    thread = threading.Thread(target=closing_connections(asking))
    thread.start()
    try:
        wait_until(lambda: pool.get_stats()["requests_waiting"], "somebody waits")
        yield
    except BaseException:
        connections["small"].close()
        raise
    finally:
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.usefixtures("short")
def test_an_owner_whose_turn_is_over_lets_go_after_its_query(pool: ConnectionPool) -> None:
    cursor = connections["small"].cursor()
    with somebody_waits(pool):
        cursor.close()
        assert state() == GIVEN_BACK
    query()


def test_in_its_turn_it_goes_on(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", 60)
    cursor = connections["small"].cursor()
    with somebody_waits(pool):
        cursor.close()
        assert state() == PARKED
        connections["small"].close()


@pytest.mark.usefixtures("short", "pool")
def test_it_goes_on_if_nobody_waits() -> None:
    query()
    query()
    assert state() == PARKED


@pytest.mark.usefixtures("short")
def test_nobody_waits_for_a_connection_without_a_pool(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 60}
    query("unpooled")
    query("unpooled")
    assert state("unpooled") == PARKED


def in_a_transaction() -> AbstractContextManager[Any]:
    return transaction.atomic("small")


def beside_an_open_cursor() -> AbstractContextManager[Any]:
    return connections["small"].cursor()


def held() -> AbstractContextManager[Any]:
    return hold_connection(using="small")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("keeping", [in_a_transaction, beside_an_open_cursor, held])
def test_what_its_owner_needs_goes_when_that_is_over(
    keeping: Callable[[], AbstractContextManager[Any]], pool: ConnectionPool
) -> None:
    with ExitStack() as stack:
        stack.enter_context(keeping())
        query()
        with somebody_waits(pool):
            query()
            assert state() == HELD
            stack.close()
            assert state() == GIVEN_BACK


@pytest.mark.usefixtures("short")
def test_what_is_pinned_stays(pool: ConnectionPool) -> None:
    query(sql="LISTEN turns")
    with somebody_waits(pool):
        query()
        assert state() == HELD
        connections["small"].close()


@pytest.mark.usefixtures("short")
def test_so_does_what_no_scope_wants_released(pool: ConnectionPool, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "scoped"}
    query()
    with somebody_waits(pool):
        query()
        assert state() == HELD
        connections["small"].close()


@pytest.mark.usefixtures("short")
def test_a_burst_goes_on_if_whoever_waited_has_got_another_one(
    pool: ConnectionPool, used: list[Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the owner's look at the queue and the release; the reaper must learn of the lease all the same."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.05}
    owners_lease: Any = lease_of(connections["small"])
    wait_until(lambda: owners_lease.look_at == math.inf, "the reaper knows nothing of it")
    real, owner = Lease.end_if_parked, threading.get_ident()
    states: list[int] = []

    def end_if_parked(self: Lease, now: float, **how: bool) -> float | None:
        if threading.get_ident() != owner:
            return real(self, now, **how)
        spare.close()
        wait_until(lambda: not pool.get_stats()["requests_waiting"], "nobody waits any more")
        again = real(self, now, **how)
        states.append(self.state)
        return again

    with ExitStack() as spare:
        cursor = connections["small"].cursor()
        with somebody_waits(pool):
            spare.callback(pool.putconn, used.pop())
            monkeypatch.setattr(Lease, "end_if_parked", end_if_parked)
            cursor.close()
    assert states == [PARKED]
    wait_until_released("small")


# ##### Who goes on, and who comes anew #####


def go_on(place: float | None = None) -> None:
    """Query, as whoever had a turn until a moment ago, and has the *place*: behind all who are there, without one."""
    pool: Any = connections["small"].pool
    with queues.going_on(pool._waiting, time.monotonic() if place is None else place):
        query()


@pytest.mark.usefixtures("short")
def test_an_owner_has_a_long_turn_if_only_those_wait_who_go_on_behind_it(pool: ConnectionPool) -> None:
    cursor = connections["small"].cursor()
    with somebody_waits(pool, go_on):
        cursor.close()
        assert state() == PARKED
        connections["small"].close()


@pytest.mark.usefixtures("short")
def test_it_lets_go_for_who_has_begun_before_it(pool: ConnectionPool) -> None:
    cursor = connections["small"].cursor()
    with somebody_waits(pool, partial(go_on, 0.0)):
        cursor.close()
        assert state() == GIVEN_BACK


@pytest.mark.usefixtures("short")
def test_a_long_turn_is_over_as_well(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONG_TURN", 0)
    cursor = connections["small"].cursor()
    with somebody_waits(pool, go_on):
        cursor.close()
        assert state() == GIVEN_BACK


def test_a_burst_of_several_checkouts_keeps_its_place() -> None:
    turn = Turn()
    go_on = partial(turn.go_on, others=Experience())
    assert not turn.went_on(7)
    assert go_on(7, place=100.0, had=0.1, now=200.0) == 100.0
    # By who has been given a broken connection.
    assert go_on(7, place=100.0, had=0.1, now=210.0) == 100.0
    assert turn.went_on(8)
    assert go_on(8, place=300.0, had=0.1, now=400.0) == 100.0
    # What came in between was about something else.
    assert not turn.went_on(12)
    assert go_on(12, place=500.0, had=0.1, now=600.0) == 500.0


def test_until_it_has_had_a_long_turn_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONG_TURN", 0.25)
    behind = queues.WaitingQueue()
    with queues.going_on(behind, 1000.0):
        behind.append(object())
    turn = Turn()
    go_on = partial(turn.go_on, others=Experience())
    assert go_on(1, place=100.0, had=0.2, now=200.0) == 100.0
    assert not turn.is_over(2, 150.0, 0.04, behind)
    assert turn.is_over(2, 150.0, 0.06, behind)
    assert go_on(2, place=150.0, had=0.06, now=300.0) == 300.0
    assert not turn.is_over(3, 250.0, 0.2, behind)


class Served:
    """Threads that ask for a connection, one after the other, and the order in which they get it."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.order: list[str] = []
        self.threads: list[threading.Thread] = []

    def ask(self, name: str, asking: Callable[[], None]) -> None:
        """Have a thread of that *name* wait in the queue."""

        @closing_connections
        def run() -> None:
            asking()
            # Before it is closed, for the next to have it.
            self.order.append(name)

        waiting = self.pool.get_stats()["requests_waiting"]
        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: self.pool.get_stats()["requests_waiting"] > waiting, "it is in the queue")

    def by_now(self) -> list[str]:
        """Return the names in the order in which they were served, all of them."""
        connections["small"].close()
        for thread in self.threads:
            thread.join(10)
        return self.order


@pytest.fixture
def served(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Return who is to be served, while the only connection is in use."""
    # Nobody is to let go of it in between.
    monkeypatch.setattr(turns, "TURN", 60)
    query()
    return Served(pool)


def asked_by_turns(served: Served) -> list[str]:
    for name, asking in ("on", go_on), ("anew", query), ("on too", go_on), ("anew too", query):
        served.ask(name, asking)
    return served.by_now()


def test_who_comes_anew_and_who_goes_on_are_served_by_turns(served: Served, pool: ConnectionPool) -> None:
    assert asked_by_turns(served) == ["anew", "on", "anew too", "on too"]
    queue: Any = pool._waiting
    assert (queue._places, queue._first) == ({}, math.inf)


def test_where_all_want_much_there_is_one_line(served: Served, pool: ConnectionPool) -> None:
    queue: Any = pool._waiting
    for _ in range(100):
        queue.experience.note_held(60.0, "much")
    assert asked_by_turns(served) == ["on", "anew", "on too", "anew too"]


def test_whoever_is_known_to_want_much_stands_behind(served: Served, pool: ConnectionPool) -> None:
    queue: Any = pool._waiting
    queue.experience.note_held(60.0, "GET /much/0/")

    def much() -> None:
        serving.label = "GET /much/17/"
        query()

    for name, asking in ("much", much), ("little", query), ("little too", query):
        served.ask(name, asking)
    assert served.by_now() == ["little", "much", "little too"]


def test_those_who_go_on_are_served_by_the_age_of_their_bursts(served: Served) -> None:
    for place in 3.0, 1.0, 2.0:
        served.ask(str(place), partial(go_on, place))
    assert served.by_now() == ["1.0", "2.0", "3.0"]


def test_a_place_is_one_in_its_own_queue() -> None:
    mine, other = queues.WaitingQueue(), queues.WaitingQueue()
    with queues.going_on(mine, 1.0):
        assert (queues.place_in(mine), queues.place_in(other)) == (1.0, None)
    assert queues.place_in(mine) is None


def test_a_pool_that_has_no_lock_before_it_opens_gets_its_order() -> None:
    older = ConnectionPool("", open=False)
    # As before psycopg_pool 3.3.1.
    vars(older).pop("_lock", None)
    queues.watch(older)
    assert type(older._waiting) is queues.WaitingQueue


def test_what_a_pool_had_for_a_queue_before_has_nobody_in_it() -> None:
    pool = ConnectionPool("", open=False)
    waits: Any = WaitingClient()
    before = pool._waiting
    before.append(waits)
    queues.watch(pool)
    assert (list(before), list(pool._waiting)) == ([], [waits])
    queues.unwatch(pool)
    assert (type(pool._waiting), list(pool._waiting)) == (deque, [waits])


@pytest.fixture(params=["checkout", "connect"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have a checkout be no more than that, or all of Django's ``connect()``, as where somebody listens to it."""

    def listen(**kwargs: Any) -> None:
        pass

    if request.param == "connect":
        connection_created.connect(listen)
    yield
    connection_created.disconnect(listen)


@pytest.mark.usefixtures("short", "either_way")
def test_an_owner_that_has_let_go_comes_back_as_one_who_had_a_turn(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LONG_TURN", 60)
    in_between, again = threading.Event(), threading.Event()

    def twice() -> None:
        query()
        again.wait(10)
        query()

    def and_wait() -> None:
        with transaction.atomic("small"):
            query()
            in_between.wait(10)

    last = pool.getconn()
    served = Served(pool)
    served.ask("owner", twice)
    served.ask("first", and_wait)
    # After its first query, the owner lets the next one have it.
    pool.putconn(last)
    wait_until(lambda: not pool.get_stats()["requests_waiting"], "both have been served")
    again.set()
    wait_until(lambda: pool.get_stats()["requests_waiting"], "the owner is in the queue again")
    served.ask("second", query)
    in_between.set()
    assert served.by_now() == ["first", "second", "owner"]


@pytest.fixture
def let_go() -> Any:
    """Return the lease of an owner that had a turn, and has let go."""
    query()
    lease: Any = lease_of(connections["small"])
    assert lease.release_now()
    assert lease.place_of_next(lease.idle_since) == lease._checkout_asked_at
    return lease


@pytest.mark.usefixtures("short")
class TestItComesAnew:
    def test_when_it_was_about_something_else_meanwhile(self, let_go: Any) -> None:
        assert let_go.place_of_next(let_go.idle_since + turns.BREAK) is None

    def test_when_it_was_closed(self, let_go: Any) -> None:
        connections["small"].close()
        assert let_go.place_of_next(let_go.idle_since) is None

    def test_with_the_next_request(self, let_go: Any) -> None:
        # Without Django's own receivers, which close what has no CONN_MAX_AGE.
        left_open.request_started(environ={})
        try:
            assert let_go.place_of_next(let_go.idle_since) is None
        finally:
            left_open.request_finished()

    def test_when_what_asked_in_between_had_nothing(self, let_go: Any) -> None:
        # That has failed, and so somebody else's is the next checkout.
        query()
        assert not let_go.turn.went_on(let_go.checkouts)


def test_the_queue_is_the_pools_own_where_the_toolkit_is_not(pool: ConnectionPool) -> None:
    assert type(pool._waiting) is queues.WaitingQueue
    native.unwatch(pool)
    assert type(pool._waiting) is deque
    native.watch(pool)
    assert type(pool._waiting) is queues.WaitingQueue


# ##### Who computes #####


def compute(seconds: float) -> None:
    """Have the processor for so long, however many others want it."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


MUCH = 2 * turns.COMPUTED
LATER = turns.COMPUTING / 2


def test_a_thread_is_seen_to_compute_for_as_long_as_it_does() -> None:
    turn = Turn()
    turn.note(100.0, threading.get_ident())
    assert not turn.computes(100.0, 100.0 + turns.LOOK_AGAIN)
    compute(MUCH)
    # Of another pause than this one, nothing is known.
    assert not turn.computes(99.0, 100.0 + LATER)
    later = 100.0 + LATER
    assert turn.computes(100.0, later)
    # Whoever else asks meanwhile.
    assert turn.computes(100.0, later + turns.LOOK_AGAIN / 2)
    # Not since it was asked last.
    assert not turn.computes(100.0, later + turns.LOOK_AGAIN * 1.5)
    compute(MUCH)
    # Nor for so long that others must not wait for it.
    assert not turn.computes(100.0, 101.0)


def test_a_thread_that_has_ended_does_not_compute() -> None:
    turn = Turn()
    thread = threading.Thread(target=lambda: turn.note(100.0, threading.get_ident()))
    thread.start()
    thread.join()
    # It may be there for a moment still, having computed nothing more.
    assert not turn.computes(100.0, 100.0 + LATER)


@pytest.mark.parametrize(
    ("what", "value"),
    [("_is_gil_enabled", lambda: False), ("green.library", lambda: "gevent"), ("_clock_of", None)],
    ids=["no lock of the interpreter's", "greenlets", "no clock"],
)
def test_no_thread_is_seen_to_compute_where_that_tells_nothing(
    what: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"conn_hygiene.leases.turns.{what}", value)
    turn = Turn()
    turn.note(100.0, threading.get_ident())
    compute(MUCH)
    assert not turn.computes(100.0, 100.0 + LATER)


def test_a_thread_that_parks_anothers_lease_is_not_its_owner() -> None:
    turn = Turn()
    turn.note(100.0, threading.get_ident() + 1)
    compute(MUCH)
    assert not turn.computes(100.0, 100.0 + LATER)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """Have the reaper take note of what is parked, and end nothing."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001}
    monkeypatch.setattr(Reaper, "_end_what_is_due", Reaper._take_in)
    monkeypatch.setattr(turns, "TURN", 60)


@pytest.mark.usefixtures("unseen")
def test_an_owner_that_computes_keeps_what_others_wait_for(pool: ConnectionPool) -> None:
    cursor = connections["small"].cursor()
    lease: Any = lease_of(connections["small"])
    with somebody_waits(pool):
        cursor.close()
        compute(MUCH)
        now = lease.idle_since + LATER
        assert lease.end_if_parked(now) == now + turns.LOOK_AGAIN
        assert lease.end_if_due(now, lease.spare) == now + turns.LOOK_AGAIN
        assert lease.state == PARKED
        assert lease.end_if_parked(now + turns.LOOK_AGAIN * 1.5) is None
        assert lease.state == GIVEN_BACK


# ##### What a pool learns of those who wait #####


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ("GET /todo/12/orders/", "GET /todo/0/orders/"),
        ("task pack[0f8fad5b-d9cb-469f-a165-70867728950e]", "task pack[0]"),
        ("GET /0F8FAD5B-D9CB-469F-A165-70867728950E/", "GET /0/"),
        ("GET /" + "z" * 1000, "GET /" + "z" * (experience.LONGEST - len("GET /"))),
        ("GET /", "GET /"),
        (None, 7),
    ],
)
def test_a_kind_is_a_path_without_its_numbers_or_a_thread(request_: str | None, found: object) -> None:
    assert experience.kind(request_, 7) == found


def test_one_of_a_kind_goes_by_that() -> None:
    those = Experience()
    for _ in range(100):
        those.note_held(60.0, "much")
        those.note_held(0.0, "little")
    assert (those.wants_little("much"), those.wants_little("little")) == (False, True)
    # A few of them are none of the kind's.
    those.note_held(0.0, "much")
    those.note_held(60.0, "little")
    assert (those.wants_little("much"), those.wants_little("little")) == (False, True)


def test_one_of_a_kind_that_nobody_knows_goes_by_all() -> None:
    those = Experience()
    assert those.wants_little("new")
    for _ in range(100):
        those.note_held(60.0, "much")
    assert not those.wants_little("new")
    # As soon as some of them want little.
    for _ in range(20):
        those.note_held(60.0, "much")
        those.note_held(0.0, "little")
    assert those.wants_little("new")


def test_whoever_comes_back_has_not_wanted_little() -> None:
    those = Experience()
    for _ in range(100):
        those.note_held(0.0, "back")
        those.came_back("back")
    assert (those.wants_little("back"), those.wants_little("new")) == (False, False)


def test_not_more_kinds_are_known_than_there_is_room_for() -> None:
    those = Experience()
    for number in range(experience.MOST + 1):
        those.note_held(60.0, f"GET /{number}")
    # The first one is forgotten, and no other.
    assert list(those._kinds) == [f"GET /{number}" for number in range(1, experience.MOST + 1)]
    those.came_back("GET /0")
    assert "GET /0" not in those._kinds


def test_looks_in_vain_are_put_together_and_put_off() -> None:
    those = Experience()
    assert those.look_at(100.001) == 100.001
    for now in range(100):
        # However many it finds.
        for _ in range(10):
            those.looked_in_vain(now, 0.001)
        those.ended_one()
    assert those.look_at(100.001) == 100.001
    for now in range(100):
        those.looked_in_vain(now, 0.001)
    assert those.look_at(100.001) == those.look_at(100.04) == pytest.approx(100.0 + MAX_LATENESS)
    for _ in range(5):
        those.ended_one()
    assert those.look_at(100.001) == 100.001


@pytest.mark.usefixtures("unseen")
def test_a_pool_learns_from_those_who_have_its_connections(pool: ConnectionPool) -> None:
    those: Any = pool._waiting.experience
    cursor = connections["small"].cursor()
    lease: Any = lease_of(connections["small"])
    with somebody_waits(pool):
        assert those._delay == 0.0
        lease.end_if_parked(lease.idle_since)
        assert those._delay == 0.001
        cursor.close()
        lease.look_at = math.inf
        assert lease._haste(lease.idle_since, 0.001) == lease.idle_since + 0.001
        those._delay = 8.0
        assert lease._haste(lease.idle_since, 0.001) == (lease.idle_since + 0.001) // 8 * 8 + 8
        assert lease.end_if_parked(lease.idle_since + 1) is None
        assert (those._delay, those._short) == (4.0, 1.0)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("comes_back", "share"), [(False, 31 / 32), (True, 30 / 32)])
def test_and_from_how_long_they_do(
    *, comes_back: bool, share: float, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    those: Any = pool._waiting.experience
    cursor = connections["small"].cursor()
    monkeypatch.setattr(experience, "SHORT", 0)
    with somebody_waits(pool):
        cursor.close()
        assert state() == GIVEN_BACK
    if comes_back:
        # As where somebody else has it.
        lease: Any = lease_of(connections["small"])
        for _ in range(2):
            assert lease.place_of_next(lease.idle_since) == lease._checkout_asked_at
    assert those._short == share
    # The thread's, since it serves no request.
    assert those._kinds == {threading.get_ident(): 0.0}


# ##### Pools that may grow, and that keep nothing #####


@pytest.fixture
def null_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[NullConnectionPool]:
    """Return a pool that opens two connections at most, and closes what nobody waits for."""
    wrapper: Any = connections["small"]
    parameters = {**wrapper.get_connection_params(), "autocommit": True}
    with NullConnectionPool(kwargs=parameters, configure=wrapper._configure_connection, max_size=2, timeout=10) as pool:
        monkeypatch.setitem(DatabaseWrapper._connection_pools, "small", pool)
        yield pool
        connections["small"].close()


@pytest.mark.usefixtures("short")
def test_a_pool_that_keeps_nothing_serves_who_waits(null_pool: NullConnectionPool) -> None:
    query()
    cursor = connections["small"].cursor()
    used = null_pool.getconn()
    with somebody_waits(null_pool):
        cursor.close()
        assert state() == GIVEN_BACK
    null_pool.putconn(used)


@pytest.mark.usefixtures("short", "null_pool")
def test_who_can_have_a_new_connection_cuts_nobody_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONG_TURN", 0)

    @closing_connections
    def query_twice() -> None:
        # The second time by a wrapper that asks around.
        query()
        connections["small"].close()
        query()

    query()
    thread = threading.Thread(target=query_twice)
    thread.start()
    thread.join()
    assert state() == PARKED


@pytest.mark.parametrize("after", [60, None])
def test_a_pool_that_keeps_nothing_serves_who_comes(after: float | None, settings: Any, monkeypatch: Any) -> None:
    """Whose connections may sit idle for long, or for ever, while nobody waits."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001, "UNPOOLED_RELEASE_AFTER": after}
    wrapper: Any = connections["small"]
    parameters = {**wrapper.get_connection_params(), "autocommit": True}
    with NullConnectionPool(kwargs=parameters, configure=wrapper._configure_connection, max_size=1, timeout=10) as pool:
        monkeypatch.setitem(DatabaseWrapper._connection_pools, "small", pool)
        query()
        assert state() == PARKED
        let_the_reaper_look()
        assert state() == PARKED
        thread = threading.Thread(target=closing_connections(query))
        thread.start()
        thread.join()
        assert state() == GIVEN_BACK
        connections["small"].close()
