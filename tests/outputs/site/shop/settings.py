# mypy: ignore-errors
"""Settings of the small shop that most pages speak of. ``SETTINGS`` has some more, as JSON."""

import json
import os

from example_project.embedded import database

SECRET_KEY = "not a secret"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = ["conn_hygiene", "shop"]
MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware", "shop.middleware.tenant"]

CONN_HYGIENE = {}
POOL = {"min_size": 2, "max_size": 4, "timeout": 5}
ALIASES = ["default"]
TENANTS = False

TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [os.path.dirname(__file__)]},
]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
    "loggers": {"conn_hygiene": {"handlers": ["console"], "level": "INFO"}},
}

globals().update(json.loads(os.environ.get("SETTINGS", "{}")))

_POOLS = POOL if all(isinstance(value, dict) for value in POOL.values()) else dict.fromkeys(ALIASES, POOL)
DATABASES = {alias: database(os.environ["DATABASE_URL"], pool=_POOLS[alias]) for alias in ALIASES}
