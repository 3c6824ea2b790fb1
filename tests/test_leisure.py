"""When the reaper comes, and what happens without it."""

from __future__ import annotations

import gc
import math
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections, transaction

import conn_hygiene
from conn_hygiene import closing_connections, hold_connection, release_between_queries
from conn_hygiene.leases.backoff import MAX_DELAY
from conn_hygiene.leases.description import Description, describe
from conn_hygiene.leases.ended import call_in_handle, terminate
from conn_hygiene.leases.states import HELD, PARKED
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.reaper import reaper
from conn_hygiene.reaper.reaper import Reaper
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from psycopg_pool import ConnectionPool

    from conn_hygiene.leases.lease import Lease

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small"])


def query(alias: str = "small", sql: str = "SELECT 1") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def lease(alias: str = "small") -> Lease:
    found = lease_of(connections[alias])
    assert found is not None
    return found


@pytest.fixture
def no_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the reaper take note of what is parked, and end nothing."""
    monkeypatch.setattr(Reaper, "_end_what_is_due", Reaper._take_in)
    query()
    let_the_reaper_look()
    connections["small"].close()


@pytest.fixture
def soon(pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whoever waits for a connection in vain fail soon."""
    # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
    vars(connections["small"]).pop("connect", None)
    query()
    connections["small"].close()
    monkeypatch.setattr(pool_of("small"), "timeout", 2)


@contextmanager
def owners(*works: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Have a thread in each of *works*, inside a scope, until the block ends."""
    ready, end = threading.Barrier(len(works) + 1), threading.Event()

    @closing_connections
    def own(work: Callable[[], AbstractContextManager[Any]]) -> None:
        with release_between_queries(), work():
            ready.wait(10)
            end.wait(30)

    threads = [threading.Thread(target=own, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    ready.wait(10)
    wait_until(lambda: all(info.idle_for > 0.01 for info in conn_hygiene.snapshot()), "all are idle")
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


@contextmanager
def idle() -> Iterator[None]:
    query()
    yield


@contextmanager
def in_transaction() -> Iterator[None]:
    with transaction.atomic("small"):
        query()
        yield


@contextmanager
def pinned() -> Iterator[None]:
    query(sql="LISTEN leisure")
    yield


@contextmanager
def held() -> Iterator[None]:
    with hold_connection(using="small"):
        query()
        yield


@pytest.mark.usefixtures("no_reaper", "soon")
def test_who_finds_the_pool_empty_ends_what_is_due() -> None:
    with owners(idle, idle, idle):
        query()
        assert sum(info.alias == "small" for info in conn_hygiene.snapshot()) <= 3


@pytest.mark.usefixtures("no_reaper", "soon")
def test_and_takes_nothing_that_its_owner_needs() -> None:
    with owners(in_transaction, pinned, held), pytest.raises(OperationalError, match="couldn't get a connection"):
        query()


@pytest.mark.usefixtures("no_reaper", "soon")
def test_nor_anything_of_another_pool() -> None:
    @contextmanager
    def idle_elsewhere() -> Iterator[None]:
        query("default")
        yield

    with owners(in_transaction, pinned, held, idle_elsewhere):
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            query()
        assert holds("default")


@pytest.mark.usefixtures("no_reaper", "soon")
def test_what_is_parked_for_less_than_its_grace_stays(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    with owners(idle, idle, idle), pytest.raises(OperationalError, match="couldn't get a connection"):
        query()


@pytest.mark.usefixtures("soon")
def test_a_first_query_ever_gets_what_the_reaper_ends() -> None:
    """It has no lease that could ask."""
    asked: list[str] = []

    @closing_connections
    def ask() -> None:
        query()
        asked.append("answered")

    with owners(idle, idle, idle):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
    assert asked == ["answered"]


def test_nobody_waits_and_it_goes_back_all_the_same() -> None:
    with release_between_queries():
        query()
        wait_until_released("small")


@pytest.mark.usefixtures("no_reaper")
def test_a_burst_is_left_alone_for_longer_and_longer() -> None:
    looks: list[float] = []
    with release_between_queries():
        for _ in range(8):
            query()
            again = lease().end_if_parked(lease().idle_since)
            assert again is not None
            looks.append(again - lease().idle_since)
        assert looks == sorted(looks)
        assert looks[0] < looks[-1] <= MAX_DELAY * 1.01
        # And no longer than that, once it is over.
        assert lease().end_if_parked(lease().idle_since + MAX_DELAY) is None
        assert not holds("small")


@pytest.mark.usefixtures("no_reaper")
def test_what_is_taken_back_from_the_reaper_stays() -> None:
    with release_between_queries():
        query()
        assert lease().state == PARKED
        with connections["small"].cursor() as cursor:
            lease().end_if_parked(lease().idle_since + 60)
            assert holds("small")
            cursor.execute("SELECT 1")


@pytest.mark.usefixtures("no_reaper")
def test_what_was_begun_on_a_handle_that_was_read_before_stays() -> None:
    with release_between_queries():
        connections["small"].ensure_connection()
        handle: Any = connections["small"].connection
        query()
        assert lease().state == PARKED
        handle.execute("BEGIN")
        lease().end_if_parked(lease().idle_since + 60)
        assert holds("small")
        handle.execute("ROLLBACK")
    connections["small"].close()


@pytest.fixture
def sleeping(settings: Any) -> Any:
    """Have the reaper sleep until somebody rings, and return it."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    query()
    wait_until_released("small")
    # It may know of limits still that are over: the first connection has asked the server what it has to.
    let_the_reaper_look()
    keeper: Any = reaper.running
    wait_until(lambda: keeper._wake_at == math.inf, "the reaper sleeps until it is called")
    return keeper


@pytest.mark.usefixtures("sleeping")
def test_a_reaper_that_sleeps_is_woken() -> None:
    query()
    wait_until_released("small")


@pytest.mark.parametrize(("rested_at", "sleeps"), [(-math.inf, 2), (math.inf, 3)], ids=["seldom", "often"])
def test_it_lingers_only_where_owners_come_often(
    sleeping: Any, monkeypatch: pytest.MonkeyPatch, rested_at: float, sleeps: int
) -> None:
    """Else it wakes when it is called and when what was parked is due, and not once more to find nothing."""
    found: list[None] = []
    real = Reaper._sleep

    def sleep(self: Reaper) -> None:
        found.append(None)
        real(self)

    monkeypatch.setattr(Reaper, "_sleep", sleep)
    sleeping._rested_at = rested_at
    query()
    wait_until_released("small")
    wait_until(lambda: sleeping._wake_at == math.inf, "the reaper sleeps until it is called")
    assert len(found) == sleeps


def test_one_that_ends_wakes_its_successor(sleeping: Any) -> None:
    """It has taken a ring that was not for it."""
    before = sleeping._thread
    sleeping._thread = threading.Thread()
    sleeping._bell.put(None)
    before.join(10)
    assert sleeping._bell.get(timeout=10) is None
    sleeping._thread = None
    query()
    wait_until_released("small")


def test_what_is_parked_as_the_reaper_goes_to_sleep_is_seen(sleeping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still awake for its owner, who does not ring, and has already looked at what there was."""
    on_its_way, parked = threading.Event(), threading.Event()
    real = Reaper._sleep

    def sleep(self: Reaper) -> None:
        if not on_its_way.is_set():
            on_its_way.set()
            parked.wait(10)
        real(self)

    monkeypatch.setattr(Reaper, "_sleep", sleep)
    with connections["small"].cursor() as cursor:
        cursor.execute("SELECT 1")
        sleeping._bell.put(None)
        assert on_its_way.wait(10)
    parked.set()
    wait_until_released("small")


class Limit:
    """What a server's time is limited by, and nothing to hang up on."""

    def __init__(self) -> None:
        self.is_over = False
        self.expired = threading.Event()

    def expire(self) -> None:
        self.is_over = True
        self.expired.set()


def test_a_reaper_that_sleeps_past_a_limit_is_woken_for_it(sleeping: Any) -> None:
    limit = Limit()
    sleeping.ring_at(time.monotonic() + 0.05, limit)
    assert limit.expired.wait(10)


def test_one_that_wakes_up_before_is_not(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "never", "IDLE_IN_TRANSACTION_AFTER": 8, "HELD_TOO_LONG_AFTER": None}
    query()
    let_the_reaper_look()
    keeper: Any = reaper.running
    wait_until(lambda: 1 < keeper._wake_at - time.monotonic() < 2, "the reaper sleeps until it is to watch")
    limit = Limit()
    keeper.ring_at(time.monotonic() + 60, limit)
    time.sleep(0.05)
    assert [each for _, each in keeper._new_limits] == [limit]
    limit.is_over = True
    let_the_reaper_look()
    assert (list(keeper._new_limits), keeper._limits) == ([], [])


def test_a_limit_that_comes_as_the_reaper_goes_to_sleep_is_seen(sleeping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit()
    real = Reaper._sleep

    def sleep(self: Reaper) -> None:
        if not self._new_limits and not limit.is_over:
            # It is awake still, so that nobody rings.
            self.ring_at(time.monotonic() + 0.01, limit)  # type: ignore[arg-type]
        real(self)

    monkeypatch.setattr(Reaper, "_sleep", sleep)
    sleeping._bell.put(None)
    assert limit.expired.wait(10)


def test_a_cursor_that_was_collected_in_a_cycle_keeps_nothing() -> None:
    with release_between_queries():
        cycle: list[Any] = [connections["small"].cursor()]
        cycle.append(cycle)
        let_the_reaper_look()
        assert holds("small")
        del cycle
        gc.collect()
        wait_until_released("small")


def test_a_cursor_of_an_earlier_checkout_that_is_collected_changes_nothing() -> None:
    with release_between_queries():
        late = connections["small"].cursor()
        connections["small"].close()
        with connections["small"].cursor() as cursor:
            del late
            gc.collect()
            let_the_reaper_look()
            assert holds("small")
            cursor.execute("SELECT 1")
        wait_until_released("small")


def test_nor_does_it_make_this_one_look_used(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    with release_between_queries():
        late = connections["small"].cursor()
        connections["small"].close()
        query()
        used = lease().idle_since
        del late
        gc.collect()
        let_the_reaper_look()
        assert lease().idle_since == used
    connections["small"].close()


def test_a_cursor_that_is_collected_leaves_a_handle_alone_that_was_just_read() -> None:
    with release_between_queries():
        cursors = [connections["small"].cursor()]
        handle: Any = connections["small"].connection
        cursors.clear()
        gc.collect()
        let_the_reaper_look()
        assert lease().state == HELD
        assert handle.execute("SELECT 1").fetchone() == (1,)
        query()
        wait_until_released("small")


def test_a_cursor_that_was_opened_in_a_transaction_outlives_it() -> None:
    with release_between_queries(), ExitStack() as stack:
        with transaction.atomic("small"):
            query()
            cursor = stack.enter_context(connections["small"].cursor())
            query()
        let_the_reaper_look()
        cursor.execute("SELECT 1")
        assert holds("small")
        cursor.close()
        wait_until_released("small")


def found() -> Description:
    description = describe(lease(), time.monotonic())
    assert description is not None
    return description


def test_a_transaction_is_ended_when_nobody_has_read_its_handle_for_a_while() -> None:
    with pytest.raises(OperationalError, match="It sat idle"), transaction.atomic("small"):  # noqa: PT012
        query()
        handle = connections["small"].connection
        assert not terminate(lease(), found(), "It sat idle.")
        assert connections["small"].connection is handle
        assert not terminate(lease(), found(), "It sat idle.")
        call_in_handle(lease())
        before = found()
        query()
        call_in_handle(lease())
        assert not terminate(lease(), before, "It sat idle.")
        assert terminate(lease(), found(), "It sat idle.")
        query()
    connections["small"].close()


def test_the_transaction_of_another_owner_is_not_ended_for_one_that_sat_idle() -> None:
    """Its connection may be the one that was looked at before, and has changed hands since."""
    theirs: list[Description] = []

    @contextmanager
    def in_transaction_of_its_own() -> Iterator[None]:
        with transaction.atomic("small"):
            query()
            theirs.append(found())
            yield
            query()

    with owners(in_transaction_of_its_own), transaction.atomic("small"):
        query()
        ended = [terminate(lease(), theirs[0], "It sat idle.") for _ in range(3)]
        query()
    connections["small"].close()
    assert ended == [False, False, False]


def test_the_reaper_sleeps_while_nothing_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    real = Reaper._sleep

    def sleep(self: Reaper) -> None:
        sleeps.append(self._wake_at)
        real(self)

    monkeypatch.setattr(Reaper, "_sleep", sleep)
    with release_between_queries():
        query()
        wait_until_released("small")
    wait_until(lambda: conn_hygiene.snapshot() == [], "nothing is held")
    before = len(sleeps)
    threading.Event().wait(0.5)
    # It lingers for a moment. If it did not sleep then, there would be thousands.
    assert len(sleeps) - before < 20
