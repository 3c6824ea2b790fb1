"""What is counted in a contender's process, in bytecodes: queries, cycles, transactions and requests."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import random
import sys
import time
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connection, transaction

from conn_hygiene import conf
from conn_hygiene.leases import ended
from example_project.benchmarks import views
from example_project.benchmarks.bytecodes import Repeat, counted, middle, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Enough for each connection of the pool to have had its first times.
WARM_UP, REPEATS = 8, 15

# Seconds: a grace that no query outlasts, however much slower it is to count; within which a connection goes back by
# itself, if it does, even if the reaper has been told of such a grace; and for what a worker does with it after that.
_GRACE, _UNTIL_GIVEN_BACK, _SETTLED = 1.0, 3.0, 0.005


def count(what: str) -> dict[str, float]:
    """Return the bytecodes of one of :data:`WORK`; called in a request."""
    return summary(WORK[what]())


def count_request(request: Callable[[], object]) -> dict[str, float]:
    """Return the bytecodes of a request; called outside of any."""
    return summary(repeated(request))


def repeated(work: Callable[[], object]) -> list[Repeat]:
    """Count what each repeat takes. No time passes for the toolkit meanwhile."""
    with timeless():
        for _ in range(WARM_UP):
            work()
        found = []
        for _ in range(REPEATS):
            # To find a number at random takes as many tries as it takes.
            random.seed(0)
            found.append(counted(work))
        return found


def select() -> None:
    views.select(1)


def select_and_close() -> None:
    views.select(1)
    connection.close()


def get() -> None:
    views.query(1)


def in_transaction() -> None:
    with transaction.atomic():
        views.select(2)


def cycles() -> list[Repeat]:
    """Count a checkout, a query and a release, less the query on a connection that stays.

    Whoever does not release by itself has its connection closed, as at the end of a request.
    """
    with transaction.atomic():
        held = middle(repeated(select)).own
    work = select
    if not given_back():
        connection.close()
        work = select_and_close
    with timeless(but_for_grace=True):
        found = [counted(work, until=given_back) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    for repeat in found:
        repeat.own.subtract(held)
    return found


WORK: Mapping[str, Callable[[], list[Repeat]]] = {
    "select": lambda: repeated(select),
    "get": lambda: repeated(get),
    "cycle": cycles,
    "transaction": lambda: repeated(in_transaction),
}


def given_back() -> bool:
    """Return whether the connection goes back to its pool by itself, and wait for that."""
    # Without a grace it has gone already, if it does.
    deadline = time.monotonic() + (_UNTIL_GIVEN_BACK if settings.CONN_HYGIENE.get("RELEASE_AFTER") else 0)
    while not (is_back := _is_pool_full()) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(_SETTLED)
    return is_back


def _is_pool_full() -> bool:
    if not (pool := connection.pool):  # type: ignore[attr-defined]
        return False
    stats = pool.get_stats()
    return bool(stats["pool_available"] == stats["pool_size"])


@contextlib.contextmanager
def timeless(*, but_for_grace: bool = False) -> Iterator[None]:
    """Have no grace end that there is, and no moment be a quiet one.

    Nor is garbage collected, which is nobody's work in particular.
    """
    current, quiet = conf.current, ended.QUIET
    places = [vars(module) for name, module in sys.modules.items() if name.startswith("conn_hygiene.")]
    places = [names for names in places if names.get("QUIET") is quiet]
    if current.RELEASE_AFTER and not but_for_grace:
        conf.apply(dataclasses.replace(current, RELEASE_AFTER=_GRACE))
    for names in places:
        names["QUIET"] = math.inf
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for names in places:
            names["QUIET"] = quiet
        conf.apply(current)
