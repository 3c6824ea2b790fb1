"""The application: ``"conn_hygiene"`` in INSTALLED_APPS installs the toolkit and registers its checks."""

from __future__ import annotations

import logging

from django.apps import AppConfig
from django.conf import settings

from conn_hygiene import conf, installation
from conn_hygiene.contrib import gunicorn, uwsgi
from conn_hygiene.server import checks

logger = logging.getLogger("conn_hygiene")


class ConnHygieneConfig(AppConfig):
    """Installs the toolkit when the application registry is ready."""

    name = "conn_hygiene"
    verbose_name = "Connection hygiene"

    def ready(self) -> None:
        """Register the checks, say what is wrong with the setting, and install."""
        gunicorn.install()
        checks.register()
        # Servers do not run the checks, so what is wrong is said here as well; the defaults stand in for it.
        for problem in conf.problems(getattr(settings, "CONN_HYGIENE", {})):
            logger.error("%s %s It is ignored.", problem.message, problem.hint)
        installation.install()
        uwsgi.install()
