"""Settings of a site under measurement; its contender comes from the environment.

``DATABASE_URL``       where the contender connects to.
``BENCH_DATABASE``     what its entry of ``DATABASES`` has beside that, as JSON.
``BENCH_ALIASES``      how many entries of that kind there are; one by default.
``BENCH_TOOLKIT``      its ``CONN_HYGIENE``, as JSON; without the variable the toolkit is not installed.
"""

from __future__ import annotations

import json
import os
from typing import Any

from django.core.management.utils import get_random_secret_key

from example_project.embedded import database

SECRET_KEY = get_random_secret_key()
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "example_project.benchmarks.views"

INSTALLED_APPS = ["example_project.shop"]
# What "startproject" gives, without sessions and users: those would query, too.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

CONN_HYGIENE: dict[str, Any] = {}
if "BENCH_TOOLKIT" in os.environ:
    CONN_HYGIENE = json.loads(os.environ["BENCH_TOOLKIT"])
    INSTALLED_APPS.insert(0, "conn_hygiene")
    MIDDLEWARE.insert(0, "conn_hygiene.middleware.ConnectionHygieneMiddleware")

DATABASES = {
    f"alias_{number}" if number else "default": database(
        os.environ["DATABASE_URL"], **json.loads(os.environ.get("BENCH_DATABASE", "{}"))
    )
    for number in range(int(os.environ.get("BENCH_ALIASES", "1")))
}

# Requests that fail are counted; a traceback for each of them would be measured as well.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django.request": {"level": "CRITICAL"}}}
