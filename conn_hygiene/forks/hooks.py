"""What a forked process inherits, and how it lets go of it without harming its parent.

A child shares the sockets of its parent's connections. Closing one sends a Terminate message down the shared socket,
and the parent's session dies. So inherited connections are *discarded*: see :mod:`conn_hygiene.forks.discarding`. A
pool is dropped without calling into it: its threads did not survive the fork, and its lock may have been held.

What drops anything runs in the child, in the thread that forked, which is the only one of the system's that is there.
Greenlets that have it for their thread survive with it, wherever they stand.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.transaction import TransactionManagementError

from conn_hygiene import conf, events, home, internals
from conn_hygiene.forks import discarding
from conn_hygiene.leases import attaching, djangos, usage, wrapper
from conn_hygiene.reaper import reaper
from conn_hygiene.sessions import connect_options

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator
    from types import FrameType

    from conn_hygiene.leases.lease import Lease

# The process whose connections need no discarding: the one that imported the package, or a child that has done it.
_home_pid = home.pid

# The process whose locks and threads the toolkit's own state goes by.
_state_pid = os.getpid()

# Leases that the running process has inherited and not yet discarded.
_inherited_leases: set[Lease] = set()

# Connections that were out of their leases, and not yet back in their pools, at the moment of the fork.
_inherited_on_their_way: list[tuple[str, Any]] = []

# What modules have to do in a child that this one does not know; see `register_after_fork`.
_after_fork: list[Callable[[], None]] = []

# What modules have to do ahead of a fork, such as to end a thread; see `register_closing_before_fork`.
_closing_before_fork: list[Callable[[], None]] = []

# All threads' wrappers and what tells of their threads' ends, for as long as a fork takes and in the child until it
# discards. The threads are gone there, and Python collects what was theirs before it calls any hook: a wrapper's
# finaliser that knows nothing of forks would speak to the parent's server, and whatever traces one of ours (coverage, a
# debugger) may have a lock that is held for ever. By the thread that forks, which alone touches its entry.
_kept_at_fork: dict[int, list[Any]] = {}

# What tells of the threads' ends, of those that go on. A copy is read, since others write at the same time. The wrapper
# that a thread's end was first made for may be gone.
_thread_ends: dict[weakref.ref[Any], None] = {}


def close_all_after_fork() -> int:
    """Discard every connection that this process inherited by a fork; return how many there were.

    Covers all aliases, in every thread's storage, checked out or idle in a pool: Django's native one, or that of
    django-db-connection-pool. Where the toolkit is imported and not installed, it knows the connections of the running
    thread and those idle in pools, and no others. Not a byte reaches the server; the parent's sessions stay as they
    are. What the child does next with the ORM starts clean: on a connection of its own, outside of any ``atomic()`` of
    the parent, without the parent's ``on_commit`` hooks. The scopes that it was forked in, such as
    ``session_settings``, go on in it.

    An SQLite database in memory stays: the child has a copy. SQLite connections to files, and those of drivers that
    keep their socket to themselves, are forgotten and left open, which the log says.

    Does nothing in a process that did not fork, and nothing the second time. The toolkit does this by itself after
    ``os.fork`` unless ``DISCARD_AFTER_FORK`` is off; import ``conn_hygiene`` before the fork.
    """
    global _home_pid  # noqa: PLW0603 - one process, one home
    if os.getpid() == _home_pid:
        return 0
    renew_state()
    _home_pid = os.getpid()
    of_others = [*_take_from_leases(), *_take_from_wrappers(mine=False)]
    found = [*_take_from_wrappers(mine=True), *discarding.take_native_pools(), *discarding.take_sqlalchemy_pools()]
    discarding.cut_greenlets_off()
    left = [alias for alias, connection in of_others if not discarding.discard(connection, of_another=True)]
    left += [alias for alias, connection in found if not discarding.discard(connection)]
    found += of_others
    _kept_at_fork.clear()
    if found:
        discarded = Counter(alias for alias, _ in found)
        events.publish(events.ConnectionsDiscarded(discarded=dict(discarded), left_open=dict(Counter(left))))
    return len(found)


def close_all_before_fork() -> int:
    """Close this thread's connections and this process's pools, ahead of a fork; return how many there were of both.

    Call it in the parent. Closing the pools ends their threads, and the toolkit's own end as well: Python 3.12 and
    later warn about a fork of a process that has threads. The next query starts pools and threads again. Connections
    that other threads hold are left to them; threads that wait for one at this moment fail, since their pool is closed.

    :raises django.db.transaction.TransactionManagementError: an alias is inside ``atomic()``. Nothing is closed then.
    """
    mine = [each for each in connections.all(initialized_only=True) if not discarding.is_private(each)]
    for each in mine:
        if internals.LEASES.available and each.in_atomic_block:
            raise TransactionManagementError(
                f"close_all_before_fork() was called inside atomic() on {each.alias!r}. Fork outside of the block."
            )
    closed = 0
    for each in mine:
        closed += wrapper.is_open(each)
        each.close()
    closed += discarding.close_pools()
    if reaper.running is not None:
        reaper.running.stop(for_good=False)
    for call in _closing_before_fork:
        call()
    return closed


# ##### At the fork #####


def keep_over_forks(thread_end: weakref.ref[Any]) -> None:
    """Keep what *thread_end* refers to, which is alive, from being collected in a child."""
    _thread_ends[thread_end] = None


def keep_no_longer(thread_end: weakref.ref[Any]) -> None:
    """Forget *thread_end*, whose thread has ended. Called by whoever collects what it refers to."""
    _thread_ends.pop(thread_end, None)


def before_fork() -> None:
    """Keep over the fork what other threads' ends would collect. Called in the parent, by whichever thread forks."""
    ends = [end() for end in _thread_ends.copy()]
    _kept_at_fork[threading.get_ident()] = [*attaching.known(), *ends]


def after_fork_in_parent() -> None:
    """Let go of what :func:`before_fork` has kept. Called in the parent, by the thread that has forked."""
    # A child that forks itself, and has yet to discard what it inherited, keeps that.
    if os.getpid() == _home_pid:
        _kept_at_fork.pop(threading.get_ident(), None)


def after_fork_in_child() -> None:
    """Renew the state of the toolkit, and discard what was inherited unless the settings say that this is done by hand.

    Does nothing for a child that becomes another program in a moment: its descriptors are closed then.
    """
    if _is_about_to_exec():
        return
    renew_state()
    if reaper.running is not None and conf.current.DISCARD_AFTER_FORK:
        close_all_after_fork()


def _is_about_to_exec() -> bool:
    """Return whether it is ``subprocess`` that has forked, Python's own with a ``preexec_fn`` or gevent's always."""
    # Where C has forked, as uWSGI does, nothing is below.
    frame: FrameType | None = sys._getframe(1).f_back
    while frame is not None and frame.f_globals.get("__name__") == "gevent.os":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in ("subprocess", "gevent.subprocess")


def renew_state() -> None:
    """Make the toolkit's locks, reaper and registries new in a forked process. Does nothing the second time.

    Any lock may have been held at the moment of the fork, by a thread that is no more. Called by the hook at a fork,
    and again on the way of :func:`close_all_after_fork`: uWSGI forks without calling the hooks.
    """
    global _state_pid  # noqa: PLW0603 - one process, one state
    if os.getpid() == _state_pid:
        return
    _state_pid = os.getpid()
    for module in (events, reaper, attaching, connect_options, usage):
        module.after_fork_in_child()
    for call in _after_fork:
        call()
    if reaper.running is not None:
        leases, on_their_way = reaper.running.after_fork_in_child()
        _inherited_leases.update(leases)
        _inherited_on_their_way.extend(on_their_way)


def register_after_fork(call: Callable[[], None]) -> None:
    """Have *call* called in each forked child, once, before anything is told of the fork: for locks and for numbers."""
    _after_fork.append(call)


def register_closing_before_fork(call: Callable[[], None]) -> None:
    """Have *call* called by :func:`close_all_before_fork`: to end a thread, which the next checkout starts again."""
    _closing_before_fork.append(call)


def _take_from_leases() -> Iterator[tuple[str, Any]]:
    for lease in _inherited_leases:
        connection = lease.disown()
        if connection is not None:
            yield lease.alias, connection
    _inherited_leases.clear()
    yield from _inherited_on_their_way
    _inherited_on_their_way.clear()


def _take_from_wrappers(*, mine: bool) -> Iterator[tuple[str, Any]]:
    """Take what wrappers hold without a lease, the running thread's or the others', and make them as good as new."""
    of_running_thread = set(connections.all(initialized_only=True))
    for each in of_running_thread if mine else {*attaching.known()} - of_running_thread:
        if discarding.is_private(each):
            continue
        lease = wrapper.lease_of(each)
        connection = each.connection if lease is None else lease.disown()
        each.connection = None
        djangos.reset_transaction_state(each)
        if mine:
            attaching.close_books(each)
        if connection is not None:
            yield each.alias, discarding.taken_from_proxy(connection)
