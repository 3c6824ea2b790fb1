"""Dozens of threads on a pool of three, doing everything at once.

Three things are proved. No statement runs on a session that another thread holds: each thread marks the session while
it is using it, in the session itself inside a transaction or under a pin, and in a table of owners in this process
otherwise. No committed row is lost, and no rolled-back row is there. In the end no connection is missing.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DataError, connections, transaction

import conn_hygiene
from tests.testapp.models import Item
from tests.waiting import wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALIAS = "small"
THREADS = 32
SECONDS = 1.5


class Died(BaseException):
    """Ends a thread where it stands, as nothing in it expects."""


class Ledger:
    """What the threads did, and who is using which session. Guarded by its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users: dict[int, int] = {}
        self.committed: set[int] = set()
        self.undone: set[int] = set()
        self.numbers = iter(range(1, 10_000_000))
        self.done: dict[str, int] = {}
        self.untried = list(ACTS)

    def choose(self) -> Callable[[Ledger], None]:
        """Return what a thread does next: each thing once, however slow the machine, and then by chance."""
        with self.lock:
            return self.untried.pop() if self.untried else random.choices(list(ACTS), list(ACTS.values()))[0]

    @contextmanager
    def using(self, pid: int) -> Iterator[None]:
        """Fail if another thread uses the session of *pid* during the block."""
        me = threading.get_ident()
        with self.lock:
            assert self.users.setdefault(pid, me) == me, "two threads use one session"
        try:
            yield
        finally:
            with self.lock:
                assert self.users.pop(pid) == me, "two threads use one session"

    def number(self) -> int:
        with self.lock:
            return next(self.numbers)

    def count(self, name: str) -> None:
        with self.lock:
            self.done[name] = self.done.get(name, 0) + 1


def owner_of_session(cursor: Any) -> tuple[int, str]:
    cursor.execute("SELECT pg_backend_pid(), coalesce(current_setting('app.owner', true), ''), pg_sleep(0.0002)")
    pid, owner, _ = cursor.fetchone()
    return pid, owner


def query(ledger: Ledger) -> None:
    with connections[ALIAS].cursor() as cursor:
        pid = cursor.connection.pgconn.backend_pid
        with ledger.using(pid):
            # Nobody's mark is left on a session that comes from the pool.
            assert owner_of_session(cursor) in {(pid, ""), (pid, str(threading.get_ident()))}


def orm(ledger: Ledger) -> None:
    Item.objects.using(ALIAS).filter(value__gt=10).exists()


def commit(ledger: Ledger) -> None:
    number = ledger.number()
    with transaction.atomic(using=ALIAS):
        mark_transaction(ledger, number)
    with ledger.lock:
        ledger.committed.add(number)


def roll_back(ledger: Ledger) -> None:
    number = ledger.number()
    with ledger.lock:
        ledger.undone.add(number)
    with suppress(ZeroDivisionError), transaction.atomic(using=ALIAS):
        mark_transaction(ledger, number)
        raise ZeroDivisionError


def broken_transaction(ledger: Ledger) -> None:
    number = ledger.number()
    with ledger.lock:
        ledger.undone.add(number)
    with suppress(DataError), transaction.atomic(using=ALIAS):
        mark_transaction(ledger, number)
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT 1/0")


def mark_transaction(ledger: Ledger, number: int) -> None:
    me = str(threading.get_ident())
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT set_config('app.owner', %s, true)", [me])
    Item.objects.using(ALIAS).create(pk=number, name="stress", value=number)
    with connections[ALIAS].cursor() as cursor:
        assert owner_of_session(cursor)[1] == me


def pin(ledger: Ledger) -> None:
    me = str(threading.get_ident())
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("LISTEN stress")
        cursor.execute("SET app.owner = %s", [me])
        pid, _ = owner_of_session(cursor)
    with connections[ALIAS].cursor() as cursor:
        assert owner_of_session(cursor) == (pid, me), "a pinned session was exchanged"
    connections[ALIAS].close()


def follow(ledger: Ledger) -> None:
    me = str(threading.get_ident())
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SET app.owner = %s", [me])
    for _ in range(3):
        with connections[ALIAS].cursor() as cursor:
            assert owner_of_session(cursor)[1] == me, "what was set has not followed"
    connections[ALIAS].close()


def hold(ledger: Ledger) -> None:
    with conn_hygiene.hold_connection():
        with connections[ALIAS].cursor() as cursor:
            pid, _ = owner_of_session(cursor)
        time.sleep(0.002)
        with connections[ALIAS].cursor() as cursor:
            assert owner_of_session(cursor)[0] == pid, "a held session was exchanged"


def raw_handle(ledger: Ledger) -> None:
    connections[ALIAS].ensure_connection()
    handle: Any = connections[ALIAS].connection
    with ledger.using(handle.pgconn.backend_pid):
        handle.execute("SELECT pg_sleep(0.0002)")
        handle.execute("SELECT pg_sleep(0.0002)")
    # Closing a cursor is what ends the use of a handle.
    query(ledger)


def iterate(ledger: Ledger) -> None:
    rows = Item.objects.using(ALIAS).order_by("pk").iterator(chunk_size=2)
    next(rows, None)
    handle: Any = connections[ALIAS].connection
    with ledger.using(handle.pgconn.backend_pid):
        for _ in range(random.randrange(5)):
            next(rows, None)
    if random.random() < 0.5:
        rows.close()


def lose_cursor(ledger: Ledger) -> None:
    cursor = connections[ALIAS].cursor()
    cursor.execute("SELECT 1")
    cycle: list[Any] = [cursor]
    cycle.append(cycle)


def fail(ledger: Ledger) -> None:
    with pytest.raises(DataError), connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT 1/0")


def release(ledger: Ledger) -> None:
    conn_hygiene.release_connections()


def collect(ledger: Ledger) -> None:
    gc.collect(0)


def die(ledger: Ledger) -> None:
    query(ledger)
    raise Died


def die_in_transaction(ledger: Ledger) -> None:
    number = ledger.number()
    with ledger.lock:
        ledger.undone.add(number)
    transaction.set_autocommit(False, using=ALIAS)
    mark_transaction(ledger, number)
    raise Died


ACTS: dict[Callable[[Ledger], None], int] = {
    query: 30,
    orm: 20,
    commit: 10,
    roll_back: 5,
    broken_transaction: 3,
    pin: 3,
    follow: 3,
    hold: 3,
    raw_handle: 5,
    iterate: 5,
    lose_cursor: 3,
    fail: 3,
    release: 3,
    collect: 1,
    die: 2,
    die_in_transaction: 2,
}


def live(ledger: Ledger, until: float, failures: list[BaseException]) -> None:
    with conn_hygiene.release_between_queries():
        while (time.monotonic() < until or ledger.untried) and not failures:
            act = ledger.choose()
            try:
                act(ledger)
            except Died:
                ledger.count(act.__name__)
                return
            except BaseException as exc:  # noqa: BLE001 - whatever it is, the test has failed
                failures.append(exc)
                return
            ledger.count(act.__name__)


def keep_alive(ledger: Ledger, until: float, failures: list[BaseException]) -> None:
    """Run one thread after the other, since they die."""
    while (time.monotonic() < until or ledger.untried) and not failures:
        thread = threading.Thread(target=live, args=(ledger, until, failures))
        thread.start()
        thread.join()


@pytest.fixture
def small_pool(transactional_db: None) -> Iterator[Any]:
    """The pool that the threads share: a new one, closed at the end, since Django closes none of a mirror's."""
    connections[ALIAS].close()
    connections[ALIAS].close_pool()
    pool = connections[ALIAS].pool
    yield pool
    connections[ALIAS].close()
    connections[ALIAS].close_pool()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True, databases=[ALIAS, "default"])
@pytest.mark.parametrize("release_after", [0, 0.0005, 0.001, 0.005])
def test_many_threads_on_few_connections(release_after: float, settings: Any, small_pool: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}
    Item.objects.using(ALIAS).bulk_create(Item(pk=-n, name="stress", value=n) for n in range(1, 20))
    connections.close_all()
    ledger = Ledger()
    failures: list[BaseException] = []
    until = time.monotonic() + SECONDS
    keepers = [threading.Thread(target=keep_alive, args=(ledger, until, failures)) for _ in range(THREADS)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join()
    if failures:
        raise failures[0]

    assert set(ledger.done) == {act.__name__ for act in ACTS}, "something was never tried"
    there = set(Item.objects.using(ALIAS).filter(pk__gt=0).values_list("pk", flat=True))
    assert ledger.committed <= there, "a committed row is lost"
    assert not ledger.undone & there, "a rolled-back row is there"
    connections.close_all()
    gc.collect()
    deadline = time.monotonic() + 10
    while conn_hygiene.snapshot():
        assert time.monotonic() < deadline, conn_hygiene.snapshot()
        time.sleep(0.01)
    # What is in no lease any more may be on its way back.
    wait_until_told()
    stats = small_pool.get_stats()
    assert stats["pool_available"] == stats["pool_size"] == 3
    assert stats.get("requests_errors", 0) == 0
