"""What a lease needs from the outside. A protocol: the reaper knows leases, and not the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.leases.returns import Return
    from conn_hygiene.reports.counters import Counters


class Keeper(Protocol):
    """What a lease needs from the outside: who lists the leases, counts, and ends the idle ones."""

    @property
    def counters(self) -> Counters:
        """The process's totals."""

    def checked_out(self, lease: Lease) -> None:
        """Take note that *lease* has a connection; it must stay reachable until :meth:`checked_in`."""

    def wanted(self, spare: Sequence[Any]) -> None:
        """Take note that somebody is about to wait for a connection of the pool that has none in *spare*."""

    def checked_in(self, lease: Lease) -> None:
        """Take note that *lease* has no connection any more."""

    def ensure_running(self) -> None:
        """See to it that somebody ends leases. Called under no lock."""

    def leaving(self, returning: Return) -> None:
        """Take note that a connection is about to be taken out of its lease: from here on it can be found."""

    def carry_back(self, returning: Return, *, here: bool) -> None:
        """Have *returning* carried out: *here* and now, or wherever that can make nobody else wait."""

    def rescue(self, lease: Lease) -> None:
        """Carry back here what was taken out of *lease* when an exception of a signal handler came in between."""

    def call_at(self, deadline: float, call: Callable[[], None]) -> None:
        """Have *call*, which must not block, called when *deadline* on the monotonic clock has come."""

    def tell(self, report: Callable[..., None], *facts: Any) -> None:
        """Have a *report* made where that makes nobody wait."""

    def returned(self, returning: Return) -> None:
        """Forget *returning*, which is where it belongs."""

    def wait_for_returns(self, *, lease: Lease | None = None, alias: str | None = None) -> None:
        """Wait until what was taken out of *lease*, or out of any of *alias*, is where it belongs; with a limit."""

    def parked(self, lease: Lease, deadline: float) -> None:
        """End *lease* at *deadline* on the monotonic clock, unless it is taken back before."""

    def cursor_lost(self, lease: Lease, cursor: weakref.ref[Any]) -> None:
        """Settle for a cursor that was collected; called from a finaliser, so it may take no lock."""

    def replaced(self, lease: Lease, server_pid: int, idle_for: float) -> None:
        """Report that another connection took the place of one that the server had closed."""

    def wrapper_lost(self, lease: Lease) -> None:
        """Reclaim what *lease* holds: its wrapper was collected; called from a finaliser, as above."""
