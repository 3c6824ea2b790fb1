"""Which ``connect()`` of a wrapper is running, for whatever may not happen meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import weakref

    from django.db.backends.base.base import BaseDatabaseWrapper


class Connect:
    """Stands for a ``connect()`` that is running, for as long as its caller keeps it.

    Should an exception of a signal handler keep the caller from telling of the end, that is seen all the same.
    """

    __slots__ = ("__weakref__", "is_checkout")

    def __init__(self, *, is_checkout: bool = False) -> None:
        #: Whether nothing is set up on the way but what the owner has set in the session before.
        self.is_checkout = is_checkout


class Incoming:
    """Stands for a connection on its way from a pool into a lease, for as long as nobody else answers for it.

    Whoever has got it gives it back after an exception of a signal handler, unless the lease has had it by then: a
    query of such a handler may have given it back already, and it may be somebody else's.
    """

    #: Whether the lease has it, or has had it, or it has been given back.
    is_taken = False


class Connecting:
    """What tells whether a ``connect()`` of a wrapper is running. Guarded by the lock of the lease that has it."""

    __slots__ = ("attempt", "marker")

    def __init__(self) -> None:
        #: The ``connect()`` that tells of its end, which each does once the wrapper has a lease; None if there is none
        #: whose end was not told.
        self.attempt: weakref.ref[Connect] | None = None
        #: The list that was put into the wrapper's ``run_on_commit`` for a ``connect()`` that does not tell of its end:
        #: it replaces that list as its last act, and there is no other sign. None if no list was put there.
        self.marker: list[Any] | None = None

    def is_under_way(self) -> bool:
        """Return whether the ``connect()`` of :attr:`attempt` is running; one that an exception has ended is not."""
        return self.attempt is not None and self.attempt() is not None

    def is_checking_out(self) -> bool:
        """Return whether a checkout is under way that sets nothing up but what the owner has set before."""
        attempt = None if self.attempt is None else self.attempt()
        return attempt is not None and attempt.is_checkout

    def is_setting_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether any ``connect()`` of *wrapper* is running: that of :attr:`attempt`, or of :attr:`marker`."""
        return self.is_under_way() or (self.marker is not None and wrapper.run_on_commit is self.marker)
