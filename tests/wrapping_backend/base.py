"""A backend that changes each connection as it checks it out, on top of what it finds: django-prometheus' does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db.backends.postgresql import base
from psycopg.adapt import Loader

counted: Counter[str] = Counter()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        connection: Any = super().get_new_connection(conn_params)

        class CountingCursor(connection.cursor_factory):  # type: ignore[misc]
            def execute(self, *args: Any, **kwargs: Any) -> Any:
                counted["executed"] += 1
                return super().execute(*args, **kwargs)

        found = connection.adapters.get_loader(_INT4, 0)

        class CountingLoader(Loader):
            def load(self, data: Any) -> Any:
                counted["loaded"] += 1
                return found(_INT4, connection).load(data)

        connection.cursor_factory = CountingCursor
        connection.adapters.register_loader("int4", CountingLoader)
        connection.add_notice_handler(lambda diagnostic: counted.update(["noticed"]))
        return connection


_INT4 = 23
