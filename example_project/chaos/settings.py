"""Settings of the site that is put to the test: the shop and a bank.

``DATABASE_URL``      the database, behind whatever will break.
``CONN_HYGIENE``      "on", or "off": the same site without the toolkit.
``HEALTH_CHECKS``     "1" for Django's ``CONN_HEALTH_CHECKS``.
``CARRIER_URL``       where the carrier's API answers.
"""

from __future__ import annotations

import os
from typing import Any

from django.core.management.utils import get_random_secret_key

from example_project.chaos import POOL_SIZE, POOL_TIMEOUT
from example_project.embedded import database

SECRET_KEY = get_random_secret_key()
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "example_project.chaos.urls"

INSTALLED_APPS = ["example_project.shop", "example_project.bank"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "example_project.bank.views.ErrorsAreTold",
]

TOOLKIT = os.environ.get("CONN_HYGIENE", "on") != "off"
CONN_HYGIENE: dict[str, Any] = {}
if TOOLKIT:
    INSTALLED_APPS.insert(0, "conn_hygiene")
    MIDDLEWARE.insert(0, "conn_hygiene.middleware.ConnectionHygieneMiddleware")

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["example_project.shop.context_processors.toolkit"]},
    },
]

DATABASES = {
    "default": database(
        os.environ["DATABASE_URL"],
        pool={"min_size": POOL_SIZE, "max_size": POOL_SIZE, "timeout": POOL_TIMEOUT},
        CONN_HEALTH_CHECKS=os.environ.get("HEALTH_CHECKS") == "1",
    ),
}

CARRIER_URL = os.environ.get("CARRIER_URL", "http://127.0.0.1:8001")

# Requests that fail are counted by those who made them.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {
        "conn_hygiene": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "django.request": {"level": "CRITICAL"},
    },
}
