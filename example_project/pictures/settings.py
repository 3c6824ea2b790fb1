"""A site of a few lines: ``CONN_HYGIENE`` is "off" for plain Django, or the toolkit's settings as JSON."""

from __future__ import annotations

import json
import os

from example_project.embedded import database, database_url

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "example_project.pictures.urls"
INSTALLED_APPS = []
MIDDLEWARE = []

if os.environ["CONN_HYGIENE"] != "off":
    CONN_HYGIENE = json.loads(os.environ["CONN_HYGIENE"])
    INSTALLED_APPS = ["conn_hygiene"]
    MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]

DATABASES = {"default": database(database_url(), pool={"min_size": 2, "max_size": 2, "timeout": 30})}
