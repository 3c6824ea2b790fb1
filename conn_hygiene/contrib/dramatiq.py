"""For Dramatiq: a message is to the toolkit what a request is.

Dramatiq's worker threads live on between messages, and keep the connections that their actors opened.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from django.db import close_old_connections
from dramatiq import Middleware

from conn_hygiene import installation  # noqa: F401 - has what is left open be told
from conn_hygiene.contrib import jobs
from conn_hygiene.masking import printable
from conn_hygiene.transactions import left_open

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

logger = logging.getLogger("conn_hygiene.dramatiq")


class ConnectionHygieneMiddleware(Middleware):
    """Gives connections back between the queries of an actor, and at its end: ``broker.add_middleware(...)``.

    Each message is processed inside :func:`~conn_hygiene.release_between_queries`; reports and
    :func:`~conn_hygiene.snapshot` have its actor's name where they have a request's. After it, connections go back to
    the pool, or are closed as ``CONN_MAX_AGE`` says; a transaction that is still open is rolled back, with a warning.

    An ``async def`` actor queries in a thread of the message's own, whose connections are closed when it ends.
    """

    def __init__(self) -> None:
        # What is to be undone after the message that each thread processes.
        self._running = threading.local()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Begin with connections that are fit for use, as a request does."""
        label = printable(f"actor {message.actor_name}")
        stack = self._running.stack = ExitStack()
        stack.callback(close_old_connections)
        stack.callback(left_open.request_finished)
        jobs.begin(label)
        close_old_connections()
        stack.enter_context(jobs.covered("conn-hygiene-actor", label, logger))

    def after_process_message(self, broker: Broker, message: MessageProxy, **outcome: Any) -> None:
        """Leave nothing checked out and nothing open, whatever the outcome."""
        stack: ExitStack | None = vars(self._running).pop("stack", None)
        if stack is not None:
            stack.close()

    # Another middleware's wish, perhaps before this one had its turn: that does no harm.
    after_skip_message = after_process_message
