"""What a WSGI server loads. ``QUERY_ON_LOAD`` makes it a master that has used the database before it forks."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

if os.environ.get("QUERY_ON_LOAD"):
    from tests.workers.site.urls import who

    print("Loaded by", who(), flush=True)
