"""Settings of the example shop.

The environment chooses what is compared; each variable has a default that works:

``CONN_HYGIENE``    "on", or "off": the same site without the toolkit.
``DATABASE_URL``    the database; without it, a throwaway PostgreSQL is started.
``DATABASE_POOL``   size of Django's native connection pool; 0 means no pool.
``CONN_MAX_AGE``    seconds, or "None"; Django takes it only without a pool.
``TENANT_ROLE``     which role the tenants' pages assume; "" for the user's own, if that is no superuser.
``CARRIER_URL``     where the carrier's API answers.
``REPORTS``         settings of the toolkit, as JSON.
``COMPARED``        as JSON, where the shops answer that the first page sends its visitors to.
``TOOLS``           "1" for the admin, and for the debug toolbar where it is asked for.
``WATCHED``         "1" in those shops: they tell what their pool's connections do.
``DEBUG``           "1" for Django's debug pages.
``SECRET_KEY``      needed only to run several processes behind one address.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from django.core.management.utils import get_random_secret_key

from example_project.embedded import database, database_url

DEBUG = os.environ.get("DEBUG") == "1"

# Nothing that the shop signs has to survive a restart, so a new key each time
# is better than one that lies in a public repository.
SECRET_KEY = os.environ.get("SECRET_KEY") or get_random_secret_key()

ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.staticfiles",
    "example_project.shop",
    "example_project.bank",
]

MIDDLEWARE = [
    "example_project.shop.middleware.page_middleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "example_project.shop.middleware.BusyDatabaseMiddleware",
    "example_project.shop.tenants.SchemaTenantMiddleware",
    "example_project.shop.tenants.PolicyTenantMiddleware",
]

# What "make serve" has beside the shop. Where something is measured, it would be measured, too.
TOOLS = os.environ.get("TOOLS") == "1"
CONTEXT_PROCESSORS = ["example_project.shop.context_processors.toolkit"]
if TOOLS:
    INSTALLED_APPS += [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "debug_toolbar",
    ]
    MIDDLEWARE.insert(1, "debug_toolbar.middleware.DebugToolbarMiddleware")
    MIDDLEWARE += [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    CONTEXT_PROCESSORS += [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]
    DEBUG_TOOLBAR_PANELS = [
        "debug_toolbar.panels.history.HistoryPanel",
        "debug_toolbar.panels.timer.TimerPanel",
        "debug_toolbar.panels.sql.SQLPanel",
    ]
    DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": "example_project.shop.middleware.wants_toolbar"}

# These two lines are all that a project needs. The middleware comes first, so
# that it covers the queries of the others as well.
TOOLKIT = os.environ.get("CONN_HYGIENE", "on") != "off"
if TOOLKIT:
    INSTALLED_APPS.insert(0, "conn_hygiene")
    MIDDLEWARE.insert(0, "conn_hygiene.middleware.ConnectionHygieneMiddleware")
if TOOLKIT and TOOLS:
    if importlib.util.find_spec("conn_hygiene.contrib.admin"):
        INSTALLED_APPS.append("conn_hygiene.contrib.admin")
    if importlib.util.find_spec("conn_hygiene.contrib.debug_toolbar"):
        DEBUG_TOOLBAR_PANELS.append("conn_hygiene.contrib.debug_toolbar.panels.ConnectionsPanel")

# Limits, for trying them out: REPORTS='{"IDLE_IN_TRANSACTION_AFTER": 1}'.
CONN_HYGIENE = {
    "REPORT_UNCLOSED_CURSORS": True,
    # Where "manage.py connections status" in another terminal finds what was reported.
    "NOTICE_DIRECTORY": str(Path(tempfile.gettempdir(), f"shop-notices-{getpass.getuser()}")),
    **json.loads(os.environ.get("REPORTS", "{}")),
}

# What "make serve" starts beside this shop.
COMPARED = json.loads(os.environ.get("COMPARED", "{}"))
WATCHED = os.environ.get("WATCHED") == "1"

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": CONTEXT_PROCESSORS},
    },
]

# A small pool with a short patience: 32 threads share 4 connections, and a
# request that waits five seconds for one fails.
POOL_SIZE = int(os.environ.get("DATABASE_POOL", "4"))
POOL_TIMEOUT = 5
CONN_MAX_AGE = os.environ.get("CONN_MAX_AGE", "0")


def shop_database(**more: Any) -> dict[str, Any]:
    return database(
        database_url(),
        pool={"min_size": POOL_SIZE, "max_size": POOL_SIZE, "timeout": POOL_TIMEOUT} if POOL_SIZE else None,
        conn_max_age=None if CONN_MAX_AGE == "None" else int(CONN_MAX_AGE),
        **more,
    )


# The tenants' pages have a role of their own, since policies do not bind
# superusers. PostgreSQL brings this one along: it reads all tables, and is
# bound by their policies. Not by "assume_role": with that and a pool, Django
# waits for its own first connection.
TENANT_ROLE = os.environ.get("TENANT_ROLE", "pg_read_all_data")

DATABASES = {
    "default": shop_database(),
    "tenants": shop_database(
        OPTIONS={"options": f"-c role={TENANT_ROLE}"} if TENANT_ROLE else {},
        TEST={"MIRROR": "default"},
    ),
}

CARRIER_URL = os.environ.get("CARRIER_URL", "http://127.0.0.1:8001")

STATIC_URL = "/static/"

USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
    },
    "loggers": {
        # INFO tells what pinned a connection, and what was reclaimed or
        # discarded.
        "conn_hygiene": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "example_project": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # With DEBUG off Django would mail errors to ADMINS; the shop prints them.
        "django.request": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
    },
}
