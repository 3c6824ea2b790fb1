"""Waiting for what another thread is about to do, with a limit that only a failure reaches."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

import conn_hygiene
from conn_hygiene.leases.ended import QUIET
from conn_hygiene.reaper import reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Return as soon as *condition* is true; fail, naming *what* was waited for, after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"Waited {seconds} s in vain until {what}.")
        time.sleep(0.001)


def holds(alias: str) -> bool:
    """Return whether any thread holds a connection of *alias*."""
    return any(info.alias == alias for info in conn_hygiene.snapshot())


def wait_until_released(alias: str = "default") -> None:
    """Return when no thread holds a connection of *alias*, and none is on its way back."""
    keeper = reaper.running
    assert keeper is not None
    wait_until(
        lambda: not holds(alias) and not any(each.alias == alias for each in list(keeper._returning)),
        f"the connection of {alias!r} is given back",
    )


@contextlib.contextmanager
def busy_reaper() -> Iterator[None]:
    """Have the reaper get to nothing that it is told inside before the end."""
    keeper = reaper.running
    assert keeper is not None
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(10)

    keeper._bell.put(work)
    keeper.ensure_running()
    assert begun.wait(10)
    try:
        yield
    finally:
        over.set()


def let_the_reaper_look() -> None:
    """Return when the reaper has looked at all that was due a moment ago; what is held after that, stays."""
    keeper = reaper.running
    assert keeper is not None
    looked: list[bool] = []
    time.sleep(0.02)  # twenty times the grace: what could go has been due for long
    keeper._bell.put(lambda: looked.append(True))
    wait_until(lambda: looked, "the reaper has looked")
    wait_until_told()


def wait_until_told() -> None:
    """Return when all is back that is on its way, and all reports are made."""
    keeper = reaper.running
    assert keeper is not None
    lanes = keeper._workers._lanes
    wait_until(
        lambda: (
            not keeper._returning
            and all(lane._idle == len(lane._threads) and not lane._calls for lane in list(lanes.values()))
        ),
        "the workers have done all",
    )


def end_sessions(admin: psycopg.Connection, *pids: int) -> None:
    """End sessions on the server, as a restart does; return when they are gone, and a next use would look for that.

    A connection that was used a moment ago is taken to work, and the server may be quicker than that.
    """
    for pid in pids:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    time.sleep(QUIET)
