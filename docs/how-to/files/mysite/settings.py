"""A project for the how-to guides. Host, port, user and password are libpq's: PGHOST, PGPORT, PGUSER, PGPASSWORD."""

import os

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "mysite.urls"
ASGI_APPLICATION = "mysite.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "conn_hygiene",
    "procrastinate.contrib.django",
    "orders",
]

MIDDLEWARE = [
    "conn_hygiene.middleware.ConnectionHygieneMiddleware",
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "mysite"),
        "OPTIONS": {"pool": {"min_size": 0, "max_size": 2, "timeout": 5}},
    },
}
