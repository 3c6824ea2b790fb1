"""Settings of a small site, for servers and task queues to serve. The environment says what differs between tests.

``DATABASE_URL``   a database of the test's own
``DATABASE_POOL``  size of the native pool; 0 for none
``URLS``           the module of other URLs than the site's own
``CONN_HYGIENE``   "off" for plain Django, else the setting, as JSON
"""

from __future__ import annotations

import json
import os

from example_project.embedded import database

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = os.environ.get("URLS", "tests.workers.site.urls")

_TOOLKIT = os.environ.get("CONN_HYGIENE", "{}")
INSTALLED_APPS = [] if _TOOLKIT == "off" else ["conn_hygiene"]
CONN_HYGIENE = {} if _TOOLKIT == "off" else json.loads(_TOOLKIT)

_SIZE = int(os.environ.get("DATABASE_POOL", "2"))
DATABASES = {
    "default": database(
        os.environ["DATABASE_URL"],
        # A worker that waits for a pool without threads says so soon, and not after Django's thirty seconds.
        pool={"min_size": 1, "max_size": _SIZE, "timeout": 5} if _SIZE else None,
        conn_max_age=0 if _SIZE else None,
    ),
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "[%(process)d] %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"conn_hygiene": {"handlers": ["stderr"], "level": "INFO"}},
}
