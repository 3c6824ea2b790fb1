"""What an ASGI server loads; as for WSGI."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

application = get_asgi_application()

if os.environ.get("QUERY_ON_LOAD"):
    from tests.workers.site.urls import who

    print("Loaded by", who(), flush=True)
