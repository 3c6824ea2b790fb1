"""What the admin and its permissions hang on: a model without a table and without rows."""

from __future__ import annotations

from django.db import models


class _NoRows(models.Manager["Connections"]):
    def get_queryset(self) -> models.QuerySet[Connections]:
        """Return what is empty without asking: ``dumpdata`` and its kind go through all models, tables or not."""
        return super().get_queryset().none()


class Connections(models.Model):
    """Stands for all connections; there is no table. Who may see the page, and who may end sessions, hangs on it."""

    objects = _NoRows()

    class Meta:
        """No table, and permissions that the admin does not make for itself."""

        managed = False
        verbose_name = "connection"
        verbose_name_plural = "connections"
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = [("terminate_session", "Can terminate sessions")]  # noqa: RUF012 - as Django declares it
