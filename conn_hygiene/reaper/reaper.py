"""The reaper: a timer that knows when idle leases end and touches no server, and workers that do what may block.

It starts with the first lease, sleeps while nothing is parked, and is gone after a fork until it is needed again. On
other threads' wrappers it calls nothing of Django's: it takes the psycopg connection out of the lease, under the
lease's lock, and has it returned to that connection's own pool, under none. The timer does that itself where nothing
can block; what asks the server for something, or calls code that is not ours, is a worker's.

Who may touch what: the lists of leases and of returns are the registry's, see :class:`.registry.Registry`; ``_heap``
and ``_limits`` are the timer's own; ``_inbox`` and ``_new_limits`` are deques and ``_bell`` a SimpleQueue, all safe
from any thread, and the SimpleQueue from finalisers too. ``_wake_at`` is written by the timer before it looks into the
deques a last time and sleeps, and read by others after they have put something in: one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import queue
import sys
import threading
import time
import weakref
from collections import deque
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from django.db import connections

from conn_hygiene import conf, internals, locks
from conn_hygiene.events import UnclosedCursor, publish
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import cursors, ended, policy
from conn_hygiene.leases.backoff import MAX_DELAY, SLACK
from conn_hygiene.leases.description import describe
from conn_hygiene.locks import Rank
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import ages, demand, limits, watch
from conn_hygiene.reaper.registry import Registry, whole
from conn_hygiene.reaper.workers import Workers
from conn_hygiene.work import daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from queue import SimpleQueue

    from conn_hygiene.events import Event
    from conn_hygiene.leases.claim import Claim
    from conn_hygiene.leases.keeper import Tally
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.leases.returns import Return, TimeLimit

logger = logging.getLogger("conn_hygiene.reaper")

_now = time.monotonic


class Reaper(Registry):
    """Ends the leases of its registry that are due, and has their connections carried back. One a process."""

    def __init__(self, tally_of: Callable[[str], Tally]) -> None:
        super().__init__()
        self._tally_of = tally_of
        self._start_lock = locks.make(Rank.START)
        self._reset_thread()

    def _reset_thread(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopping = False
        # By weak references: a thread that ends with its request leaves nothing here for the length of a grace.
        self._inbox: deque[tuple[float, weakref.ref[Lease]]] = deque()
        # Looked up where it is made: gevent and eventlet have their own.
        self._bell: SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wake_at = math.inf
        self._heap: list[tuple[float, int, weakref.ref[Lease]]] = []
        self._limits: list[tuple[float, int, TimeLimit]] = []
        self._new_limits: deque[tuple[float, TimeLimit]] = deque()
        self._workers = Workers(_complain)
        # Written by whoever tells; a number that is lost in a race costs a word in a log.
        self._reports_lost = 0
        self._busy = False
        # Since when it has rested, and whether what was parked after the last rest came soon: then it lingers.
        self._rested_at = -math.inf
        self._lingers = True
        self._watch_at = math.inf
        self._demands = demand.Demands()
        self._order = count()

    # ##### Called by leases, in any thread #####

    def tally_of(self, alias: str) -> Tally:
        """Return who counts the checkouts of *alias*."""
        return self._tally_of(alias)

    def checked_out(self, lease: Lease) -> None:
        """Keep *lease* reachable while it has a connection, so that its owner's end does not lose it."""
        if self._add(lease):
            self._start_watching()

    def wanted(self, spare: Sequence[Any]) -> None:
        """End what is due of the leases of the pool that has nothing in *spare*, and have the rest ended in time.

        For a thread that is about to wait. What it does here itself needs no switch to another thread and back. What
        fails for somebody else's lease must not fail its request.
        """
        if not internals.TURNS.available:
            return
        now = _now()
        at_rest = None
        for lease in self.leases():
            if lease.spare is spare and demand.may_rest(lease):
                at_rest = lease
            try:
                if lease.spare is spare and self.give_back_if_hung_up(lease):
                    continue
                due = lease.end_if_due(now, spare)
            except Exception as error:
                # As in the reaper's own thread.
                if is_of_handler(error):
                    raise
                self.tell(_complain, error)
            else:
                if due is not None:
                    self.parked(lease, due)
        if at_rest is not None and _gives_on_demand() and not self._demands.renew(spare, now):
            self._bell.put(partial(self._demands.begin, at_rest, now))
            self.ensure_running()

    def give_back_if_hung_up(self, lease: Lease) -> bool:
        """Give a connection back that the server has ended while its owner does something else."""
        try:
            found = ended.take_if_hung_up(lease)
            if found is not None:
                self.carry_back(found, here=False)
        except BaseException:
            self.rescue(lease)
            raise
        return found is not None

    def _start_watching(self) -> None:
        """Have the watch looked at, which rests while nothing is checked out."""
        if self._watch_at == math.inf and limits.interval() != math.inf:
            self._bell.put(self._rewind_watch)

    def outlives_request(self, close_at: float) -> None:
        """Look at all leases when one that has outlived its request is past its age, which is at *close_at*."""
        if close_at < self._watch_at:
            self._bell.put(partial(self._watch_by, close_at))

    def _watch_by(self, moment: float) -> None:
        self._watch_at = min(self._watch_at, moment)

    def settings_changed(self) -> None:
        """Have the watch, and what is parked already, go by the limits that are in force now."""
        self._bell.put(self._begin_by_new_settings)

    def _begin_by_new_settings(self) -> None:
        self._take_in()
        # Due at once, and in whichever order; each tells then when it really is, and so does the watch.
        self._heap = [(-math.inf, order, lease) for _, order, lease in self._heap]
        self._watch_at = _now()

    def _rewind_watch(self) -> None:
        self._watch_at = _now() + limits.interval()

    # ##### What is on its way back #####

    def carry_back(self, returning: Return, *, here: bool) -> None:
        """Have *returning* carried out: in the running thread if it is *here* or cannot block, else by a worker."""
        returning.by_owner = here
        if here or not returning.may_block or not self._put_return(returning):
            returning.carry_out(self)

    def _put_return(self, returning: Return) -> bool:
        call = partial(_as_a_worker, returning.carry_out, self)
        # Not by the alias alone, which may be the name of another lane. It holds no more than a pool has connections.
        return self._workers.put(f"{returning.alias} back", call, threads=4, length=10_000)

    def rescue(self, lease: Claim) -> None:
        """Carry back what was taken out of *lease* by a thread that an exception of a signal handler kept from it."""
        for returning in self._taken_out_of(lease):
            if lease.is_out(returning):
                returning.carry_out(self)
            else:
                self.stays(lease, returning)

    def hurry(self, lease: Claim) -> bool:
        """Carry back here what was taken out of *lease* and nobody has begun to carry, since its owner waits for it.

        Returns whether the rest may be waited for: not if the running thread is about it further up its stack, where a
        signal handler queries.
        """
        if lease.is_locked_here():
            return False
        for returning in self._taken_out_of(lease):
            if not returning.is_carried:
                try:
                    returning.carry_out(self)
                except BaseException:
                    self.rescue(lease)
                    raise
            elif returning.is_carried_here:
                return False
        return True

    def ring_at(self, deadline: float, limit: TimeLimit) -> None:
        """Have the timer call ``limit.expire()`` when *deadline* has come, unless it is over by then."""
        self._new_limits.append((deadline, limit))
        self._wake_by(deadline)

    def tell(self, report: Callable[..., None], *facts: Any) -> None:
        """Have a *report* made by a thread that nobody waits for; while too many wait there, it is only counted."""
        lost = self._reports_lost
        if lost and self._put_report(_complain_of_lost_reports, lost):
            self._reports_lost -= lost
        if not self._put_report(report, *facts):
            self._reports_lost += 1

    def _put_report(self, report: Callable[..., None], *facts: Any) -> bool:
        return self._workers.put(_REPORTS, partial(_as_a_worker, report, *facts), threads=1, length=_MOST_REPORTS)

    def ask(self, alias: str, question: Callable[[], None]) -> None:
        """Have a *question* asked of the server of *alias* in a lane of its own, unless one waits there already."""
        self._workers.put(f"{alias} question", partial(_as_a_worker, question), threads=1, length=1)

    def left_open(self, lease: Lease, left_by: str) -> Callable[[], None] | None:
        """Return what tells of the transaction of *lease* as it is now, which *left_by* leaves open."""
        found = describe(lease, _now())
        if found is None:
            return None
        return partial(watch.publish, watch.left_open(lease, found, left_by), found)

    def publish_later(self, event: Event) -> None:
        """Have *event* published by a thread that nobody waits for, in a lane of its own: they may be many."""
        call = partial(_as_a_worker, publish, event)
        if not self._workers.put(_EVENTS, call, threads=1, length=_MOST_EVENTS):
            self._reports_lost += 1

    def parked(self, lease: Lease, deadline: float) -> None:
        """Have *lease* looked at when *deadline* has come.

        A lease that is parked many times in a row, as in a burst of queries, has one entry only, or one more where it
        is wanted sooner. ``look_at`` is cleared before the lease is looked at, and read by the owner after it has
        parked it, each time with the lease's lock in between: either the reaper sees the parked lease, or the owner
        sees that there is no entry.
        """
        if lease.look_at <= deadline:
            return
        lease.look_at = deadline
        self._inbox.append((deadline, weakref.ref(lease)))
        self._wake_by(deadline)

    def _wake_by(self, deadline: float) -> None:
        """Have the timer awake when *deadline* has come, for what was put in for it; a moment late is in time."""
        if self._thread is None or not self._is_of_this_kind():
            # Stopped ahead of a fork, while this lease was checked out; or threads are green by now.
            self.ensure_running()
        if deadline + SLACK < self._wake_at:
            self._bell.put(None)
            self.ensure_running()

    def cursor_lost(self, lease: Lease, cursor: weakref.ref[Any], *, is_of_checkout: bool) -> None:
        """Settle for a collected cursor. Called from finalisers: SimpleQueue.put() is the one thing allowed there."""
        self._bell.put(lambda: self._settle_lost_cursor(lease, cursor, is_of_checkout=is_of_checkout))

    def _settle_lost_cursor(self, lease: Lease, cursor: weakref.ref[Any], *, is_of_checkout: bool) -> None:
        lease.cursor_closed(cursor, by_owner=False)
        opened = cursors.opened(cursor) if is_of_checkout else None
        if opened is not None and opened.place is not None:
            event = UnclosedCursor(
                alias=lease.alias,
                thread_id=lease.thread_id,
                request=opened.request,
                where_opened=str(opened.place),
                stack_opened=opened.place.stack,
            )
            self.tell(publish, event)

    def wrapper_lost(self, lease: Claim) -> None:
        """Reclaim a connection whose wrapper was collected. Called from finalisers."""
        self._bell.put(lambda: self._reclaim(whole(lease)))

    def thread_ended(self, thread_end: weakref.ref[Any]) -> None:
        """Reclaim what a thread held that has ended. Called from a finaliser in that thread, late in its end."""
        self._bell.put(lambda: self._reclaim_all(thread_end))

    # ##### The thread #####

    def ensure_running(self) -> None:
        """Start the timer if it is not running."""
        if self._stopping or (self._thread is not None and self._is_of_this_kind()):
            return
        with self._start_lock:
            self._renew_bell()
            thread = daemon_thread("conn-hygiene-reaper", self._run)
            # Another thread may have been first; or this one, in between: a signal handler may query.
            if thread is None:
                self._look_at_none()
            elif self._thread is None and not self._stopping:
                self._thread = thread
                self._start(thread)

    def _start(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except BaseException as error:
            # Should it have begun before an exception of a signal handler came, it ends again.
            self._thread = None
            self._look_at_none()
            # The interpreter is shutting down: connections close with it.
            if not isinstance(error, RuntimeError) or is_of_handler(error):
                raise

    def _is_of_this_kind(self) -> bool:
        """Whether threads are what they were when the bell was made; they may have become green."""
        return isinstance(self._bell, queue.SimpleQueue)

    def _renew_bell(self) -> None:
        """Have the bell be of the kind that the new thread can wait for: it may be a greenlet by now, and be the first.

        A real queue would stop all greenlets. A real thread that waits for it ends.
        """
        if self._is_of_this_kind():
            return
        before, real, self._thread = self._bell, self._thread, None
        if real is not None:
            before.put(None)
            real.join(1.0)
        self._bell, self._workers = queue.SimpleQueue(), Workers(_complain)
        while not before.empty():
            self._bell.put(before.get_nowait())

    def flush(self, timeout: float) -> bool:
        """Wait until all that has been put in by now is done, and told; *timeout* seconds at most. Return whether.

        What the timer is told it gives to the workers, and what these have done may be for the timer again.
        """
        until = _now() + timeout
        for _ in range(2):
            if self._thread is not None and not self._pass_bell(until):
                return False
            if not self._workers.flush(until):
                return False
        return True

    def _pass_bell(self, until: float) -> bool:
        passed = threading.Event()
        self._bell.put(passed.set)
        return passed.wait(max(0.0, until - _now()))

    def stop(self, timeout: float = 1.0, *, for_good: bool = True) -> None:
        """End the thread, waiting *timeout* seconds at most; what is parked then stays with its owners.

        Unless *for_good*, the next checkout starts another.
        """
        with self._start_lock:
            thread, self._thread = self._thread, None
            self._stopping = for_good
        if thread is not None and thread is not threading.current_thread():
            self._bell.put(None)
            thread.join(timeout)
        self._look_at_none()
        self._workers.stop(timeout)

    def _look_at_none(self) -> None:
        """Have whoever parks next tell when to look: nobody is there who would, whatever was told before."""
        for lease in self.leases():
            lease.look_at = math.inf

    def _run(self) -> None:
        me = threading.current_thread()
        bell = self._bell
        while self._thread is me:
            if not isinstance(bell, queue.SimpleQueue):
                # Threads are green from here on, and this one is not. The next use starts another.
                break
            try:
                self._end_what_is_due()
                self._watch()
                self._meet_demand()
                self._sleep()
            except BaseException as error:  # noqa: BLE001 - nothing may end it
                self.tell(_complain, error)
                # Should it come again at once, others get their turn in between.
                time.sleep(_PAUSE)
        if bell is self._bell and self._thread is not None and self._thread is not me:
            # It may have taken a ring that was for its successor.
            bell.put(None)
        # A greenlet survives a fork and comes here in the child, where threading would miss it in its list of threads,
        # as it would if that was patched meanwhile. This puts it there.
        threading.current_thread()

    def _end_what_is_due(self) -> None:
        now = _now()
        if self._inbox and not self._heap:
            self._lingers = now - self._rested_at < MAX_DELAY
        self._busy = bool(self._heap or self._inbox)
        self._take_in()
        while self._limits and (self._limits[0][0] <= now or self._limits[0][2].is_over):
            heapq.heappop(self._limits)[2].expire()
        while self._heap and self._heap[0][0] <= now:
            lease = heapq.heappop(self._heap)[2]()
            if lease is None:
                continue
            lease.look_at = math.inf
            try:
                again = lease.end_if_parked(now)
            except Exception as error:  # noqa: BLE001 - whatever one lease meets must not keep the others
                self.tell(_complain, error)
                again = now + _PAUSE_OF_ONE
            if again is not None and again < lease.look_at:
                lease.look_at = again
                heapq.heappush(self._heap, (again, next(self._order), weakref.ref(lease)))

    def _take_in(self) -> None:
        while self._inbox:
            deadline, lease = self._inbox.popleft()
            heapq.heappush(self._heap, (deadline, next(self._order), lease))
        while self._new_limits:
            deadline, limit = self._new_limits.popleft()
            # Most are over by the time that they are seen here.
            if not limit.is_over:
                heapq.heappush(self._limits, (deadline, next(self._order), limit))

    def _sleep(self) -> None:
        """Sleep until the next lease is due, or the bell rings.

        After the last one the reaper lingers for a while: most that is parked meanwhile can wait for that long, and its
        owner need not ring, which costs a switch of threads. Not where owners come less often than that, as in one of
        many processes with few threads each: it would only wake once more for each of them.
        """
        now = _now()
        if self._heap:
            self._wake_at = max(self._heap[0][0], now + SLACK)
        else:
            if self._busy:
                self._rested_at = now
            self._wake_at = now + MAX_DELAY if self._busy and self._lingers else math.inf
        limit_at = self._limits[0][0] if self._limits else math.inf
        self._wake_at = min(self._wake_at, self._watch_at, self._demands.look_at, limit_at)
        if self._inbox or self._new_limits:
            return
        try:
            # CONN_MAX_AGE may be longer than Python can wait.
            rest = min(max(0.0, self._wake_at - _now()), conf.LONGEST)
            call = self._bell.get(timeout=None if self._wake_at == math.inf else rest)
        except queue.Empty:
            call = None
        # Awake: whoever parks now is seen without the bell.
        self._wake_at = -math.inf
        while call is not None:
            call()
            call = self._next_call()

    def _next_call(self) -> Callable[[], None] | None:
        try:
            return self._bell.get_nowait()
        except queue.Empty:
            return None

    # ##### What somebody waits for, sits idle in a transaction, or is held too long #####

    def _meet_demand(self) -> None:
        now = _now()
        if now >= self._demands.look_at:
            # No setting that has changed meanwhile is passed over.
            returning = self._pools_returned_to()
            self._demands.see_to(self.leases() if _gives_on_demand() else [], returning, now)

    def _watch(self) -> None:
        """Look at all leases once in a while, and see to those that are over a limit."""
        now = _now()
        if now < self._watch_at:
            return
        # Until the next checkout, which rings the bell; set before the look, so that none is missed by both.
        self._watch_at = math.inf
        leases = self.leases()
        for lease in leases:
            try:
                limits.see_to(lease, now, self)
            except Exception as error:  # noqa: BLE001 - as above
                self.tell(_complain, error)
        if leases:
            self._watch_at = min(now + limits.interval(), ages.next_look(leases, now))
            if _gives_on_demand():
                self._demands.begin_where_somebody_waits(leases, now)

    # ##### What owners leave behind #####

    def _reclaim_all(self, thread_end: weakref.ref[Any]) -> None:
        for lease in self.leases():
            if lease.thread_end is thread_end:
                try:
                    self._reclaim(lease)
                except Exception as error:  # noqa: BLE001 - as above
                    self.tell(_complain, error)

    def _reclaim(self, lease: Lease) -> None:
        if not conf.current.RECLAIM_DEAD_THREADS:
            if lease.wrapper() is None:
                # Python closes it when it is collected, as in plain Django, and nobody may keep it from that.
                self.checked_in(lease)
            return
        self.reclaim(lease)

    def reclaim(self, lease: Lease) -> None:
        """Take back what *lease* holds, whose owner is no more, and report it when it is where it belongs."""
        taken = lease.reclaim()
        if taken is None:
            return
        returning, found = taken
        if found is not None:
            returning.news += (found,)
        self.carry_back(returning, here=False)

    # ##### Forks #####

    def after_fork_in_child(self) -> tuple[set[Lease], list[tuple[str, Any]]]:
        """Begin anew in a forked child, where the threads are gone and any lock may have been held.

        Return the parent's leases, and its connections on their way back, by alias.
        """
        self._start_lock = locks.make(Rank.START)
        for limit in [*(each[-1] for each in self._limits), *(each[-1] for each in self._new_limits)]:
            limit.after_fork_in_child()
        self._reset_thread()
        return self._forget_after_fork()


def _as_a_worker(call: Callable[..., None], *arguments: Any) -> None:
    """Make a *call* in a thread that no request ends in; what fails there must not keep the rest from being done.

    A logging handler may query on the way, with a connection of this thread, which is closed here: not logged, since
    its record would have such a handler query again, for ever.
    """
    entered = policy.entered.set(_HOLDING)
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001 - a logging handler's, or of whatever else is called on the way
        _complain(error)
    finally:
        policy.entered.reset(entered)
        if connections.all(initialized_only=True):
            with pools.unlogged():
                connections.close_all()


def _complain(error: BaseException) -> None:
    # It may be the handler of this very record that failed.
    with contextlib.suppress(Exception):
        if not sys.is_finalizing():
            logger.error("The reaper met an error and goes on.", exc_info=error)


def _complain_of_lost_reports(number: int) -> None:
    logger.error(
        "%d reports (log records, signals, events) were dropped: too many waited for a slow logging handler, signal "
        "receiver or event listener.",
        number,
    )


def _gives_on_demand() -> bool:
    """Return whether the settings let anything go back that no scope has asked to give back."""
    return conf.current.RELEASE != "never" and conf.current.HELD_TOO_LONG_AFTER is not None


# Whatever a worker's thread checks out it keeps until it is closed there.
_HOLDING = (policy.Entry(None, holds=True, using=None),)

# The lane of reports, and how many may wait there.
_REPORTS = "reports"
_MOST_REPORTS = 1000

# The lane of events of checkouts, and how many may wait there.
_EVENTS = "events"
_MOST_EVENTS = 10_000

# Seconds that the timer rests when something failed, and that it leaves a lease alone whose end did.
_PAUSE = 0.01
_PAUSE_OF_ONE = 1.0

# The reaper of this process, while the toolkit is installed. Set under `installing`.
running: Reaper | None = None

# Taken by install() and uninstall() for as long as they run, by nobody else.
installing = locks.make(Rank.INSTALLING)


def after_fork_in_child() -> None:
    """Replace in a forked child the lock that another thread may have held."""
    global installing  # noqa: PLW0603 - nobody holds the new one yet
    installing = locks.make(Rank.INSTALLING)
