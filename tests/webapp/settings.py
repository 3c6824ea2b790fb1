"""Settings of a site that the tests start under a real server."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.webapp.urls"
MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
