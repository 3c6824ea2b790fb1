"""The Django signals: one is sent for each event that has one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from conn_hygiene import events, signals
from conn_hygiene.leases.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.dispatch import Signal

_logger = logging.getLogger("conn_hygiene.signals")


def _send(signal: Signal, facts: dict[str, Any]) -> None:
    """Send *signal*, from the class of leases, so that a receiver's failure stays the receiver's."""
    for receiver, response in signal.send_robust(sender=Lease, **facts):
        if isinstance(response, Exception):
            _logger.error("A receiver of a conn_hygiene signal failed: %r", receiver, exc_info=response)


_LISTENERS: dict[type[events.Event], Callable[[Any], None]] = {
    events.PoolExhausted: lambda event: _send(signals.pool_exhausted, event.facts()),
    events.IdleInTransaction: lambda event: _send(signals.idle_in_transaction_detected, event.facts()),
    events.LeftOpen: lambda event: _send(signals.idle_in_transaction_detected, event.as_idle_in_transaction()),
    events.HeldTooLong: lambda event: _send(signals.connection_held_too_long, event.with_reasons()),
    events.Reclaimed: lambda event: _send(signals.connection_reclaimed, event.facts()),
    events.Replaced: lambda event: _send(signals.connection_replaced, event.facts()),
    events.UnclosedCursor: lambda event: _send(signals.unclosed_cursor_detected, event.facts()),
    events.ConnectionsDiscarded: lambda event: _send(
        signals.connections_discarded, {"count": event.count, "aliases": event.aliases}
    ),
}


def listen() -> None:
    """Have a signal sent for each of these events from now on."""
    for kind, listener in _LISTENERS.items():
        events.listen(kind, listener)
