"""Django's wrapper as it is by itself: which methods are its own still, and what it remembers of transactions."""

from __future__ import annotations

import os
from inspect import unwrap
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import django
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper

from conn_hygiene import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

#: The module whose ``atomic()`` calls methods of the wrapper.
TRANSACTION = "django.db.transaction"

async_unsafe: Callable[[F], F] = internals.imported("django.utils.asyncio", "async_unsafe", lambda function: function)

# What connect() consists of when it is for a pooled connection.
PARTS = (
    "connect",
    "check_settings",
    "get_new_connection",
    "set_autocommit",
    "_set_autocommit",
    "init_connection_state",
)
parts_of = attrgetter(*PARTS, "pool")
_DJANGO = os.path.dirname(django.__file__) + os.sep


def _own_parts() -> tuple[Any, ...] | None:
    """Return Django's parts of ``connect()``; None if somebody, such as sentry_sdk, has replaced one already."""
    if not all(hasattr(DatabaseWrapper, name) for name in (*PARTS, "pool")):
        # Another Django, on which nobody comes to ask.
        return None
    parts: tuple[Any, ...] = parts_of(DatabaseWrapper)
    return parts if all(_is_djangos(part) for part in parts) else None


def _is_djangos(function: Any) -> bool:
    # What stands there may be anything that can be called, or a property.
    code = getattr(getattr(function, "fget", function), "__code__", None)
    return code is not None and code.co_filename.startswith(_DJANGO)


OWN_PARTS = _own_parts()

# None if somebody has replaced it already.
ENSURE_CONNECTION: Any = getattr(BaseDatabaseWrapper, "ensure_connection", None)
if not _is_djangos(unwrap(ENSURE_CONNECTION)):
    ENSURE_CONNECTION = None
# What a query begins with, each None likewise; and the code of cursor(), which has refused a thread that runs an event
# loop.
CURSOR: Any = getattr(BaseDatabaseWrapper, "_cursor", None)
if not _is_djangos(CURSOR):
    CURSOR = None
CREATE_CURSOR: Any = getattr(DatabaseWrapper, "create_cursor", None)
if not _is_djangos(unwrap(CREATE_CURSOR)):
    CREATE_CURSOR = None
CODE_OF_CURSOR: Any = getattr(unwrap(BaseDatabaseWrapper.cursor), "__code__", None)
CLOSE_IF_OLD: Any = getattr(BaseDatabaseWrapper, "close_if_unusable_or_obsolete", None)
if not _is_djangos(CLOSE_IF_OLD):
    CLOSE_IF_OLD = None


def reset_transaction_state(wrapper: BaseDatabaseWrapper) -> None:
    """Have *wrapper* forget the transaction and the ``atomic()`` blocks that it believes to be in.

    For when none of them is left on the stack: Django would refuse the wrapper to whoever comes next.
    """
    wrapper.in_atomic_block = False
    wrapper.atomic_blocks = []
    wrapper.savepoint_ids = []
    wrapper.run_on_commit = []
    wrapper.needs_rollback = wrapper.closed_in_transaction = False
