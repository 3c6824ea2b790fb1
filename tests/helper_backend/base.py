"""A backend with a helper whose name is an obvious one."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Connects by a method of its own."""

    def get_new_connection(self, conn_params: Any) -> Any:
        """Return what the helper connects."""
        return self._connect(conn_params)

    def _connect(self, conn_params: Any) -> Any:
        return super().get_new_connection(conn_params)
