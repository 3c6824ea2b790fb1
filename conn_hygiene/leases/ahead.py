"""What is done ahead of a statement by whoever looks after its session, be it announced to Django or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg
    from django.db.backends.base.base import BaseDatabaseWrapper


class Ahead:
    """One of a wrapper's ``execute_wrappers`` that the lease asks as well.

    Django calls those for what goes through its own cursors. It passes ``copy()``, ``stream()``, ``callproc()`` and the
    cursors of a raw handle by.
    """

    def ahead_of(self, statement: Any, wrapper: BaseDatabaseWrapper, connection: psycopg.Connection[Any]) -> None:
        """Do what is to be done on *connection* ahead of *statement*; it does not run if this raises."""
        raise NotImplementedError


def ahead_of(statement: Any, wrapper: BaseDatabaseWrapper, connection: psycopg.Connection[Any]) -> None:
    """Have all that is to be done ahead of *statement* done. It may have been, by Django's call."""
    for each in wrapper.execute_wrappers:
        if isinstance(each, Ahead):
            each.ahead_of(statement, wrapper, connection)
