"""The application: ``"conn_hygiene"`` in INSTALLED_APPS installs the toolkit and registers its checks."""

from __future__ import annotations

from django.apps import AppConfig

from conn_hygiene import installation
from conn_hygiene.contrib import gunicorn, uwsgi
from conn_hygiene.server import checks


class ConnHygieneConfig(AppConfig):
    """Installs the toolkit when the application registry is ready."""

    name = "conn_hygiene"
    verbose_name = "Connection hygiene"

    def ready(self) -> None:
        """Register the checks, say what is wrong with the setting, and install."""
        gunicorn.install()
        checks.register()
        installation.complain_of_setting()
        installation.install()
        uwsgi.install()
