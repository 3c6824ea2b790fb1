"""The text of what psycopg is given to execute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.sql import Identifier, Literal

from conn_hygiene.interruptions import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from psycopg.sql import Composable


def text_of(query: Any, connection: psycopg.Connection[Any] | None) -> str | None:
    """Return the text of anything that psycopg executes (str, bytes, Composable, Template), or None if it has none.

    *connection* is the running thread's own; without one, what it would decide is taken as psycopg's defaults have it.
    """
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    try:
        if hasattr(query, "as_string"):
            return str(query.as_string(connection))
        # A template string (Python 3.14).
        return "".join(part if isinstance(part, str) else _interpolated(part, connection) for part in query)
    except Exception as error:
        # Whatever is wrong with the query, psycopg will say it better.
        if is_of_handler(error):
            raise
        return None


def _interpolated(part: Any, connection: psycopg.Connection[Any] | None) -> str:
    """Return what psycopg makes of *part* of a template string, an interpolation; a placeholder for a parameter."""
    if part.format_spec == "q" or hasattr(part.value, "as_string"):
        return text_of(part.value, connection) or ""
    if part.format_spec in _QUOTED:
        return _QUOTED[part.format_spec](part.value).as_string(connection)
    return "%s"


# How psycopg quotes what is no parameter, by how a template string asks for it.
_QUOTED: dict[str, Callable[[Any], Composable]] = {"i": Identifier, "l": Literal}
