"""What a lock guards is touched by those only who hold it.

A lock that is left out is hardly ever noticed by its consequences. So these ask at each touch whether it is held.
"""

from __future__ import annotations

import threading
from collections import UserList
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pytest
from django.db import connections, transaction

import conn_hygiene
from conn_hygiene import conf, hold_connection, locks, release_between_queries
from conn_hygiene.leases import attaching, wrapper
from conn_hygiene.leases.claim import Claim
from conn_hygiene.leases.invariants import WRITERS, Writer
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.usage import Timing
from conn_hygiene.locks import Rank, RankedLock
from conn_hygiene.reaper import reaper
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.reports import counters
from tests.processes import run
from tests.test_lease import query
from tests.waiting import holds, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"])

GUARDED = {name for name, writer in WRITERS.items() if writer is Writer.LOCK}


def test_every_attribute_of_a_lease_says_who_writes_it() -> None:
    assert {*Claim.__slots__} - {"__weakref__"} == WRITERS.keys()


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Return a set that stays empty as long as every thread writes to leases under their locks; see to it, too."""
    found: set[str] = set()

    def write(lease: Lease, name: str, value: Any) -> None:
        # Nobody else knows of it before it has them all.
        if name in GUARDED and hasattr(lease, name) and not lease._lock._is_owned():
            found.add(name)
        object.__setattr__(lease, name, value)

    connections.close_all()
    monkeypatch.setattr(Lease, "__setattr__", write, raising=False)
    yield found
    connections.close_all()
    assert found == set()


def release(alias: str) -> None:
    with release_between_queries():
        for _ in range(3):
            query(alias)
            query(alias)
            wait_until_released(alias)
            assert connections[alias].connection is not None
            query(alias)


def take_back(alias: str) -> None:
    with release_between_queries():
        query(alias)
        query(alias)


def begin(alias: str) -> None:
    with release_between_queries():
        with transaction.atomic(alias):
            query(alias)
        transaction.set_autocommit(False, using=alias)
        query(alias)
        transaction.commit(using=alias)
        wait_until_released(alias)
        query(alias)
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)


def pin(alias: str) -> None:
    with release_between_queries():
        with hold_connection():
            query(alias, "SET app.tenant = 'acme'")
        query(alias, "LISTEN news")
        conn_hygiene.reset_connections(alias)


def end_by_hand(alias: str) -> None:
    query(alias)
    conn_hygiene.release_connections(alias)
    query(alias)
    connections[alias].close()
    connections[alias].close()


def leave(alias: str) -> None:
    thread = threading.Thread(target=query, args=[alias])
    thread.start()
    thread.join()
    wait_until_released(alias)


def lose_a_cursor(alias: str) -> None:
    with release_between_queries():
        connections[alias].cursor().execute("SELECT 1")
        wait_until_released(alias)


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.parametrize("grace", [0, 0.02])
@pytest.mark.parametrize("use", [release, take_back, begin, pin, end_by_hand, leave, lose_a_cursor])
@pytest.mark.usefixtures("unguarded")
def test_a_lease_is_written_under_its_lock(use: Callable[[str], None], alias: str, grace: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    use(alias)


# ##### What is listed and counted #####


class Guarded:
    """Mixed into a container: notes what it is asked for while nobody has its lock."""

    is_locked: Callable[[], bool]
    unguarded: set[str]

    def look(self, what: str) -> None:
        if not self.is_locked():
            self.unguarded.add(what)


class GuardedSet(Guarded, set[Any]):
    def add(self, element: Any) -> None:
        self.look("add")
        super().add(element)

    def discard(self, element: Any) -> None:
        self.look("discard")
        super().discard(element)

    def __iter__(self) -> Iterator[Any]:
        self.look("iterate")
        return super().__iter__()


class GuardedWeakSet(Guarded, WeakSet[Any]):
    def add(self, item: Any) -> None:
        self.look("add")
        super().add(item)

    def __iter__(self) -> Iterator[Any]:
        self.look("iterate")
        return super().__iter__()


class GuardedList(Guarded, UserList[int]):
    def __getitem__(self, index: Any) -> Any:
        self.look("get")
        return super().__getitem__(index)


def guarded(container: Any, is_locked: Callable[[], bool]) -> Any:
    container.is_locked, container.unguarded = is_locked, set()
    return container


def running() -> Reaper:
    assert reaper.running is not None
    return reaper.running


def test_the_list_of_leases_is_touched_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    connections.close_all()
    leases = guarded(GuardedSet(), running()._registry_lock._is_owned)
    monkeypatch.setattr(running(), "_leases", leases)
    query()
    assert holds("default")
    connections.close_all()
    assert not holds("default")
    assert leases.unguarded == set()


def test_numbers_are_touched_under_their_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = counters.of("default")
    waited = guarded(GuardedList(tally._waited), tally._lock._is_owned)
    monkeypatch.setattr(tally, "_waited", waited)
    query()
    connections.close_all()
    assert conn_hygiene.stats().checkouts > 0
    assert waited.unguarded == set()


def test_the_list_of_wrappers_is_touched_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    known = guarded(GuardedWeakSet(), attaching._known_lock._is_owned)
    for each in attaching.known():
        WeakSet.add(known, each)
    monkeypatch.setattr(attaching, "_known", known)
    another = connections["default"].copy()
    another.ensure_connection()
    another.close()
    assert another in attaching.known()
    assert known.unguarded == set()


def test_a_requests_times_are_added_up_under_their_lock(parked: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[bool] = []
    real = Timing._catch_up

    def catch_up(self: Timing, now: float) -> None:
        locked.append(self._lock._is_owned())
        real(self, now)

    monkeypatch.setattr(Timing, "_catch_up", catch_up)
    timing = Timing()
    timing.change(parked, held=1, used=1)
    timing.read()
    assert locked == [True, True]


# ##### Beginnings #####


class Gate:
    """A lock that tells when somebody comes to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.come = threading.Event()

    def __enter__(self) -> None:
        self.come.set()
        self.lock.acquire()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lock.release()


def test_who_comes_second_starts_no_other_reaper() -> None:
    keeper, gate = Reaper(counters.of), Gate()
    keeper._start_lock = gate
    second = threading.Thread(target=keeper.ensure_running)
    with gate.lock:
        second.start()
        wait_until(lambda: gate.come.is_set() or not second.is_alive(), "the second has come")
        waits = second.is_alive()
        # What the first does before it lets the second in.
        keeper._thread = threading.main_thread()
    second.join()
    assert waits
    assert keeper._thread is threading.main_thread()


def test_installing_is_done_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bool] = []
    real = conf.apply

    def apply(settings: conf.Settings) -> None:
        alone.append(reaper.installing._is_owned())
        real(settings)

    monkeypatch.setattr(conf, "apply", apply)
    conn_hygiene.install()
    assert alone == [True]


# ##### Who must not wait #####


@pytest.fixture
def parked(settings: Any) -> Iterator[Lease]:
    """Return this thread's lease, which is parked, and which the reaper leaves alone."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60}
    query()
    lease = wrapper.lease_of(connections["default"])
    assert lease is not None
    yield lease
    connections.close_all()


class LastMoment:
    """A lock at which something happens just before it is taken."""

    def __init__(self, lock: Any, happen: Callable[[], None]) -> None:
        self.lock, self.happen = lock, happen

    def acquire(self, blocking: bool = True) -> bool:
        self.happen()
        return bool(self.lock.acquire(blocking=blocking))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)


def test_what_its_owner_takes_back_at_the_last_moment_stays(parked: Lease) -> None:
    lock: Any = parked._lock

    def take_back() -> None:
        parked._lock = lock
        parked.take()

    parked._lock = LastMoment(lock, take_back)
    parked.end_if_due(parked.idle_since + 60, parked.spare)
    assert parked._lock is lock
    assert parked.holds_connection()


def test_who_needs_a_connection_waits_for_no_lease(parked: Lease) -> None:
    due = parked.idle_since + 60
    other = threading.Thread(target=parked.end_if_due, args=[due, parked.spare])
    with parked._lock:
        other.start()
        other.join(5)
        waits = other.is_alive()
    other.join()
    assert not waits
    assert parked.holds_connection()


def test_a_lease_that_its_thread_is_busy_with_is_not_ended_by_it(parked: Lease) -> None:
    due = parked.idle_since + 60
    with parked._lock:
        assert parked.end_if_due(due, parked.spare) is None
        assert parked.holds_connection()
    assert parked.end_if_due(due, parked.spare) is None
    assert not parked.holds_connection()


# ##### What is asserted #####


def ranked(rank: Rank, **options: Any) -> RankedLock:
    return RankedLock(rank, **options)


def test_locks_are_taken_in_their_order() -> None:
    with ranked(Rank.INSTALLING), ranked(Rank.LEASE), ranked(Rank.REGISTRY), ranked(Rank.LEAF):
        pass


@pytest.mark.parametrize("inner", [Rank.START, Rank.LEASE])
def test_a_lock_that_is_taken_out_of_order_is_told(inner: Rank) -> None:
    outer = ranked(Rank.LEASE)
    with outer, pytest.raises(AssertionError, match=f"{inner.name} is taken by a thread that has LEASE"):
        ranked(inner).acquire()
    assert not outer.locked()


def test_who_does_not_wait_may_take_any() -> None:
    with ranked(Rank.LEASE):
        another = ranked(Rank.LEASE)
        assert another.acquire(blocking=False)
        another.release()


def test_a_lock_is_checked_when_it_is_let_go_for_good() -> None:
    checks: list[bool] = []
    locked: list[RankedLock] = []
    lock = ranked(Rank.LEASE, on_release=lambda: checks.append(locked[0]._is_owned()))
    locked.append(lock)
    with lock:
        with lock:
            pass
        assert checks == []
    assert checks == [True]
    assert not lock.locked()


def test_a_lock_of_another_thread_is_locked_and_not_owned() -> None:
    lock = ranked(Rank.LEAF)
    with lock:
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.extend([lock.locked(), lock._is_owned()]))
        thread.start()
        thread.join()
    assert seen == [True, False]


def test_what_is_not_ours_is_not_called_under_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DEBUG", True)
    locks.assert_none_held()
    with ranked(Rank.LEAF), pytest.raises(AssertionError, match="what is not ours is called under LEAF"):
        locks.assert_none_held()


DEBUG = """
import types
from conn_hygiene import locks
from conn_hygiene.leases import invariants
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.states import CLOSED, HELD, PARKED
from django.db.backends.postgresql.base import DatabaseWrapper

keeper = types.SimpleNamespace(tally_of=lambda alias: None)
lease = Lease(DatabaseWrapper({}, "default"), keeper, None)
assert isinstance(lease._lock, locks.RankedLock)
lease.last_statement = ("SELECT 1",)

def told(act):
    try:
        act()
    except AssertionError as error:
        print(error)

def write():
    lease.state = HELD

def skip():
    with lease._lock:
        lease.state = PARKED

def forget():
    with lease._lock:
        lease.state = HELD

told(write)
told(skip)
told(forget)
"""


def test_a_lease_asserts_who_writes_it_and_what_holds_when_nobody_is_inside() -> None:
    process = run("-c", DEBUG, CONN_HYGIENE_DEBUG="1")
    assert process.stdout.splitlines() == [
        "state is written without the lease's lock",
        "PARKED follows CLOSED",
        "HELD without a connection",
    ], process.stderr
