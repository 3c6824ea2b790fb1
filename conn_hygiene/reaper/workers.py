"""Threads that do what may block: talk to a server, call a logging handler or a receiver.

There are two lanes for each alias, for what goes back and for questions to its server, and one each for reports and for
events. What hangs in one of them delays none of the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from conn_hygiene import locks
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.locks import Rank
from conn_hygiene.work import daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for which a thread waits for more to do before it ends.
LINGER = 2.0


class Lane:
    """A queue, and the threads that work it off: started when there is something to do, gone when there is not.

    ``_calls``, ``_threads``, ``_idle``, ``_awaited`` and ``_is_stopping`` are guarded by the lock of ``_changed``. It
    is a leaf but for the start of a thread, and held while nothing is called. A signal handler may put something in
    between any two lines, in the same thread.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], None], *, threads: int, length: int) -> None:
        self._name = name
        self._on_error = on_error
        self._most_threads = threads
        self._length = length
        self._changed = threading.Condition(locks.make(Rank.LEAF))
        self._calls: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        # How many wait until all is done.
        self._awaited = 0
        self._is_stopping = False

    def put(self, call: Callable[[], None]) -> bool:
        """Have *call* called soon; return False if it will not be: the lane is full, or there can be no thread."""
        with self._changed:
            if len(self._calls) >= self._length or self._is_stopping:
                return False
            self._calls.append(call)
            if self._idle >= len(self._calls):
                # One of those that are woken is a thread of the lane.
                self._changed.notify(1 + self._awaited)
                return True
            if len(self._threads) < self._most_threads and not self._start() and not self._threads:
                # Not the last, which may be a signal handler's.
                self._calls.remove(call)
                return False
            return True

    def _start(self) -> bool:
        thread = daemon_thread(f"conn-hygiene-{self._name}", self._run)
        if thread is None:
            return False
        # First of all: a signal handler that wants one finds it. If the handler was first, one is enough.
        self._threads.add(thread)
        if len(self._threads) > self._most_threads:
            self._threads.discard(thread)
            return True
        try:
            thread.start()
        except BaseException as error:
            self._threads.discard(thread)
            # The interpreter is shutting down, or there can be no more of them.
            if isinstance(error, RuntimeError) and not is_of_handler(error):
                return False
            raise
        return True

    def _run(self) -> None:
        with self._changed:
            # Whoever has started it may have been kept from listing it by an exception of a signal handler.
            self._threads.add(threading.current_thread())
        while (call := self._next()) is not None:
            locks.assert_none_held()
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - nothing may end it, not a receiver's sys.exit() either
                self._on_error(error)
            # Whatever it refers to must not live until the next comes.
            del call

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._idle += 1
            if self._awaited:
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._calls or self._is_stopping, LINGER)
            self._idle -= 1
            if self._calls:
                return self._calls.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def flush(self, timeout: float) -> bool:
        """Wait *timeout* seconds at most until nothing is left to do; return whether that is so."""
        with self._changed:
            self._awaited += 1
            try:
                return self._changed.wait_for(self._is_at_rest, timeout)
            finally:
                self._awaited -= 1

    def _is_at_rest(self) -> bool:
        return not self._calls and self._idle == len(self._threads)

    def stop(self, timeout: float) -> None:
        """Have the threads end when all is done that is waiting; wait *timeout* seconds for each at most."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(timeout)


class Workers:
    """The lanes of a process. Which there are is guarded by a lock that is a leaf."""

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._lock = locks.make(Rank.LEAF)
        self._lanes: dict[str, Lane] = {}

    def put(self, lane: str, call: Callable[[], None], *, threads: int, length: int) -> bool:
        """Have *call* called in *lane* by one of at most so many *threads*; see :meth:`Lane.put`.

        :param length: how many calls may wait there. What is given to a lane first holds.
        """
        with self._lock:
            found = self._lanes.get(lane)
            if found is None:
                # Not another than a signal handler has made meanwhile.
                found = self._lanes.setdefault(lane, Lane(lane, self._on_error, threads=threads, length=length))
        return found.put(call)

    def flush(self, until: float) -> bool:
        """Wait until the lanes have nothing to do, until the moment *until* at most; return whether that is so."""
        with self._lock:
            lanes = list(self._lanes.values())
        return all(lane.flush(max(0.0, until - time.monotonic())) for lane in lanes)

    def stop(self, timeout: float) -> None:
        """End all threads, see :meth:`Lane.stop`. The next :meth:`put` starts others."""
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.stop(timeout)
