"""Settings of the tests: one PostgreSQL database behind every way that Django can connect to it."""

from __future__ import annotations

from example_project.embedded import database, database_url

SECRET_KEY = "tests"
USE_TZ = True
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["conn_hygiene", "tests.testapp"]

_URL = database_url()
# A mirror has connections of its own, and only takes over the name of the other's test database.
_MIRROR = {"MIRROR": "default"}

DATABASES = {
    # The timeout turns a connection that never comes back into a failure, and not a test run that hangs.
    "default": database(_URL, pool={"min_size": 1, "max_size": 4, "timeout": 5}),
    # Fewer connections than anybody would dare, for the stress test.
    "small": database(_URL, pool={"min_size": 3, "max_size": 3, "timeout": 30}, TEST=_MIRROR),
    "unpooled": database(_URL, TEST=_MIRROR),
    "persistent": database(_URL, conn_max_age=None, TEST=_MIRROR),
    # Another vendor beside PostgreSQL, to be left alone.
    "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
