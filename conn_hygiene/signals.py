"""The Django signals that the toolkit sends, one for each of some events of :mod:`conn_hygiene.events`.

Receivers run in the owner's thread, or in a thread of the toolkit's that makes reports, where a slow receiver delays
further reports. So a receiver must not expect to run in the thread that the event is about, and to have the connections
of that thread. An exception in a receiver is logged and goes no further.
"""

from __future__ import annotations

from django.dispatch import Signal

#: A transaction has run no statement for ``IDLE_IN_TRANSACTION_AFTER`` seconds, or a request ended and left one open.
#:
#: Arguments: ``alias``, ``server_pid``, ``thread_id``, ``thread_name``, ``request`` (a label such as
#: ``"GET /orders/7/"``, or ``None``), ``open_for`` and ``idle_for`` (seconds), ``statement`` (the last one, without its
#: parameters, and as ``LOG_STATEMENTS`` says), ``where_began`` and ``where_now`` (places in the code such as
#: ``"/app/shop/views.py:12 in pay"``, or ``None``), ``by_atomic_requests``, ``action`` (``"log"``, ``"terminate"`` or
#: ``"rollback"``), ``stack_began`` and ``stack_now`` (the whole stacks, by ``str()``; ``None`` without
#: ``FULL_STACKS``).
idle_in_transaction_detected = Signal()

#: A connection was checked out for ``HELD_TOO_LONG_AFTER`` seconds without a transaction and without a statement. A
#: transaction in which nothing has run yet is none to the server: it is sent here, as what keeps the connection.
#:
#: Arguments: ``alias``, ``server_pid``, ``thread_id``, ``thread_name``, ``request`` (a label such as
#: ``"GET /orders/7/"``, or ``None``), ``held_for`` and ``idle_for`` (seconds), ``statement`` (the last one, without its
#: parameters, and as ``LOG_STATEMENTS`` says), ``where_checked_out`` and ``where_now`` (places in the code such as
#: ``"/app/shop/views.py:12 in pay"``, or ``None``), ``pinned_by`` (a tuple of reasons), ``action`` (``"release"`` if it
#: was given back, else ``"log"``), ``stack_checked_out`` and ``stack_now`` (the whole stacks, by ``str()``; ``None``
#: without ``FULL_STACKS``), ``kept_because`` (what else keeps it, such as ``"hold_connection is around"``, or ``None``)
#: and ``where_began`` (where a transaction began in which nothing has run; ``None`` without one, or if not known).
connection_held_too_long = Signal()

#: A thread ended, or a connection wrapper was collected, with a connection checked out, and it went back to its pool.
#:
#: Arguments: ``alias``, ``thread_id``, ``thread_name``, ``request`` (a label such as ``"GET /orders/7/"``, or
#: ``None``), ``server_pid``, ``held_for`` (seconds), ``in_transaction`` (whether a transaction was open, which has been
#: rolled back), ``thread_runs`` (the function that the thread was started for), ``where_checked_out`` and
#: ``where_began`` (places in the code such as ``"/app/shop/views.py:12 in pay"``, or ``None``), ``stack_checked_out``
#: and ``stack_began`` (the whole stacks, by ``str()``; ``None`` without ``FULL_STACKS``).
connection_reclaimed = Signal()

#: The server had closed a connection, or it could not write any more, and another one took its place before anybody
#: noticed.
#:
#: Arguments: ``alias``, ``server_pid`` (that of the session that was given up), ``thread_id``, ``request`` (a label
#: such as ``"GET /orders/7/"``, or ``None``), ``idle_for`` (seconds), ``could_not_write`` (whether it was that, and
#: the server had not closed it).
connection_replaced = Signal()

#: A cursor was garbage-collected without having been closed. Sent for each if ``REPORT_UNCLOSED_CURSORS`` is on; only
#: the log is limited to one record a minute for each line of code.
#:
#: Arguments: ``alias``, ``thread_id``, ``request`` (a label such as ``"GET /orders/7/"``, or ``None``),
#: ``where_opened`` (a place in the code such as ``"/app/shop/views.py:12 in pay"``), ``stack_opened`` (the whole stack,
#: by ``str()``; ``None`` without ``FULL_STACKS``).
unclosed_cursor_detected = Signal()

#: Inherited connections were discarded in a forked process.
#:
#: Arguments: ``count`` (how many), ``aliases`` (of which aliases, sorted).
connections_discarded = Signal()

#: A checkout failed, since the pool had no connection in time, or too many waited already. Sent for each failure, in
#: the thread that gets the exception; only the log is limited to one record a minute for each pool. A receiver that
#: queries may fail in the same way; for that, no signal is sent.
#:
#: Arguments: ``alias``, ``thread_id``, ``thread_name``, ``request``, ``waited_for`` (seconds), ``error`` (the name of
#: the exception), ``waiting`` (how many others wait), ``size``, ``max_size``, ``available``, ``held``, ``returning``
#: and ``connect_errors`` (numbers of the pool), ``holders`` (a tuple of :class:`.events.Holder`, the longest first, ten
#: at most); see :class:`.events.PoolExhausted`.
pool_exhausted = Signal()
