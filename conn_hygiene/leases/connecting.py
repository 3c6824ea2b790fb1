"""Which ``connect()`` of a wrapper is under way, for whatever may not happen meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import weakref

    from django.db.backends.base.base import BaseDatabaseWrapper


class Connect:
    """Stands for a ``connect()`` that is under way, for as long as its caller keeps it.

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
    """A ``connect()`` that may be under way. Guarded by the lock of the lease that has it."""

    __slots__ = ("attempt", "marker")

    def __init__(self) -> None:
        #: One that tells of its end.
        self.attempt: weakref.ref[Connect] | None = None
        #: While one runs that does not tell of its end, the wrapper's ``run_on_commit`` is this very list:
        #: ``connect()`` replaces it as its last act, and there is no other sign.
        self.marker: list[Any] | None = None

    def is_under_way(self) -> bool:
        """Return whether one that tells of its end has not done so yet."""
        return self.attempt is not None and self.attempt() is not None

    def is_checking_out(self) -> bool:
        """Return whether a checkout is under way that sets nothing up but what the owner has set before."""
        attempt = None if self.attempt is None else self.attempt()
        return attempt is not None and attempt.is_checkout

    def is_setting_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether any is under way."""
        return self.is_under_way() or (self.marker is not None and wrapper.run_on_commit is self.marker)
