"""A backend made from Django's, as people make them: it counts, and has a cursor class of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db.backends.postgresql import base

counted: Counter[str] = Counter()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()

        factory: Any = params["cursor_factory"]

        class CountingCursor(factory):  # type: ignore[misc]
            def execute(self, *args: Any, **kwargs: Any) -> Any:
                counted["executed"] += 1
                return super().execute(*args, **kwargs)

        return params | {"cursor_factory": CountingCursor}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        counted["connections"] += 1
        return super().get_new_connection(conn_params)

    def create_cursor(self, name: str | None = None) -> Any:
        counted["cursors"] += 1
        return super().create_cursor(name)
