"""For OpenTelemetry: the metrics of pools and connections, by its semantic conventions (the extra ``opentelemetry``).

They are those of "Semantic conventions for database client metrics", "Connection pools", which are in development: the
names are written out here, since the constants for them are of packages that promise nothing yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conn_hygiene import __version__, events
from conn_hygiene.contrib.extras import extra
from conn_hygiene.pools import base as pools
from conn_hygiene.reports.counters import BOUNDS
from conn_hygiene.reports.snapshot import PoolInfo, held_by_alias, pool_stats

with extra("opentelemetry", needs="opentelemetry-api"):
    from opentelemetry.metrics import Observation, get_meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"

# The last one, infinity, is understood.
_BOUNDARIES = list(BOUNDS[:-1])


class _Instruments:
    """What one call of instrument() has made. A meter has no way to take any of it back: it falls silent."""

    def __init__(self, meter: Meter) -> None:
        self.silent = False
        self._observe(meter, "count", "{connection}", "Connections that are in the state.", _counts)
        self._observe(meter, "idle.max", "{connection}", "The maximum number of idle open connections.", _idle_max)
        self._observe(meter, "idle.min", "{connection}", "The minimum number of idle open connections.", _idle_min)
        self._observe(meter, "max", "{connection}", "The maximum number of open connections.", _max)
        self._observe(meter, "pending_requests", "{request}", "Requests that wait for a connection.", _pending)
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "Time-outs that have occurred trying to obtain a connection from the pool.",
        )
        self._create_time = self._time(meter, "create_time", "The time it took to create a new connection.")
        self._wait_time = self._time(meter, "wait_time", "The time it took to obtain a connection from the pool.")
        self._use_time = self._time(meter, "use_time", "The time between obtaining a connection and returning it.")
        self._listeners: dict[type[events.Event], Callable[[Any], None]] = {
            events.PoolExhausted: self._exhausted,
            events.ConnectionOpened: self._opened,
            events.CheckedOut: self._checked_out,
            events.CheckedIn: self._checked_in,
        }

    def _observe(
        self, meter: Meter, name: str, unit: str, text: str, observe: Callable[[], Iterator[Observation]]
    ) -> None:
        def callback(options: CallbackOptions) -> Iterable[Observation]:
            return [] if self.silent else list(observe())

        meter.create_observable_up_down_counter(f"db.client.connection.{name}", [callback], unit, text)

    def _time(self, meter: Meter, name: str, text: str) -> Any:
        return meter.create_histogram(
            f"db.client.connection.{name}", "s", text, explicit_bucket_boundaries_advisory=_BOUNDARIES
        )

    def listen(self) -> None:
        for kind, listener in self._listeners.items():
            events.listen(kind, listener)

    def fall_silent(self) -> None:
        self.silent = True
        for kind, listener in self._listeners.items():
            events.unlisten(kind, listener)

    def _exhausted(self, event: events.PoolExhausted) -> None:
        # More than max_waiting are turned away at once.
        if event.error != "TooManyRequests":
            self._timeouts.add(1, {_POOL: event.alias})

    def _opened(self, event: events.ConnectionOpened) -> None:
        self._create_time.record(event.opened_in, {_POOL: event.alias})

    def _checked_out(self, event: events.CheckedOut) -> None:
        if event.waited_for is not None:
            # Without a pool, to wait for a connection is to have it opened.
            time = self._wait_time if event.pooled else self._create_time
            time.record(event.waited_for, {_POOL: event.alias})

    def _checked_in(self, event: events.CheckedIn) -> None:
        self._use_time.record(event.held_for, {_POOL: event.alias})


_current: _Instruments | None = None


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Have the connections of this process be measured: call it in an ``AppConfig.ready()``. Once, it is enough.

    The metrics are ``db.client.connection.count``, ``idle.max``, ``idle.min``, ``max``, ``pending_requests``,
    ``timeouts``, ``create_time``, ``wait_time`` and ``use_time``. The name of a pool is its alias; an alias without a
    pool has a count of those in use, ``create_time`` and ``use_time``.

    The times are recorded as they pass, in the thread that passes them, with its context: a few microseconds for each
    checkout. All else is asked when it is read.

    :param meter_provider: the global one by default.
    """
    global _current  # noqa: PLW0603 - one process, one set of instruments
    if _current is None:
        _current = _Instruments(get_meter("conn_hygiene", __version__, meter_provider))
        _current.listen()


def uninstrument() -> None:
    """Stop measuring. A reader may go on exporting what was recorded before."""
    global _current  # noqa: PLW0603 - as above
    if _current is not None:
        _current.fall_silent()
        _current = None


def _counts() -> Iterator[Observation]:
    found = pool_stats()
    for pool in found:
        yield Observation(pool.available, {_POOL: pool.alias, _STATE: "idle"})
        yield Observation(max(0, pool.size - pool.available), {_POOL: pool.alias, _STATE: "used"})
    pooled = {pool.alias for pool in found}
    for alias, states in held_by_alias().items():
        if alias not in pooled:
            yield Observation(sum(states.values()), {_POOL: alias, _STATE: "used"})


def _idle_max() -> Iterator[Observation]:
    # psycopg_pool keeps what it has for max_idle seconds. How many SQLAlchemy's keep is not among its numbers.
    native = pools.native_pools()
    return (_of(pool, pool.max_size) for pool in pool_stats() if pool.max_size and pool.alias in native)


def _idle_min() -> Iterator[Observation]:
    return (_of(pool, pool.min_size) for pool in pool_stats())


def _max() -> Iterator[Observation]:
    # 0 is for no limit, of which there is no number.
    return (_of(pool, pool.max_size) for pool in pool_stats() if pool.max_size)


def _pending() -> Iterator[Observation]:
    return (_of(pool, pool.waiting) for pool in pool_stats())


def _of(pool: PoolInfo, number: int) -> Observation:
    return Observation(number, {_POOL: pool.alias})
