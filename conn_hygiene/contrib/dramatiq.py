"""For Dramatiq: a message is to the toolkit what a request is.

Dramatiq's worker threads live on between messages, and keep the connections that their actors opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import close_old_connections
from dramatiq import Middleware

from conn_hygiene import installation  # noqa: F401 - has what is left open be told
from conn_hygiene.masking import printable
from conn_hygiene.scopes import release_between_queries
from conn_hygiene.transactions import left_open
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy


class ConnectionHygieneMiddleware(Middleware):
    """Gives connections back between the queries of an actor, and at its end: ``broker.add_middleware(...)``.

    Each message is processed inside :func:`~conn_hygiene.release_between_queries`; reports and
    :func:`~conn_hygiene.snapshot` have its actor's name where they have a request's. After it, connections go back to
    the pool, or are closed as ``CONN_MAX_AGE`` says; a transaction that is still open is rolled back, with a warning.

    An ``async def`` actor queries in another thread: decorate it with :func:`~conn_hygiene.closing_connections`.
    """

    def __init__(self) -> None:
        # One for all threads: what is entered is kept by context.
        self._release = release_between_queries()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Begin with connections that are fit for use, as a request does."""
        serving.label = printable(f"actor {message.actor_name}")
        left_open.request_started()
        close_old_connections()
        self._release.__enter__()

    def after_process_message(self, broker: Broker, message: MessageProxy, **outcome: Any) -> None:
        """Leave nothing checked out and nothing open, whatever the outcome."""
        self._release.__exit__(None, None, None)
        left_open.request_finished()
        close_old_connections()

    # Another middleware's wish, perhaps before this one had its turn: that does no harm.
    after_skip_message = after_process_message
