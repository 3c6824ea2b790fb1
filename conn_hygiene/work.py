"""Which request a thread is serving.

Django runs the receivers of ``request_started`` and ``request_finished`` in the thread that serves the request, under
ASGI too, where it is the thread that owns the request's connections; so what belongs to the request is thread-local.
"""

from __future__ import annotations

import threading


class Serving(threading.local):
    """The request that this thread serves: its label, and the aliases that were in a transaction before it began.

    ``before`` is None while there is no request.
    """

    label: str | None = None
    before: frozenset[str] | None = None


serving = Serving()
