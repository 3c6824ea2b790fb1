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

    __slots__ = ("__weakref__",)


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

    def is_setting_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether any is under way."""
        return self.is_under_way() or (self.marker is not None and wrapper.run_on_commit is self.marker)
