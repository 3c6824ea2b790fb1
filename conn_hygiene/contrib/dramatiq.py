"""For Dramatiq: close what a message opened, as Django does at the end of a request."""

from __future__ import annotations

from typing import Any

import dramatiq

from conn_hygiene.scopes import closing_connections


class ConnectionHygieneMiddleware(dramatiq.Middleware):
    """Runs each message inside :func:`~conn_hygiene.closing_connections`.

    Dramatiq's worker threads live on between messages, and so would their connections. With this middleware, they go
    back to the pool, or are closed, after each message, whatever became of it; a transaction that an actor leaves open
    is rolled back, with a warning. What middleware does before this one, or after it on the way back, is not covered;
    nor is an asynchronous actor, which runs in another thread: decorate its function.
    """

    def __init__(self) -> None:
        # Entered by many threads at once: each has entries of its own.
        self._closing = closing_connections()

    def before_process_message(self, *args: Any, **kwargs: Any) -> None:
        """Begin to watch what the message opens."""
        self._closing.__enter__()

    def after_process_message(self, *args: Any, **kwargs: Any) -> None:
        """Close what it opened."""
        self._closing.__exit__(None, None, None)

    after_skip_message = after_process_message
