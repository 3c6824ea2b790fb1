"""A backend in the manner of those for tenants: it sets a schema's search_path, once for each session that it knows of.

That a session has gone it learns in ``close()``, and in no other way.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db.backends.postgresql import base

counted: Counter[str] = Counter()


class DatabaseWrapper(base.DatabaseWrapper):
    #: What every session is to have, and what this one is believed to have.
    schema = "acme"
    believed: str | None = None
    #: How often this one was closed; `counted` is of all, those with which the toolkit asks included.
    closed = 0
    fails_to_turn_autocommit_off = False

    def close(self) -> None:
        counted["closed"] += 1
        self.closed += 1
        self.believed = None
        super().close()

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)  # type: ignore[misc]
        if self.believed != self.schema:
            counted["set"] += 1
            with self.connection.cursor() as another:
                another.execute(f"SET search_path = {self.schema}, public")
            self.believed = self.schema
        return cursor

    def _set_autocommit(self, autocommit: bool) -> None:
        if self.fails_to_turn_autocommit_off and not autocommit:
            raise base.Database.OperationalError("not now")
        super()._set_autocommit(autocommit)  # type: ignore[misc]


class NotGoingOn(DatabaseWrapper):
    def close(self) -> None:
        self.believed = None
        base.DatabaseWrapper.close(self)


class NotDjangosReturn(DatabaseWrapper):
    def _close(self) -> None:
        super()._close()  # type: ignore[misc]
