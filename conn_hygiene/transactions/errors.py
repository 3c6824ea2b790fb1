"""Which error of the server an exception is: Django's classes are too coarse for what is run again."""

from __future__ import annotations

from django.db import Error

# PostgreSQL documentation, "PostgreSQL Error Codes"; its chapter "Serialization Failure Handling" says which of them
# mean that the same transaction may well succeed when it is run once more.
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
IN_FAILED_SQL_TRANSACTION = "25P02"
QUERY_CANCELED = "57014"


def sqlstate_of(exc: BaseException | None) -> str | None:
    """Return the SQLSTATE of a database error, Django's or psycopg's; None if it has none."""
    if isinstance(exc, Error):
        exc = exc.__cause__
    return getattr(exc, "sqlstate", None)
