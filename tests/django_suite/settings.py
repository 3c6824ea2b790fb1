"""Settings for Django's suite: two databases on PostgreSQL, each with the native pool."""

from __future__ import annotations

import os

from example_project.embedded import database, database_url
from tests.django_suite import RUN_VARIABLE

SECRET_KEY = "django_suite"
USE_TZ = False
# The suite creates many users; a slow hash would only cost time.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TEST_RUNNER = "tests.django_suite.runner.Runner"

# A short timeout: a connection that is never given back should fail its test, and not add half a minute each time.
_POOL = {"timeout": 10}
# Without names of their own, both would be taken for the same database, as would those of another run.
_RUN = os.environ.get(RUN_VARIABLE, "")
DATABASES = {
    "default": database(database_url(), pool=_POOL, TEST={"NAME": f"test_django_default{_RUN}"}),
    "other": database(database_url(), pool=_POOL, TEST={"NAME": f"test_django_other{_RUN}"}),
}
