"""What a statement can do to its session: the reasons to keep one, the settings, and both as the effect of a statement.

What is asked of the server, or found in its catalogue, is told in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from conn_hygiene.sessions.lexer import folded

# The reasons, as they stand in logs, in snapshot() and in the documentation.
SETTING = "SET"
TEMPORARY = "temporary table"
ADVISORY_LOCK = "advisory lock"
LISTEN = "LISTEN"
PREPARED = "PREPARE"
HELD_CURSOR = "cursor WITH HOLD"
LIBRARY = "LOAD"
REMOTE = "dblink connection"
SEED = "setseed()"
SLOT = "temporary replication slot"
ORIGIN = "replication origin"
BACKUP = "backup"
EXTENSION = "state of an extension"
CODE = "DO block"
SHARED = "copy of the database wrapper"
PAST = "use before install()"
DISCARDED = "DISCARD ALL"
# Not a reason either, nor a name that a setting can have without quotes.
ALL = "all"
# Not a reason to keep a session, but one to clean it: tables may be temporary by it.
PATH = "search_path that is computed"
UNREADABLE = "statement that cannot be read"
UNTOLD = "what functions may have set (the catalogue could not be read)"

# What DISCARD ALL does not undo, or may not: a session with one of these is closed, never handed on.
INDELIBLE = frozenset({LIBRARY, REMOTE, SEED, SLOT, ORIGIN, BACKUP, EXTENSION, CODE, UNREADABLE})

# Where a path may have all that is created be temporary, which its name does not tell.
SEARCH_PATH = "search_path"

# What needs mending before somebody else gets the session, but does not matter to its owner.
HARMLESS = frozenset({DISCARDED, PATH})


class Placeholder(NamedTuple):
    """One of a statement's parameters: its index from 0 on, or its name."""

    key: int | str


class Setting(NamedTuple):
    """A setting of the session that a statement sets or resets, and whose name can be read."""

    #: In lower case, which is how PostgreSQL compares names; such as ``"app.tenant"``, ``"timezone"`` or ``"role"``.
    name: str | Placeholder
    #: Whether it is ``SET LOCAL`` after all, for a ``set_config()`` that is told so by a parameter.
    is_local: bool | Placeholder = False


class Each(NamedTuple):
    """The parameters of a statement that is executed for each of the *rows*."""

    rows: Any


class Effect(NamedTuple):
    """The state that a statement adds to its session, and the state that it takes away."""

    #: Reasons. ``SETTING`` is among them if a name cannot be read, or if all settings are reset.
    adds: frozenset[str]
    removes: frozenset[str]
    #: What it sets or resets under names that can be read.
    settings: frozenset[Setting] = frozenset()
    #: Of these, what it sets back to the server's default and does nothing else; or :data:`ALL` of them.
    resets: frozenset[str] = frozenset()

    def with_parameters(self, parameters: Any) -> Effect:
        """Return the effect with the names of settings that are placeholders read from the statement's *parameters*.

        What is local to a transaction is left out; what cannot be read is a ``SETTING`` of unknown name.
        """
        if isinstance(parameters, Each):
            return self._with_each(parameters.rows)
        adds, settings = self.adds, set[Setting]()
        for setting in self.settings:
            name, local = (_given(each, parameters) for each in setting)
            local = local is True or (isinstance(local, str) and is_true(local))
            if not isinstance(name, str):
                adds |= frozenset() if local else {SETTING}
                continue
            more, names = of_setting(folded(name), local)
            adds |= more
            settings |= names
            # One that is local here stands for a path that is a parameter: not known where there are many of each.
            is_any = setting.is_local is True and parameters is None
            if folded(name) == SEARCH_PATH and (is_any or _has_pg_temp(parameters)):
                adds |= {TEMPORARY}
        return Effect(adds, self.removes - adds, frozenset(settings), self.resets)

    def _with_each(self, rows: Any) -> Effect:
        if not isinstance(rows, Sequence):
            # To read them would take them from who executes it.
            return self.with_parameters(None)
        effects = [self.with_parameters(row) for row in rows]
        adds = self.adds.union(*(effect.adds for effect in effects))
        settings = frozenset[Setting]().union(*(effect.settings for effect in effects))
        return Effect(adds, self.removes - adds, settings, self.resets)


#: That of what cannot be read.
UNKNOWN = Effect(frozenset({UNREADABLE}), frozenset())

# What ends with its transaction, however it is set.
_OF_TRANSACTIONS = frozenset({"transaction_isolation", "transaction_read_only", "transaction_deferrable"})

_TRUE = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})

_PG_TEMP_FIRST = re.compile(r'\s*(?:(?:"\$user"|"")\s*,\s*)*"?pg_temp(?:_[0-9]+)?"?\s*(?:,|$)', re.IGNORECASE)


def is_true(text: str) -> bool:
    """Return whether PostgreSQL reads *text* as true (its documentation, "Boolean Type")."""
    return text.strip().lower() in _TRUE


def _has_pg_temp(parameters: Any) -> bool:
    values = parameters.values() if isinstance(parameters, Mapping) else parameters or ()
    return any(isinstance(value, str) and "pg_temp" in value.lower() for value in values)


def makes_temporary(path: str | None) -> bool:
    """Return whether what is created is temporary with *path* as ``search_path`` (documentation of that setting)."""
    return path is not None and _PG_TEMP_FIRST.match(path) is not None


def _given(value: Any, parameters: Any) -> Any:
    if not isinstance(value, Placeholder):
        return value
    try:
        return parameters[value.key]
    except (TypeError, LookupError):
        return None


def of_setting(name: str, local: bool | Placeholder) -> tuple[frozenset[str], frozenset[Setting]]:
    """Return what it leaves behind to set *name*, which is in lower case."""
    if name == "seed":
        # Not a setting: it changes the state of the generator, which no rollback gives back.
        return frozenset({SEED}), frozenset()
    if local is True or name in _OF_TRANSACTIONS:
        return frozenset(), frozenset()
    names = (name, "role") if name == "session_authorization" else (name,)
    return frozenset(), frozenset(Setting(each, local) for each in names)
