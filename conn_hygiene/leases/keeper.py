"""What a lease needs from the outside. A protocol: the reaper knows leases, and not the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    import psycopg

    from conn_hygiene.events import Event
    from conn_hygiene.leases.claim import Claim
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.leases.returns import Return, TimeLimit


class Tally(Protocol):
    """Who counts the checkouts of one alias. Called under the lease's lock, and takes none but its own."""

    def checked_out(self, waited: float | None) -> None:
        """Count a checkout that was waited for for *waited* seconds, None if that is not known."""

    def checked_in(self, held: float, used: float, *, released: bool) -> None:
        """Count the end of a checkout, of *held* seconds, *used* of them; *released* between queries."""


class Keeper(Protocol):
    """What a lease needs from the outside: who lists the leases, counts, and ends the idle ones."""

    def tally_of(self, alias: str) -> Tally:
        """Return who counts the checkouts of *alias*: the same object at each call."""

    def leases(self) -> list[Lease]:
        """Return the leases that hold a connection now. Called under no lock."""

    def returning_to(self, pool: object) -> list[psycopg.Connection[Any]]:
        """Return the connections that are on their way back to *pool*. Called under no lock."""

    def checked_out(self, lease: Lease) -> None:
        """Take note that *lease* has a connection; it must stay reachable until :meth:`checked_in`."""

    def wanted(self, spare: Sequence[Any]) -> None:
        """Take note that somebody is about to wait for a connection of the pool that has none in *spare*."""

    def outlives_request(self, close_at: float) -> None:
        """Take note that a connection without a pool has outlived its request, until *close_at* at least."""

    def checked_in(self, lease: Claim) -> None:
        """Take note that *lease* has no connection any more."""

    def ensure_running(self) -> None:
        """See to it that somebody ends leases. Called under no lock."""

    def leaving(self, lease: Claim, returning: Return) -> None:
        """List *returning*, which is about to be taken out of *lease*, and forget that one, as :meth:`checked_in`."""

    def stays(self, lease: Claim, returning: Return) -> None:
        """Forget *returning*, which was not taken out of *lease* after all."""

    def carry_back(self, returning: Return, *, here: bool) -> None:
        """Have *returning* carried out: *here* and now, or wherever that can make nobody else wait."""

    def rescue(self, lease: Claim) -> None:
        """Carry back here what was taken out of *lease* when an exception of a signal handler came in between."""

    def hurry(self, lease: Claim) -> bool:
        """Carry back here what nobody has begun to; return whether the rest is another thread's, to be waited for."""

    def ring_at(self, deadline: float, limit: TimeLimit) -> None:
        """Have ``limit.expire()`` called when *deadline* on the monotonic clock has come, unless it is over by then."""

    def tell(self, report: Callable[..., None], *facts: Any) -> None:
        """Have a *report* made where that makes nobody wait."""

    def ask(self, alias: str, question: Callable[[], None]) -> None:
        """Have a *question* asked of the server of *alias* where that makes nobody wait, unless one waits there."""

    def left_open(self, lease: Lease, left_by: str) -> Callable[[], None] | None:
        """Return what tells that *left_by* leaves the transaction of *lease* open, to be called when it is over."""

    def publish_later(self, event: Event) -> None:
        """Publish *event* where that makes nobody wait."""

    def returned(self, returning: Return) -> None:
        """Forget *returning*, which is where it belongs, and wake who waits for it."""

    def wait_for_returns(self, *, lease: Lease | None = None, alias: str | None = None) -> None:
        """Wait until what was taken out of *lease*, or out of any of *alias*, is where it belongs; with a limit."""

    def parked(self, lease: Lease, deadline: float) -> None:
        """End *lease* at *deadline* on the monotonic clock, unless it is taken back before."""

    def cursor_lost(self, lease: Lease, cursor: weakref.ref[Any], *, is_of_checkout: bool) -> None:
        """Settle for a cursor that was collected, in its own checkout or after it.

        Called from a finaliser, so it may take no lock.
        """

    def wrapper_lost(self, lease: Claim) -> None:
        """Reclaim what *lease* holds: its wrapper was collected. Called from a finaliser, so it may take no lock."""
