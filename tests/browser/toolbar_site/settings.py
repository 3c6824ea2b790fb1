"""Settings of the site.

It has the strictest Content-Security-Policy: what is not a file of its own is neither run nor loaded.
"""

from __future__ import annotations

from pathlib import Path

from example_project.embedded import database, database_url
from example_project.processes import HOST

DEBUG = True
SECRET_KEY = "tests"
ALLOWED_HOSTS = INTERNAL_IPS = [HOST]
USE_TZ = True
# Which would write 12,5 for 12.5.
LANGUAGE_CODE = "de"
ROOT_URLCONF = "tests.browser.toolbar_site.urls"
STATIC_URL = "/static/"
INSTALLED_APPS = ["django.contrib.staticfiles", "debug_toolbar", "conn_hygiene"]
MIDDLEWARE = [
    "tests.browser.toolbar_site.urls.only_own_files",
    "debug_toolbar.middleware.DebugToolbarMiddleware",
    "conn_hygiene.middleware.ConnectionHygieneMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent / "templates"],
        "APP_DIRS": True,
    }
]
DEBUG_TOOLBAR_PANELS = [
    "debug_toolbar.panels.history.HistoryPanel",
    "debug_toolbar.panels.sql.SQLPanel",
    "conn_hygiene.contrib.debug_toolbar.panels.ConnectionsPanel",
]
DEBUG_TOOLBAR_CONFIG = {"TOOLBAR_LANGUAGE": "en"}
DATABASES = {
    "default": database(database_url(), pool={"min_size": 2, "max_size": 4, "timeout": 5}),
    "reports": database(database_url()),
}
