"""What stands on a wrapper that has no lease yet, from when it is made to when it has connected.

Each stands on the instance, in front of the method of that name. What the toolkit has to see of a first ``connect()``
is over when the lease begins, which is made for a connection that is there.
"""

from __future__ import annotations

import weakref
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import internals
from conn_hygiene.leases import checkouts, exhausted
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import native, sqlalchemy

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.events import Replaced
    from conn_hygiene.leases.keeper import Keeper

_GET_NEW = "get_new_connection"
_CONNECT = "connect"
_ENSURE = "ensure_connection"
_GET_STATE = "__getstate__"


def put_on(wrapper: BaseDatabaseWrapper, keeper: Keeper) -> None:
    """Have the wait of *wrapper* for its first connection be known to :func:`take_off`.

    *keeper* is told if it is about to wait. Nothing is left of a first connection that could not be set up.
    """
    wrapper.__dict__[_GET_NEW] = _FirstConnect(wrapper, keeper)
    wrapper.__dict__[_GET_STATE] = _PlainState(wrapper)
    if internals.LEASES.available:
        wrapper.__dict__[_ENSURE] = _FirstEnsure(wrapper)
        # Not where Django's test classes forbid it.
        wrapper.__dict__.setdefault(_CONNECT, _WholeConnect(wrapper))


def take_off(wrapper: BaseDatabaseWrapper) -> tuple[float | None, list[Replaced]]:
    """Undo :func:`put_on`; return what is known of the first connection, if there was one.

    That is for how many seconds it was waited for, and what is to be told of those that were passed over.
    """
    whole = wrapper.__dict__.get(_CONNECT)
    if isinstance(whole, _WholeConnect):
        del wrapper.__dict__[_CONNECT]
    elif isinstance(getattr(whole, "wrapped", None), _WholeConnect):
        # Django's test classes will put it back.
        whole.wrapped = type(wrapper).connect.__get__(wrapper)  # type: ignore[union-attr]
    wrapper.__dict__.pop(_GET_STATE, None)
    if isinstance(wrapper.__dict__.get(_ENSURE), _FirstEnsure):
        del wrapper.__dict__[_ENSURE]
    first = wrapper.__dict__.get(_GET_NEW)
    if not isinstance(first, _FirstConnect):
        return None, []
    del wrapper.__dict__[_GET_NEW]
    return first.waited, first.replaced


class _StandIn:
    """Stands on a wrapper, which it knows weakly: that has it as an attribute, and is collected as its thread ends."""

    __slots__ = ("_wrapper",)

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self._wrapper = weakref.ref(wrapper)


class _FirstConnect(_StandIn):
    """Stands on a wrapper without a lease for its ``get_new_connection()``, to see how long the first one takes."""

    __slots__ = ("_keeper", "replaced", "waited")

    def __init__(self, wrapper: BaseDatabaseWrapper, keeper: Keeper) -> None:
        super().__init__(wrapper)
        self._keeper = keeper
        self.waited: float | None = None
        self.replaced: list[Replaced] = []

    def __call__(self, conn_params: dict[str, Any]) -> Any:
        """Call the wrapper's own, measure it, and tell of a pool that had no connection."""
        wrapper: Any = self._wrapper()
        pool = getattr(wrapper, "pool", None)
        # Before it opens.
        native.watch(pool)
        _, spare = pools.queue_and_spare(pool)
        began = monotonic()
        if pool is not None and not spare:
            self._keeper.wanted(spare)
        try:
            get = partial(type(wrapper).get_new_connection, wrapper)
            self.replaced = []
            connection = checkouts.working_one(wrapper, get, conn_params, asked_at=began, replaced=self.replaced)
        except Exception as error:
            exhausted.tell_if_exhausted(wrapper, self._keeper, began, error)
            raise
        try:
            self.waited = monotonic() - began
            driver = sqlalchemy.driver_connection(connection)
            if driver is not None:
                # Django asks before there is a lease, and with a cursor: what its backend sets then would not be seen.
                wrapper.__dict__.setdefault("pg_version", driver.pgconn.server_version)
                if driver is not connection:
                    sqlalchemy.first_look(driver, wrapper)
        except BaseException:
            # Of a signal handler: nobody else has the connection yet. A proxy gives it back as it is collected.
            if isinstance(connection, psycopg.Connection):
                pools.give_back(connection)
            raise
        return connection


class _FirstEnsure(_StandIn):
    """Stands on a wrapper without a lease for its ``ensure_connection()``, for the note of a pool that had none."""

    __slots__ = ()

    def __call__(self) -> None:
        """Call the wrapper's own, or what somebody has put in its place."""
        wrapper: Any = self._wrapper()
        exhausted.ensure_noted(partial(type(wrapper).ensure_connection, wrapper))


class _WholeConnect(_StandIn):
    """Stands on a wrapper without a lease for its ``connect()``: what fails on the way leaves no half of a session."""

    __slots__ = ()

    def __call__(self) -> None:
        """Connect as the wrapper's own does. What it cannot set up is given back, closed; the next use begins anew."""
        wrapper: Any = self._wrapper()
        try:
            type(wrapper).connect(wrapper)
        except BaseException:
            _drop_unprepared(wrapper)
            raise


class _PlainState(_StandIn):
    """Stands on a wrapper with the above for its ``__getstate__()``, by which it is copied: no copy has any of them.

    They would connect the wrapper that they were made for.
    """

    __slots__ = ()

    def __call__(self) -> dict[str, Any]:
        """Return the attributes that the wrapper would have without the toolkit."""
        return {name: value for name, value in vars(self._wrapper()).items() if not isinstance(value, _StandIn)}


def _drop_unprepared(wrapper: BaseDatabaseWrapper) -> None:
    lease = lease_of(wrapper)
    if lease is not None:
        # A receiver of `connection_created` has failed, after the toolkit's own.
        lease.checkout_failed()
        lease.forget()
        return
    connection: Any = wrapper.__dict__.get("connection")
    if isinstance(connection, psycopg.Connection):
        # What a backend does with it that is left alone, only that backend knows.
        if pools.understands(wrapper):
            wrapper.__dict__["connection"] = None
            connection.pgconn.finish()
            pools.tell(pools.give_back(connection))
    elif sqlalchemy.driver_connection(connection) is not None:
        wrapper.__dict__["connection"] = None
        connection.invalidate()
