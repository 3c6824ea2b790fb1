"""The Django signals that the toolkit sends.

Receivers run in the thread that found the event, which may be the reaper's: they must not block, and must not expect
the ORM's connections of the thread that the event is about. An exception in a receiver is logged and goes no further.
"""

from __future__ import annotations

from django.dispatch import Signal

#: A transaction has run no statement for ``IDLE_IN_TRANSACTION_AFTER`` seconds, or a request ended and left one open.
#:
#: Arguments: ``alias``, ``request`` (a label such as ``"GET /orders/7/"``, or ``None``), ``idle_for`` (seconds),
#: ``server_pid``, ``thread_id``, ``action`` (``"log"``, ``"terminate"`` or ``"rollback"``).
idle_in_transaction_detected = Signal()

#: A connection was checked out for ``HELD_TOO_LONG_AFTER`` seconds without a transaction and without a statement.
#:
#: Arguments: ``alias``, ``request``, ``held_for`` (seconds), ``idle_for`` (seconds), ``server_pid``, ``thread_id``,
#: ``pinned_by`` (a tuple of reasons).
connection_held_too_long = Signal()

#: A thread ended, or a connection wrapper was collected, with a connection checked out, and it went back to its pool.
#:
#: Arguments: ``alias``, ``thread_id``, ``server_pid``, ``held_for`` (seconds), ``in_transaction`` (what was open has
#: been rolled back).
connection_reclaimed = Signal()

#: Inherited connections were discarded in a forked process.
#:
#: Arguments: ``count``, ``aliases``.
connections_discarded = Signal()
