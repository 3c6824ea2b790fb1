"""The application: ``"conn_hygiene.contrib.admin"`` in INSTALLED_APPS adds the page to the admin."""

from __future__ import annotations

from django.apps import AppConfig


class ConnHygieneAdminConfig(AppConfig):
    """Brings the permissions, and with Django's autodiscovery the page on the default site."""

    name = "conn_hygiene.contrib.admin"
    label = "conn_hygiene_admin"
    verbose_name = "Connection hygiene"
    default_auto_field = "django.db.models.BigAutoField"
